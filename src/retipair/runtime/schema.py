"""Convert dataclasses to JSON values and back; unknown keys, missing keys and values of a wrong type are errors.

`from_values` also makes msgspec Structs. Keyword arguments from Python are checked by the same rules, see
`from_settings`.

Two entries in the metadata of a dataclass field change its JSON. With `{"json": "likeness"}`, the key is "likeness"
instead of the name of the field. With `{"prefix": "texture."}`, a dict field is not a nested object: each of its items
becomes a key of the surrounding object, with "texture." before the key of the item.
"""

import hashlib
import json
import os
import sys
from collections.abc import Callable
from dataclasses import MISSING, Field, dataclass, fields, is_dataclass, make_dataclass
from functools import cache, partial
from pathlib import Path
from types import NoneType, UnionType
from typing import Any, Literal, TypeVar, get_args, get_origin, get_type_hints

import msgspec
import numpy as np

from retipair.runtime.errors import SettingError, UserError, printable
from retipair.runtime.jsonl import is_text
from retipair.runtime.setting_checks import check_values

Kind = TypeVar("Kind")
Check = Callable[[Any], bool]
Convert = Callable[[Any, str, str], Any]
"""A function that converts (JSON value, where, advice) to the value of a field.

`where` and `advice` are texts for error messages: the place of the value, and what the user can do.
"""
_INT_LIMIT = 2**63
_MAX_FLOAT = sys.float_info.max


def from_values(
    kind: type[Kind], values: Any, where: str, advice: str = "the file was edited or damaged; restore it"
) -> Kind:
    """Return an instance of the dataclass or msgspec Struct `kind` with the values of a JSON object.

    The type of a field may be str, int, float, bool, None, Path, Literal, a dataclass, or a list, tuple, dict or union
    of these. Integers must have at most 63 bits, floats must be finite, and text must not have lone surrogates.
    where: the place of the JSON object, for error messages.
    advice: what the user can do, for error messages.
    Raises UserError, naming `where` and the key, for an unknown key, for a missing key of a field without default, and
    for a value that does not fit the type of its field.
    """
    if not isinstance(values, dict):
        raise UserError(f"{where}: not a JSON object; {advice}")
    codec = _codec(kind)  # type: ignore[arg-type]
    for key, prefix in codec.prefixes.items():
        values = _gather(values, key, prefix, codec)
    if values.keys() != codec.checks.keys():
        _check_keys(codec, values, where, advice)
    if wrong := next((key for key, value in values.items() if not codec.checks[key](value)), None):
        raise UserError(
            f"{where}: {wrong} cannot be {json.dumps(values[wrong])[:40]}{codec.options.get(wrong, '')}; {advice}"
        )
    if codec.converters:
        values = values | {
            key: convert(values[key], f"{where}: {key}", advice)
            for key, convert in codec.converters.items()
            if key in values
        }
    if codec.names:
        values = {codec.names.get(key, key): value for key, value in values.items()}
    return kind(**values)


def from_settings(kind: type[Kind], settings: dict[str, Any]) -> Kind:
    """Return an instance of the dataclass `kind` with settings that a user gave as keyword arguments in Python.

    Fields may have the same types as in `from_values`. A value is converted to the type of its field in these cases:
    text to a path, a path to text, an int to a float, a numpy scalar to a Python number, and a list or numpy array to a
    list or tuple.
    Raises SettingError for a missing setting and for a value that is not allowed, UserError for an unknown setting, and
    FileError for a path that cannot be accessed.
    """
    codec, hints = _codec(kind), get_type_hints(kind)  # type: ignore[arg-type]
    if unknown := sorted(settings.keys() - hints.keys()):
        raise UserError(f"unknown setting {unknown[0]!r}; {kind.__name__} has {', '.join(hints)}")
    if missing := sorted(codec.required - settings.keys()):
        raise SettingError(missing[0], None, f"is missing; must be {_describe(hints[missing[0]])}")
    values = {name: _plain(value) for name, value in settings.items()}
    for name, value in values.items():
        if not codec.checks[name](value):
            default = f" (default: {getattr(kind, name)})" if hasattr(kind, name) else ""
            raise SettingError(name, printable(repr(value))[:40], f"must be {_describe(hints[name])}{default}")
        if type(value) is int and float in (hints[name], *get_args(hints[name])):
            values[name] = float(value)  # so that files record 1.0, as they do if the command sets it
    config = from_values(kind, values, kind.__name__)
    check_values(config)
    return config


