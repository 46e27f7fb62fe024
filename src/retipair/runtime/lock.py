"""One owner a folder: while a command works in it, a second one is refused and told by whom."""

import errno
import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from filelock import FileLock, Timeout

from retipair.runtime.atomic_io import LOCK_NAME, check_folder_place
from retipair.runtime.console import console
from retipair.runtime.errors import UserError

_NO_LOCKS = {errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP}


@contextmanager
def directory_lock(folder: Path, first: bool = True, wait: bool = False) -> Iterator[None]:
    """Inside, the folder is this process's alone; made if it is missing, and gone again if nothing is put into it.

    first: whether this is the first of the processes that share a command; it takes the folder for all of them.
    The operating system holds the lock, and lets go of it when the process ends in whatever way: none is ever stale.
    Raises UserError, with process and host, where another has it; or, told to, waits for that.
    """
    if not first:
        yield
        return
    check_folder_place(folder)
    made = [one for one in (folder, *folder.parents) if not one.exists()]
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / LOCK_NAME
    lock = FileLock(path, fallback_to_soft=False)
    try:
        _acquire(lock, folder, wait)
        path.write_text(f"process {os.getpid()} on {socket.gethostname()}", encoding="utf-8")
    except Timeout:
        raise UserError(f"{folder}: {_owner(path)} is at work in it; wait for that, or choose another name") from None
    except OSError as error:
        if error.errno not in _NO_LOCKS:
            raise
        console.print(f"warning: {folder}: this file system has no locks; start no second command on this folder")
    try:
        yield
    finally:
        path.unlink(missing_ok=True)  # before it is let go: another would take it while it is removed
        lock.release()
        for one in made:
            with suppress(OSError):  # somebody has put something into it
                one.rmdir()


def _acquire(lock: FileLock, folder: Path, wait: bool) -> None:
    try:
        lock.acquire(blocking=False)
    except Timeout:
        if not wait:
            raise
        console.print(f"Waiting for {_owner(folder / LOCK_NAME)}, which is at work in {folder}")
        lock.acquire()


def _owner(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8") or "another process"
    except OSError:  # ended just now
        return "another process"
