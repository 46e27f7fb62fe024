"""List the images in a folder, without the files that operating systems and network drives create."""

import re
from pathlib import Path

from retipair.runtime.errors import DamagedError

_SUFFIXES = (".png", ".jpg", ".jpeg", ".jpe", ".jfif", ".tif", ".tiff", ".bmp", ".webp", ".gif")
_OTHER_SUFFIXES = (".jp2", ".j2k", ".heic", ".heif", ".avif", ".dcm", ".dicom")
"""Unsupported image formats. Files with these suffixes are listed as views, so that an error names each of them."""
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


def is_file_or_link(path: Path) -> bool:
    """Return whether a path is a file or a dangling link, such as git-annex content that is not fetched yet."""
    return path.is_file() or (path.is_symlink() and not path.exists())