def _plain(value: Any) -> Any:
    """Return a value from Python as a JSON value: numpy's numbers as Python's, paths as text, tuples as lists."""
    if isinstance(value, np.generic | np.ndarray):
        return value.tolist()
    if isinstance(value, tuple | list):
        return list(map(_plain, value))
    return os.fspath(value) if isinstance(value, os.PathLike) else value


def _describe(hint: Any) -> str:
    """Return the values that a type allows, for error messages."""
    if get_origin(hint) is Literal:
        return f"one of {', '.join(map(repr, get_args(hint)))}"
    if isinstance(hint, UnionType) or NoneType in get_args(hint):
        return " or ".join(map(_describe, get_args(hint)))
    if get_origin(hint) is tuple:
        return " and ".join(_describe(part) for part in get_args(hint) if part is not ...)
    return _ALLOWED.get(hint, str(hint))


@dataclass(frozen=True)
class _Codec:
    """What is needed to check and convert the fields of a dataclass, by JSON key.

    checks: for each field, a function that returns whether a JSON value fits the field.
    converters: functions that convert JSON values, for fields whose values differ from their JSON values.
    names: the names of the fields whose name differs from the key.
    prefixes: the prefixes of the dict fields that are written as several keys (see the module).
    required: the keys of the fields without default.
    options: the allowed values of each Literal, as text for error messages.
    """

    checks: dict[str, Check]
    converters: dict[str, Convert]
    names: dict[str, str]
    prefixes: dict[str, str]
    required: frozenset[str]
    options: dict[str, str]


@cache
def _codec(kind: type) -> _Codec:
    """Return the codec of a dataclass or Struct, cached: inspecting the types takes longer than reading values."""
    types = get_type_hints(kind)
    known = {_key(field): field for field in _fields(kind)}
    hints = {key: types[field.name] for key, field in known.items()}
    converters = {key: _converter_for(hint) for key, hint in hints.items()}
    return _Codec(
        checks={key: _check_for(hint) for key, hint in hints.items()},
        converters={key: convert for key, convert in converters.items() if convert},
        names={key: field.name for key, field in known.items() if key != field.name},
        prefixes={key: field.metadata["prefix"] for key, field in known.items() if "prefix" in field.metadata},
        required=frozenset(
            key for key, field in known.items() if field.default is MISSING and field.default_factory is MISSING
        ),
        options={
            key: f" (use {', '.join(get_args(hint))})" for key, hint in hints.items() if get_origin(hint) is Literal
        },
    )


def _fields(kind: type) -> tuple[Field[Any], ...]:
    """Return the fields of a dataclass, or those of a msgspec Struct in the form that a dataclass gives them."""
    if not issubclass(kind, msgspec.Struct):
        return fields(kind)  # type: ignore[arg-type]
    members: list[Any] = [
        (field.name, field.type, *([] if field.required else [field.default])) for field in msgspec.structs.fields(kind)
    ]
    return fields(make_dataclass(kind.__name__, members, kw_only=True))


def _key(field: Field[Any]) -> str:
    return str(field.metadata.get("json", field.name))


def _check_keys(codec: _Codec, values: dict[str, Any], where: str, advice: str) -> None:
    if unknown := sorted(values.keys() - codec.checks.keys()):
        raise UserError(f"{where}: unknown key {unknown[0]!r}; remove it or update retipair")
    if missing := sorted(codec.required - values.keys()):
        raise UserError(f"{where}: key {missing[0]!r} is missing; {advice}")


