"""Write files and folders atomically and durably: a kill or a power cut leaves the old version or the new one."""

import hashlib
import json
import os
import shutil
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO

from retipair.runtime.errors import DamagedError, OccupiedError, UserError

CHECKSUMS_NAME = "checksums.json"
LOCK_NAME = ".lock"


def temp_path(path: Path) -> Path:
    """Return the temporary path of a file or folder that is later renamed to `path`. Content there is overwritten."""
    return path.with_name(f".{path.name.removeprefix('.')}.partial")


def is_leftover(path: Path) -> bool:
    """Return True for a lock file or the temporary path of an interrupted write; neither is content of the folder."""
    return path.name == LOCK_NAME or (path.name.startswith(".") and path.name.endswith(".partial"))


def shareable_name(source: str) -> str:
    """Remove the folders, which may contain patient names, from an existing path; return other text unchanged."""
    return Path(source).name if Path(source).exists() else source


def check_folder_place(folder: Path) -> None:
    """Raise UserError if this path or one of its parents exists and is not a folder."""
    for path in (folder, *folder.parents):
        if path.is_dir():
            return
        if os.path.lexists(path):
            raise OccupiedError(path, "is a file where a folder is needed; move it, or choose another folder")


def check_places(error: OSError) -> None:
    """Raise UserError if `error` was caused by a file where a folder is needed, or a folder where a file is needed."""
    if not isinstance(error, NotADirectoryError | FileExistsError | IsADirectoryError):
        return
    for path in (Path(name) for name in (error.filename2, error.filename) if name):
        check_folder_place(path.parent)
        if isinstance(error, IsADirectoryError) and path.is_dir():
            raise OccupiedError(path, "is a folder where a file is needed; move it, or choose another folder")
        if not isinstance(error, IsADirectoryError):
            check_folder_place(path)


# --- Files


@contextmanager
def atomic_write(path: Path, mode: int = 0o666) -> Iterator[BinaryIO]:
    """Write a file atomically: yield a temporary binary stream, which is renamed on success and deleted on error.

    Creates the parent folder. mode: permissions with which the file is created, limited by the umask.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = temp_path(path)
    partial.unlink(missing_ok=True)  # an existing file would keep its permissions
    try:
        with open(partial, "wb", opener=lambda name, flags: os.open(name, flags, mode)) as stream:
            yield stream
            stream.flush()
            os.fsync(stream.fileno())
        partial.replace(path)
    except BaseException:
        partial.unlink(missing_ok=True)  # frees the space if the disk is full
        raise
    fsync(path.parent)


def write_text(path: Path, text: str, mode: int = 0o666) -> None:
    """Write a text file (UTF-8, lines end in \\n) atomically."""
    with atomic_write(path, mode) as stream:
        stream.write(text.encode())


def write_json(path: Path, values: Any) -> None:
    """Write a JSON file atomically."""
    write_text(path, json.dumps(values, indent=2, ensure_ascii=False) + "\n")


def read_json(path: Path) -> dict[str, Any]:
    """Read a JSON object that retipair wrote. Raises UserError, naming the file, if it cannot be read."""
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise DamagedError(
            path, f"cannot be read ({error}); the file is damaged, choose another name or folder"
        ) from None
    if not isinstance(values, dict):
        raise DamagedError(path, "not a JSON object; the file is damaged, choose another name or folder")
    return values


def append_line(path: Path, line: str) -> None:
    """Append one line and flush it to disk. A kill may leave an incomplete last line, which readers must drop."""
    with path.open("a", encoding="utf-8") as stream:
        stream.write(line)
        stream.flush()
        os.fsync(stream.fileno())


def file_sha256(path: Path) -> str:
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


# --- Folders


def atomic_write_dir(folder: Path, fill: Callable[[Path], None]) -> Path:
    """Call `fill` on a temporary folder, then replace `folder` by it atomically; return `folder`."""
    partial, backup = temp_path(folder), _backup_path(folder)
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    try:
        fill(partial)
        # safetensors creates files that only the owner can read; these get the permissions that the umask allows.
        mode = partial.stat().st_mode & 0o666
        for path in (*partial.rglob("*"), partial):
            if path.is_file():
                path.chmod(mode)
            fsync(path)
        recover_dir(folder)
        if folder.exists():
            folder.replace(backup)
        partial.replace(folder)
    except BaseException:
        shutil.rmtree(partial, ignore_errors=True)
        recover_dir(folder)
        raise
    fsync(folder.parent)
    shutil.rmtree(backup, ignore_errors=True)
    return folder


def recover_dir(folder: Path) -> None:
    """Restore the backup of an interrupted `atomic_write_dir`, or delete it if the folder exists."""
    if folder.exists():
        shutil.rmtree(_backup_path(folder), ignore_errors=True)
    elif _backup_path(folder).exists():
        _backup_path(folder).replace(folder)


def write_checksums(folder: Path) -> None:
    """Write the checksums of all files in a folder to its checksums.json."""
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    write_json(folder / CHECKSUMS_NAME, {path.relative_to(folder).as_posix(): file_sha256(path) for path in files})


def verify_checksums(folder: Path) -> str | None:
    """Return an error text if a file of the folder does not match checksums.json, else None."""
    try:
        sums = read_json(folder / CHECKSUMS_NAME)
    except UserError:
        return f"{CHECKSUMS_NAME} is missing or damaged"
    return find_checksum_mismatch(folder, sums) if sums else f"{CHECKSUMS_NAME} lists no file"


def find_checksum_mismatch(folder: Path, sums: Mapping[str, str]) -> str | None:
    """Return an error text for the first file in `folder` that does not match its checksum, or None if all match."""
    for name, sha256 in sums.items():
        if Path(name).is_absolute() or ".." in Path(name).parts:
            return f"{name!r} is not in the folder"
        try:
            if not (folder / name).is_file():  # reading a pipe would block
                return f"{name} is missing"
            if file_sha256(folder / name) != sha256:
                return f"{name} does not match its checksum"
        except (OSError, ValueError) as error:
            return f"{name} cannot be read ({error})"
    return None


def _backup_path(folder: Path) -> Path:
    return folder.with_name(f".{folder.name}.before")


def fsync(path: Path) -> None:
    """Flush the content of a file, or the entries of a folder, to disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
