"""Convert dataclasses to JSON values and back; unknown keys and values of a wrong type are errors."""

import hashlib
import json
from dataclasses import fields
from pathlib import Path
from typing import Any, Literal, TypeVar, get_args, get_origin, get_type_hints

from retipair.runtime.errors import UserError

Config = TypeVar("Config")


def from_values(kind: type[Config], values: dict[str, Any], where: str) -> Config:
    """Build a config from JSON values. Raises UserError, naming `where`, for unknown keys and wrong types."""
    known = {field.name: field for field in fields(kind)}  # type: ignore[arg-type]
    if unknown := sorted(set(values) - set(known)):
        raise UserError(f"{where}: unknown setting {unknown[0]!r}; remove it or update retipair")
    hints = get_type_hints(kind)
    if wrong := next((key for key, value in values.items() if not _is_setting(value, hints[key])), None):
        raise UserError(f"{where}: {wrong} cannot be {values[wrong]!r:.40}; the file was edited or damaged")
    return kind(**{key: _from_json(value, hints[key]) for key, value in values.items()})


def _is_setting(value: Any, hint: Any) -> bool:
    """Return True if a JSON value is valid for a setting with this type hint."""
    if get_origin(hint) is Literal:
        return value in get_args(hint)
    if get_origin(hint) is not None:  # a union
        return any(_is_setting(value, option) for option in get_args(hint))
    kinds = {float: (int, float), Path: (str,)}.get(hint, (hint,))
    return type(value) in kinds


def to_values(config: Any) -> dict[str, Any]:
    """Return the settings as JSON values."""
    return {f.name: _to_json(getattr(config, f.name)) for f in fields(config)}


def canonical_json(values: Any) -> str:
    """Return JSON text that is identical for equal values; input of every fingerprint."""
    return json.dumps(values, sort_keys=True, separators=(",", ":"), ensure_ascii=False)


def json_sha256(values: Any) -> str:
    """Return the fingerprint of JSON values: the hash of their canonical JSON."""
    return hashlib.sha256(canonical_json(values).encode()).hexdigest()


def _to_json(value: Any) -> Any:
    return str(value) if isinstance(value, Path) else value


def _from_json(value: Any, hint: Any) -> Any:
    """Return the setting for a JSON value: a Path if the type hint has one."""
    return Path(value) if Path in (hint, *get_args(hint)) and value is not None else value
