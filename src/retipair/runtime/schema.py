"""Dataclasses <-> JSON values, strictly: unknown keys and values of another type are refused."""

import hashlib
import json
from dataclasses import fields
from pathlib import Path
from typing import Any, Literal, TypeVar, get_args, get_origin, get_type_hints

from retipair.runtime.errors import UserError

Config = TypeVar("Config")


def from_values(kind: type[Config], values: dict[str, Any], where: str) -> Config:
    """Build a config from JSON values. Raises UserError, naming `where`, for an unknown key."""
    known = {field.name: field for field in fields(kind)}  # type: ignore[arg-type]
    if unknown := sorted(set(values) - set(known)):
        raise UserError(f"{where}: unknown setting {unknown[0]!r}; remove it or update retipair")
    hints = get_type_hints(kind)
    if wrong := next((key for key, value in values.items() if not _is_setting(value, hints[key])), None):
        raise UserError(f"{where}: {wrong} cannot be {values[wrong]!r:.40}; it was edited or damaged")
    return kind(**{key: _restored(value, hints[key]) for key, value in values.items()})


def _is_setting(value: Any, hint: Any) -> bool:
    """Whether a JSON value can be a setting of that type."""
    if get_origin(hint) is Literal:
        return value in get_args(hint)
    if get_origin(hint) is not None:  # a union
        return any(_is_setting(value, one) for one in get_args(hint))
    kinds = {float: (int, float), Path: (str,)}.get(hint, (hint,))
    return type(value) in kinds


def to_values(config: Any) -> dict[str, Any]:
    """The settings as JSON values."""
    return {f.name: _plain(getattr(config, f.name)) for f in fields(config)}


def canonical_json(values: Any) -> str:
    """One text for equal values: what every fingerprint is made over."""
    return json.dumps(values, sort_keys=True, separators=(",", ":"), ensure_ascii=False)


def json_sha256(values: Any) -> str:
    """The fingerprint of values: equal for equal ones."""
    return hashlib.sha256(canonical_json(values).encode()).hexdigest()


def _plain(value: Any) -> Any:
    return str(value) if isinstance(value, Path) else value


def _restored(value: Any, hint: Any) -> Any:
    """The setting of that type that a JSON value stands for."""
    return Path(value) if Path in (hint, *get_args(hint)) and value is not None else value
