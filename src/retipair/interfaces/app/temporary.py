"""The temporary folder of a page, with uploaded photographs and drawn images."""

import fcntl
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from tempfile import TemporaryDirectory, gettempdir

PREFIX = "retipair-app-"


@contextmanager
def temporary_folder() -> Iterator[Path]:
    """Yield a new folder, which is deleted at the end. First delete the folders that killed commands have left.

    The folder is locked as long as it is used. The operating system releases the lock when the process ends, even
    after a kill.
    """
    for folder in Path(gettempdir()).glob(f"{PREFIX}*"):
        with suppress(OSError):  # in use, of another user, or on a file system without locks
            _delete_unused(folder)
    with TemporaryDirectory(prefix=PREFIX) as name, _opened(Path(name)) as descriptor:
        with suppress(OSError):  # no locks here
            fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield Path(name)


def _delete_unused(folder: Path) -> None:
    """Delete a folder of this user. Raises OSError if it is locked.

    An empty folder is kept: another command may have just made it, and not locked it yet.
    """
    with _opened(folder) as descriptor:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        if os.fstat(descriptor).st_uid == os.getuid() and any(folder.iterdir()):
            shutil.rmtree(folder)


@contextmanager
def _opened(folder: Path) -> Iterator[int]:
    """Yield a descriptor of a folder, which must not be a link."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
    try:
        yield descriptor
    finally:
        os.close(descriptor)
