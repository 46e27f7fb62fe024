"""List the images and landmarks in a folder, without the files that operating systems and network drives create."""

import os
import re
from collections.abc import Iterable
from pathlib import Path

from retipair.runtime.errors import DamagedError, FileError
from retipair.runtime.text_files import on_disk

_SUFFIXES = (".png", ".jpg", ".jpeg", ".jpe", ".jfif", ".tif", ".tiff", ".bmp", ".webp", ".gif")
_OTHER_SUFFIXES = (".jp2", ".j2k", ".heic", ".heif", ".avif", ".dcm", ".dicom")
"""Files with these suffixes are listed as views too: DICOM, and unsupported formats, which an error then names."""
_POINT_SUFFIXES = (".txt", ".csv", ".roi")
NUMBERED = re.compile(r"(?P<id>.+)_(?P<view>0?[12])", re.ASCII)
"""The names ID_01 (CF) and ID_02 (FA) of the views of a pair."""
_SYSTEM_FOLDERS = {"@eadir", "#recycle", "$recycle.bin", "system volume information", "lost+found", "__macosx"}
"""Names, in lower case, of folders that network drives and operating systems create; they are never searched."""


def visible(folder: Path) -> list[Path]:
    """Return the sorted paths in a folder, without hidden ones and without `_SYSTEM_FOLDERS`."""
    try:
        paths = sorted(folder.iterdir())
    except OSError as error:
        raise DamagedError(folder, f"cannot be read ({error.strerror}); change its permissions, or remove it") from None
    return [path for path in paths if not path.name.startswith(".") and path.name.lower() not in _SYSTEM_FOLDERS]


def images_in(folder: Path) -> list[Path]:
    return [path for path in visible(folder) if is_image_name(path) and is_file_or_link(path)]


def is_image_name(path: Path) -> bool:
    """Return whether a file name has the suffix of an image format, supported or unsupported."""
    return path.suffix.lower() in (*_SUFFIXES, *_OTHER_SUFFIXES)


def view_name(path: Path) -> str:
    """Return the name of a file without the suffix of an image format.

    A DICOM file may be named by a UID, whose last number is no suffix.
    """
    return path.stem if is_image_name(path) else path.name


def is_file_or_link(path: Path) -> bool:
    """Return whether a path is a file or a dangling link, such as git-annex content that is not fetched yet."""
    return path.is_file() or (path.is_symlink() and not path.exists())


def spelled_as_on_disk(path: Path) -> Path:
    """Return `on_disk(path)`, or the path unchanged if it is not a valid file name."""
    try:
        return on_disk(path)
    except OSError:
        return path


def is_existing_file(path: Path) -> bool:
    try:
        return path.is_file()
    except OSError:  # not a valid file name
        return False


def has_files(folder: str | Path, names: Iterable[str | None]) -> bool:
    """Return whether at least one of the named files of a pair exists; otherwise a user has deleted the pair."""
    for name in names:  # noqa: SIM110 - `any` takes twice as long
        if name and _exists(f"{folder}{os.sep}{name}"):
            return True
    return False


def _exists(path: str) -> bool:
    """Return whether a path exists. A dangling link and a path that cannot be accessed count as existing."""
    if os.access(path, os.F_OK):  # faster than `os.lstat`, but does not tell why a path cannot be accessed
        return True
    try:
        os.lstat(path)
    except (FileNotFoundError, NotADirectoryError):
        return False
    except OSError:
        return True
    return True


def points_beside(view: Path) -> Path | None:
    """Return the file with the landmarks of a view: the .txt, .csv or .roi file with the same name, or None.

    Raises FileError if there are two of them.
    """
    found, name = [], view_name(view)
    for suffix in _POINT_SUFFIXES:
        spelled = (on_disk(view.with_name(name + spelling)) for spelling in (suffix, suffix.upper(), suffix.title()))
        found += [path for path in spelled if is_file_or_link(path)][:1]
    if len(found) > 1:
        raise FileError(found[1], f"holds landmarks of the same view as {found[0].name}; remove one of them")
    return found[0] if found else None
