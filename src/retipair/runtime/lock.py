"""Lock a folder, so that two commands never write to it at the same time."""

import errno
import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from filelock import FileLock, Timeout

from retipair.runtime.atomic_io import LOCK_NAME, check_folder_place
from retipair.runtime.console import console
from retipair.runtime.errors import OccupiedError

_LOCKS_UNSUPPORTED = {errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP}


@contextmanager
def directory_lock(folder: Path, is_main_process: bool = True, wait: bool = False) -> Iterator[None]:
    """Lock a folder inside the context, so that no other command can lock it.

    If the folder does not exist, it is created, and is removed at the end if it is still empty. The operating system
    releases the lock when the process ends, even after a kill.
    is_main_process: whether this is the main process of the command. Only the main process locks the folder; the lock
    also covers the other processes of the command.
    wait: whether to wait if another command holds the lock. If False, UserError is raised, naming the process and host.
    """
    if not is_main_process:
        yield
        return
    check_folder_place(folder)
    created = [path for path in (folder, *folder.parents) if not path.exists()]
    folder.mkdir(parents=True, exist_ok=True)
    lock_file = folder / LOCK_NAME
    lock = FileLock(lock_file, fallback_to_soft=False)
    try:
        _acquire(lock, folder, wait)
        lock_file.write_text(f"process {os.getpid()} on {socket.gethostname()}", encoding="utf-8")
    except Timeout:
        raise OccupiedError(
            folder, f"in use by {_owner(lock_file)}; wait for it to end, or choose another name"
        ) from None
    except OSError as error:
        if error.errno not in _LOCKS_UNSUPPORTED:
            raise
        console.print(
            f"warning: {folder}: this file system does not support locks; do not start a second command on this folder"
        )
    try:
        yield
    finally:
        # The file is deleted before the lock is released: otherwise, another process could lock the deleted file.
        lock_file.unlink(missing_ok=True)
        lock.release()
        for path in created:
            with suppress(OSError):  # not empty
                path.rmdir()


def _acquire(lock: FileLock, folder: Path, wait: bool) -> None:
    try:
        lock.acquire(blocking=False)
    except Timeout:
        if not wait:
            raise
        console.print(f"Waiting for {_owner(folder / LOCK_NAME)}, which is using {folder}")
        lock.acquire()


def _owner(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8") or "another process"
    except OSError:  # the other process has just ended
        return "another process"
