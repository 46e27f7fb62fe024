"""Write files and folders atomically and durably.

After a kill or a power cut, either the complete old version or the complete new version is on disk. A folder may have
to be restored by `recover_dir` first.
"""

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
_BACKUP_SUFFIX = ".before"


def temp_path(path: Path) -> Path:
    """Return the path under which a file or folder is written before it is renamed to `path`.

    Writers delete anything that an interrupted write has left there.
    """
    return path.with_name(f".{path.name.removeprefix('.')}.partial")


def is_leftover(path: Path) -> bool:
    """Return whether a path is a lock file or a temporary path, so that it does not count as content of its folder."""
    return path.name == LOCK_NAME or (path.name.startswith(".") and path.name.endswith(".partial"))


def shareable_name(source: str) -> str:
    """Return only the last part of a path, because the names of its folders may contain patient names.

    An absolute path may be that of another machine. Relative text that is not an existing path, such as the name of a
    model, is returned unchanged.
    """
    path = Path(source)
    return path.name if path.is_absolute() or path.exists() else source


def last_parts(path: str) -> str:
    """Return the last two parts of a path, because the names of its other folders may contain patient names."""
    return "/".join(Path(path).parts[-2:])


def check_folder_place(folder: Path) -> None:
    """Raise UserError if a folder cannot exist at this path, because the path or one of its parents is a file."""
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
    """Yield a binary stream to a temporary file, which replaces `path` at the end, or is deleted on an error.

    The parent folder is created if it does not exist.
    mode: the permissions of the file, limited by the umask.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = temp_path(path)
    partial.unlink(missing_ok=True)  # a file that already exists would keep its old permissions
    try:
        with open(partial, "wb", opener=lambda name, flags: os.open(name, flags, mode)) as stream:
            yield stream
            stream.flush()
            os.fsync(stream.fileno())
        partial.replace(path)
    except BaseException:
        partial.unlink(missing_ok=True)  # frees the space, in case the disk is full
        raise
    fsync(path.parent)


def atomic_write_by(write: Callable[[Path], None], path: Path) -> None:
    """Call `write` with the path of a temporary file, which then replaces `path`. An error leaves `path` unchanged.

    The parent folder is created if it does not exist.
    """
    with atomic_write(path):
        partial = temp_path(path)
        mode = partial.stat().st_mode & 0o666
        write(partial)
        partial.chmod(mode)  # safetensors creates files that only the owner can read
        fsync(partial)


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
    """Append a line, which ends in a newline, to a text file and flush it to disk.

    After a kill, the last line of the file may be incomplete; readers must drop it.
    """
    with path.open("a", encoding="utf-8") as stream:
        stream.write(line)
        stream.flush()
        os.fsync(stream.fileno())


def file_sha256(path: Path) -> str:
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


# --- Folders


def atomic_write_dir(folder: Path, fill: Callable[[Path], None]) -> Path:
    """Call `fill` with the path of an empty temporary folder, then replace `folder` by the result; return `folder`.

    An error leaves the old folder in place. After a kill, `recover_dir` restores it.
    """
    partial, backup = temp_path(folder), _backup_path(folder)
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    try:
        fill(partial)
        # safetensors creates files that only the owner can read. Give all files the permissions that the umask allows.
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
    """Clean up after an interrupted `atomic_write_dir`: restore the old version of the folder from its backup.

    If the folder exists, the backup is not needed and is deleted.
    """
    if folder.exists():
        shutil.rmtree(_backup_path(folder), ignore_errors=True)
    elif _backup_path(folder).exists():
        _backup_path(folder).replace(folder)


def is_leftover_dir(path: Path) -> bool:
    """Return whether a path has a name under which an interrupted `atomic_write_dir` leaves a folder.

    That is the name of the unfinished new version, or of the backup of the old version.
    """
    return path.name.startswith(".") and path.name.endswith((".partial", _BACKUP_SUFFIX))


def write_checksums(folder: Path) -> None:
    """Write the SHA-256 of each file in a folder to `checksums.json` in that folder."""
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    write_json(folder / CHECKSUMS_NAME, {path.relative_to(folder).as_posix(): file_sha256(path) for path in files})


def verify_checksums(folder: Path) -> str | None:
    """Return None if all files listed in checksums.json match their checksums, else a text that states the problem."""
    try:
        sums = read_json(folder / CHECKSUMS_NAME)
    except UserError:
        return f"{CHECKSUMS_NAME} is missing or damaged"
    return find_checksum_mismatch(folder, sums) if sums else f"{CHECKSUMS_NAME} lists no file"


def find_checksum_mismatch(folder: Path, sums: Mapping[str, str]) -> str | None:
    """Return None if all files match their SHA-256, else a text that names the first file that does not match, and why.

    sums: the SHA-256 of each file, by its path relative to `folder`.
    """
    for name, sha256 in sums.items():
        if Path(name).is_absolute() or ".." in Path(name).parts:
            return f"{name!r} is not in the folder"
        try:
            if not (folder / name).is_file():  # for example a named pipe, which would block the read
                return f"{name} is missing"
            if file_sha256(folder / name) != sha256:
                return f"{name} does not match its checksum"
        except (OSError, ValueError) as error:
            return f"{name} cannot be read ({error})"
    return None


def _backup_path(folder: Path) -> Path:
    return folder.with_name(f".{folder.name}{_BACKUP_SUFFIX}")


def fsync(path: Path) -> None:
    """Flush a file's content, or a folder's list of files, from the cache of the operating system to disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
