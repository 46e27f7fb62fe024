"""What is written appears whole or not at all, and is still there after a power cut."""

import hashlib
import json
import os
import shutil
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO

from retipair.runtime.errors import UserError

CHECKSUMS_NAME = "checksums.json"
LOCK_NAME = ".lock"
_UMASK = os.umask(0o077)
os.umask(_UMASK)  # to read it is to set it


def temp_path(path: Path) -> Path:
    """Where a file or folder grows until it is whole. What a killed run left there is overwritten by the next."""
    return path.with_name(f".{path.name.removeprefix('.')}.partial")


def is_leftover(path: Path) -> bool:
    """Whether it is what a run that was cut off left, or a lock: no content of its folder."""
    return path.name == LOCK_NAME or (path.name.startswith(".") and path.name.endswith(".partial"))


def shareable_name(source: str) -> str:
    """What others may be told of what may be a path, whose folders may name people: its last part; else all of it."""
    return Path(source).name if Path(source).exists() else source


def check_folder_place(folder: Path) -> None:
    """Raise UserError, naming it, if something that is no folder stands at this path or above it."""
    for one in (folder, *folder.parents):
        if one.is_dir():
            return
        if os.path.lexists(one):
            raise UserError(f"{one}: is a file where a folder is needed; move it, or choose another folder")


def check_places(error: OSError) -> None:
    """Raise UserError, naming it, if the system failed since a file stands in a folder's place or the reverse."""
    if not isinstance(error, NotADirectoryError | FileExistsError | IsADirectoryError):
        return
    for path in (Path(name) for name in (error.filename2, error.filename) if name):
        check_folder_place(path.parent)
        if isinstance(error, IsADirectoryError) and path.is_dir():
            raise UserError(f"{path}: is a folder where a file is needed; move it, or choose another folder")
        if not isinstance(error, IsADirectoryError):
            check_folder_place(path)


# --- Files


@contextmanager
def atomic_write(path: Path, mode: int = 0o666) -> Iterator[BinaryIO]:
    """A stream whose content becomes the file, whole or not at all; makes the folder. mode: who may read it, from the
    first byte on, less what the umask takes.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = temp_path(path)
    partial.unlink(missing_ok=True)  # with whatever mode it had
    try:
        with open(partial, "wb", opener=lambda name, flags: os.open(name, flags, mode)) as stream:
            yield stream
            stream.flush()
            os.fsync(stream.fileno())
        partial.replace(path)
    except BaseException:
        partial.unlink(missing_ok=True)  # on a full disk, above all
        raise
    fsync(path.parent)


def write_text(path: Path, text: str, mode: int = 0o666) -> None:
    """Write a text file (UTF-8, lines end in \\n) whole or not at all."""
    with atomic_write(path, mode) as stream:
        stream.write(text.encode())


def write_json(path: Path, values: Any) -> None:
    """Write a JSON file whole or not at all."""
    write_text(path, json.dumps(values, indent=2, ensure_ascii=False) + "\n")


def read_json(path: Path) -> dict[str, Any]:
    """A JSON file of ours. Raises UserError, naming it, if it cannot be read."""
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise UserError(f"{path}: cannot be read ({error}); it was damaged, choose another name or folder") from None
    if not isinstance(values, dict):
        raise UserError(f"{path}: not a JSON object; it was damaged, choose another name or folder")
    return values


def append_line(path: Path, line: str) -> None:
    """Add one line, on disk when this returns. Killed meanwhile, it leaves a torn last line for readers to drop."""
    with path.open("a", encoding="utf-8") as stream:
        stream.write(line)
        stream.flush()
        os.fsync(stream.fileno())


def file_sha256(path: Path) -> str:
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


# --- Folders


def atomic_write_dir(folder: Path, fill: Callable[[Path], None]) -> Path:
    """Fill a folder and put it in place of the one that may be there, whole or not at all."""
    partial, before = temp_path(folder), _backup_path(folder)
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    try:
        fill(partial)
        for path in (*partial.rglob("*"), partial):
            if path.is_file():
                path.chmod(0o666 & ~_UMASK)  # safetensors writes for its owner alone
            fsync(path)
        recover_dir(folder)
        if folder.exists():
            folder.replace(before)
        partial.replace(folder)
    except BaseException:
        shutil.rmtree(partial, ignore_errors=True)
        recover_dir(folder)
        raise
    fsync(folder.parent)
    shutil.rmtree(before, ignore_errors=True)
    return folder


def recover_dir(folder: Path) -> None:
    """Put back what `atomic_write_dir` had put aside when it was killed, or clear it away."""
    if folder.exists():
        shutil.rmtree(_backup_path(folder), ignore_errors=True)
    elif _backup_path(folder).exists():
        _backup_path(folder).replace(folder)


def write_checksums(folder: Path) -> None:
    """Write down the checksums of all files in a folder, for `verify_checksums` to read."""
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    write_json(folder / CHECKSUMS_NAME, {path.relative_to(folder).as_posix(): file_sha256(path) for path in files})


def verify_checksums(folder: Path) -> str | None:
    """What is wrong with a sealed folder; None if it is as it was sealed."""
    try:
        sums = read_json(folder / CHECKSUMS_NAME)
    except UserError:
        return f"{CHECKSUMS_NAME} is missing or damaged"
    return find_checksum_mismatch(folder, sums) if sums else f"{CHECKSUMS_NAME} names no file"


def find_checksum_mismatch(folder: Path, sums: Mapping[str, str]) -> str | None:
    """What is wrong with the first file of a folder that has another checksum than this; None: all are as written."""
    for name, sha256 in sums.items():
        if Path(name).is_absolute() or ".." in Path(name).parts:
            return f"{name!r} is not in it"
        try:
            if not (folder / name).is_file():  # a pipe would be waited for
                return f"{name} is missing"
            if file_sha256(folder / name) != sha256:
                return f"{name} is not what was written"
        except (OSError, ValueError) as error:
            return f"{name} cannot be read ({error})"
    return None


def _backup_path(folder: Path) -> Path:
    return folder.with_name(f".{folder.name}.before")


def fsync(path: Path) -> None:
    """A file's content, or what a folder's entries are named, to disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