def _gather(values: dict[str, Any], key: str, prefix: str, codec: _Codec) -> dict[str, Any]:
    """Return `values` with all items whose keys begin with `prefix` moved into a dict at `key`, without the prefix.

    Items that belong to another field of the dataclass are not moved.
    """
    gathered = [name for name in values if name.startswith(prefix) and name not in codec.checks]
    rest = {name: value for name, value in values.items() if name not in gathered}
    return rest | {key: {name.removeprefix(prefix): values[name] for name in gathered}}


def _check_for(hint: Any) -> Check:
    origin, inner = get_origin(hint), get_args(hint)
    if origin is Literal:
        return lambda value: isinstance(value, str) and value in inner
    if is_dataclass(hint):  # `from_values` checks the content when it converts the value
        return lambda value: isinstance(value, dict)
    parts = [_check_for(part) for part in inner if part is not ...]
    if origin is list or ... in inner:
        return lambda value: isinstance(value, list) and all(map(parts[0], value))
    if origin is tuple:
        return lambda value: _is_tuple(value, parts)
    if origin is dict:
        return lambda value: isinstance(value, dict) and all(map(parts[1], value.values()))
    if len(parts) == 2:  # a union
        first, second = parts
        return lambda value: first(value) or second(value)
    return _PLAIN.get(hint, lambda value: type(value) is hint)


def _is_tuple(value: Any, parts: list[Check]) -> bool:
    fits = isinstance(value, list) and len(value) == len(parts)
    return fits and all(check(item) for check, item in zip(parts, value, strict=True))


def _is_str(value: Any) -> bool:
    return isinstance(value, str) and (value.isascii() or is_text(value))


_PLAIN: dict[Any, Check] = {
    NoneType: lambda value: value is None,
    str: _is_str,
    Path: lambda value: _is_str(value) and value != "",
    float: lambda value: type(value) in (int, float) and abs(value) <= _MAX_FLOAT,
    int: lambda value: type(value) is int and abs(value) < _INT_LIMIT,
}

_ALLOWED: dict[Any, str] = {
    NoneType: "None",
    str: "UTF-8 text",
    Path: "a path (UTF-8, not empty)",
    float: "a finite number",
    int: "an integer of at most 63 bits",
    bool: "True or False",
}


def _converter_for(hint: Any) -> Convert | None:
    """Return a function that converts JSON values to a type, or None if they need no conversion."""
    origin, inner = get_origin(hint), get_args(hint)
    if hint is Path:
        return lambda value, *place: Path(value)
    if isinstance(hint, type) and is_dataclass(hint):
        return partial(from_values, hint)
    convert = next(filter(None, map(_converter_for, inner)), None) if origin is not Literal else None
    if origin is tuple:
        return lambda value, *place: tuple(convert(item, *place) if convert else item for item in value)
    if convert is None:
        return None
    if origin is list:
        return lambda value, *place: [convert(item, *place) for item in value]
    if origin is dict:
        return lambda value, *place: {key: convert(item, *place) for key, item in value.items()}
    return lambda value, *place: None if value is None else convert(value, *place)


def to_values(instance: Any) -> dict[str, Any]:
    """Return the fields of a dataclass instance as JSON values, by JSON key; `from_values` is the inverse."""
    values: dict[str, Any] = {}
    for field in fields(instance):
        value, prefix = _to_json(getattr(instance, field.name)), field.metadata.get("prefix")
        values |= {_key(field): value} if prefix is None else {f"{prefix}{key}": item for key, item in value.items()}
    return values


def canonical_json(values: Any) -> str:
    """Return the JSON text of values for computing hashes. The text does not depend on the order of keys."""
    return json.dumps(values, sort_keys=True, separators=(",", ":"), ensure_ascii=False)


def json_sha256(values: Any) -> str:
    """Return the SHA-256 of the canonical JSON text of values, which identifies them."""
    return hashlib.sha256(canonical_json(values).encode()).hexdigest()


def _to_json(value: Any) -> Any:
    if is_dataclass(value):
        return to_values(value)
    if isinstance(value, tuple | list):
        return [_to_json(item) for item in value]
    if isinstance(value, dict):
        return {key: _to_json(item) for key, item in value.items()}
    return str(value) if isinstance(value, Path) else value
