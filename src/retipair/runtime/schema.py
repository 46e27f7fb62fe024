"""Convert dataclasses to JSON values and back; unknown keys, missing keys and values of a wrong type are errors."""

import hashlib
import json
import sys
from collections.abc import Callable
from dataclasses import MISSING, fields, is_dataclass
from functools import cache, partial
from pathlib import Path
from types import NoneType
from typing import Any, Literal, TypeVar, get_args, get_origin, get_type_hints

from retipair.runtime.errors import UserError
from retipair.runtime.jsonl import is_text

Kind = TypeVar("Kind")
Check = Callable[[Any], bool]
Convert = Callable[[Any, str, str], Any]
"""(JSON value, place in errors, advice) -> value of the field."""
_INT_LIMIT = 2**63
_MAX_FLOAT = sys.float_info.max


def from_values(
    kind: type[Kind], values: Any, where: str, advice: str = "the file was edited or damaged; restore it"
) -> Kind:
    """Build a dataclass from the values of a JSON object; fields with a default may be missing.

    A field is a str, int, float, bool, None, Path, Literal, dataclass, or a list, tuple, dict or union of these.
    Integers have at most 63 bits, floats are finite, text has no lone surrogates. Raises UserError, naming `where` and
    the key, for unknown and missing keys and for values of another type.
    """
    if not isinstance(values, dict):
        raise UserError(f"{where}: not a JSON object; {advice}")
    checks, converters = _codec(kind)  # type: ignore[arg-type]
    if values.keys() != checks.keys():
        _check_keys(kind, values, where, advice)
    if wrong := next((key for key, value in values.items() if not checks[key](value)), None):
        raise UserError(f"{where}: {wrong} cannot be {json.dumps(values[wrong])[:40]}{_options(kind, wrong)}; {advice}")
    if converters:
        converted = {
            key: convert(values[key], f"{where}: {key}", advice) for key, convert in converters.items() if key in values
        }
        values = values | converted
    return kind(**values)


def _options(kind: type, key: str) -> str:
    hint = get_type_hints(kind)[key]
    return f" (use {', '.join(get_args(hint))})" if get_origin(hint) is Literal else ""


def _check_keys(kind: type, values: dict[str, Any], where: str, advice: str) -> None:
    required = {f.name: f.default is MISSING and f.default_factory is MISSING for f in fields(kind)}
    if unknown := sorted(values.keys() - required.keys()):
        raise UserError(f"{where}: unknown key {unknown[0]!r}; remove it or update retipair")
    if missing := sorted(name for name in required if required[name] and name not in values):
        raise UserError(f"{where}: key {missing[0]!r} is missing; {advice}")


@cache
def _codec(kind: type) -> tuple[dict[str, Check], dict[str, Convert]]:
    """Return the check of each field's JSON value, and a converter for each field whose value differs from it.

    They are made once, because inspecting types for every value would take most of the time.
    """
    hints = {field.name: get_type_hints(kind)[field.name] for field in fields(kind)}
    converters = {name: _converter_for(hint) for name, hint in hints.items()}
    checks = {name: _check_for(hint) for name, hint in hints.items()}
    return checks, {name: convert for name, convert in converters.items() if convert}


def _check_for(hint: Any) -> Check:
    origin, inner = get_origin(hint), get_args(hint)
    if origin is Literal:
        return inner.__contains__
    if is_dataclass(hint):  # its content is checked when it is converted
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
    Path: _is_str,
    float: lambda value: type(value) in (int, float) and abs(value) <= _MAX_FLOAT,
    int: lambda value: type(value) is int and abs(value) < _INT_LIMIT,
}


def _converter_for(hint: Any) -> Convert | None:
    """Return the converter of a type, None if the JSON value is the value of the field."""
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


def to_values(config: Any) -> dict[str, Any]:
    """Return the fields as JSON values."""
    return {f.name: _to_json(getattr(config, f.name)) for f in fields(config)}


def canonical_json(values: Any) -> str:
    """Return JSON text that is identical for equal values; input of every fingerprint."""
    return json.dumps(values, sort_keys=True, separators=(",", ":"), ensure_ascii=False)


def json_sha256(values: Any) -> str:
    """Return the fingerprint of JSON values: the hash of their canonical JSON."""
    return hashlib.sha256(canonical_json(values).encode()).hexdigest()


def _to_json(value: Any) -> Any:
    return str(value) if isinstance(value, Path) else value
