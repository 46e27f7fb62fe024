"""Check values of settings, with checks that several commands share."""

import math
from pathlib import Path
from typing import Any

from retipair.runtime.errors import FileError, SettingError

_MAX_INTEGER = 2**32


def check_values(config: Any) -> None:
    """Check the fields of a command's configuration for values that no setting allows.

    Raises SettingError for a float that is infinite or NaN, for an integer whose absolute value is above 2^32, and for
    text that has a NUL character or is not UTF-8. Raises FileError for a path that cannot be accessed; a path that does
    not exist is allowed.
    """
    values = ((name, value if isinstance(value, tuple) else (value,)) for name, value in vars(config).items())
    for name, value in ((name, item) for name, items in values for item in items):
        if isinstance(value, float) and not math.isfinite(value):
            raise SettingError(name, value, "must be a finite number")
        if isinstance(value, int) and abs(value) > _MAX_INTEGER:
            raise SettingError(name, f"{value!s:.20}", "out of range; must be from -2^32 to 2^32")
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
    """Raise SettingError unless `name` is a valid name of one folder, without parent folders.

    setting: the name of the setting, for the error message.
    """
    if not name or Path(name).name != name or name.startswith(".") or len(name.encode()) > 200:
        raise SettingError(setting, repr(name), "must be one folder name of at most 200 bytes, without a leading dot")


def check_size(size: int | None) -> None:
    """Raise SettingError unless the size of a view is a positive multiple of 64 px or None.

    None stands for the default size of the base model.
    """
    if size is not None and (size < 64 or size % 64):
        raise SettingError("size", size, "must be a positive multiple of 64 px")
