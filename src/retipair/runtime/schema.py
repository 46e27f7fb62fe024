"""Convert dataclasses to JSON values and back; unknown keys, missing keys and values of a wrong type are errors."""

import hashlib
import json
import sys
from collections.abc import Callable
from dataclasses import MISSING, fields
from functools import cache
from pathlib import Path
from types import NoneType
from typing import Any, Literal, TypeVar, get_args, get_origin, get_type_hints

from retipair.runtime.errors import UserError
from retipair.runtime.jsonl import is_text

Kind = TypeVar("Kind")
Check = Callable[[Any], bool]
Convert = Callable[[Any], Any]
_INT_LIMIT = 2**63
_MAX_FLOAT = sys.float_info.max


def from_values(kind: type[Kind], values: Any, where: str, advice: str) -> Kind:
    """Build a dataclass from the values of a JSON object; fields with a default may be missing.

    A field is a str, int, float, bool, None, Path, Literal, or a list, tuple, dict or union of these. Integers have at
    most 63 bits, floats are finite, text has no lone surrogates. Raises UserError, naming `where` and the key and
    ending in `advice`, for a missing key or a value of another type; and for an unknown key.
    """
    if not isinstance(values, dict):
        raise UserError(f"{where}: not a JSON object; {advice}")
    checks, converters = _codec(kind)  # type: ignore[arg-type]
    if values.keys() != checks.keys():
        _check_keys(kind, values, where, advice)
    if wrong := next((key for key, value in values.items() if not checks[key](value)), None):
        raise UserError(f"{where}: {wrong} cannot be {json.dumps(values[wrong])[:40]}{_options(kind, wrong)}; {advice}")
    if converters:
        values = values | {key: convert(values[key]) for key, convert in converters if key in values}
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
def _codec(kind: type) -> tuple[dict[str, Check], list[tuple[str, Convert]]]:
    """Return functions of a JSON value: for each field, does it have its type; for Path and tuple, the field's value.

    They are made once, because inspecting types for every value would take most of the time.
    """
    hints = get_type_hints(kind)
    converters = [(field.name, _converter_for(hints[field.name])) for field in fields(kind)]
    checks = {field.name: _check_for(hints[field.name]) for field in fields(kind)}
    return checks, [(name, convert) for name, convert in converters if convert]


def _check_for(hint: Any) -> Check:
    origin, inner = get_origin(hint), get_args(hint)
    if origin is Literal:
        return inner.__contains__
    parts = [_check_for(part) for part in inner]
    if origin is list:
        return lambda value: isinstance(value, list) and all(map(parts[0], value))
    if origin is tuple:
        return lambda value: _is_tuple(value, parts)
    if origin is dict:
        return lambda value: isinstance(value, dict) and all(map(parts[1], value.values()))
    if inner:  # a union of two
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
    origin, inner = get_origin(hint), get_args(hint)
    if hint is Path or origin is tuple:
        return Path if hint is Path else tuple
    if origin is list and (item := _converter_for(inner[0])):
        return lambda values: [item(value) for value in values]
    if Path in inner:  # or None
        return lambda value: None if value is None else Path(value)
    return None


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
