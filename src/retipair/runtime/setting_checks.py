"""Check the values of settings that several commands share."""

import math
from pathlib import Path
from typing import Any

from retipair.runtime.errors import FileError, SettingError

_MAX_INTEGER = 2**32


def check_values(config: Any) -> None:
    """Raise SettingError for numbers out of range and invalid text, FileError for paths that cannot be reached."""
    for name, value in vars(config).items():
        if isinstance(value, float) and not math.isfinite(value):
            raise SettingError(name, value, "must be a finite number")
        if isinstance(value, int) and abs(value) > _MAX_INTEGER:
            raise SettingError(name, f"{value!s:.20}", "out of range; must be at most 2^32")
        if isinstance(value, str | Path) and "\0" in str(value):
            raise SettingError(name, None, "contains a NUL character; remove it")
        if isinstance(value, str | Path) and str(value).encode(errors="replace").decode() != str(value):
            raise SettingError(name, value, "is not UTF-8; rename it, or type it again")
        if isinstance(value, Path):
            _check_path(value)


def _check_path(path: Path) -> None:
    try:
        path.stat()
    except FileNotFoundError:
        pass
    except OSError as error:
        raise FileError(path, f"cannot be reached ({error.strerror}); give another path") from None


def check_folder_name(setting: str, name: str) -> None:
    """Raise SettingError unless `name` is a single folder name."""
    if not name or Path(name).name != name or name.startswith(".") or len(name.encode()) > 200:
        raise SettingError(setting, repr(name), "must be one folder name of at most 200 bytes, without a leading dot")


def check_size(size: int | None) -> None:
    """Raise SettingError unless the view size is a multiple of 64, or None (the base's own size)."""
    if size is not None and (size < 64 or size % 64):
        raise SettingError("size", size, "must be a multiple of 64")
