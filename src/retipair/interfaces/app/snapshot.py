"""Notice that a folder of pairs was prepared or generated again since its pairs were scored."""

import hashlib
from dataclasses import dataclass
from pathlib import Path

from retipair.data.manifest import MANIFEST_NAME
from retipair.data.rejected import REJECTED_NAME


@dataclass(frozen=True)
class Snapshot:
    """The manifest and `rejected.txt` of a folder, as they were when its pairs were read.

    size: the number of bytes of the manifest.
    """

    folder: Path
    size: int
    sha256: str

    @property
    def is_outdated(self) -> bool:
        """Whether one of the files has changed. Pairs that `generate` has added since do not count."""
        return _sha256(self.folder, self.size) != self.sha256


def take_snapshot(folder: Path) -> Snapshot:
    size = len(_content(folder / MANIFEST_NAME))
    return Snapshot(folder, size, _sha256(folder, size))


def _sha256(folder: Path, size: int) -> str:
    """Return a hash of the first `size` bytes of the manifest and of `rejected.txt`."""
    manifest, rejected = (_content(folder / name) for name in (MANIFEST_NAME, REJECTED_NAME))
    return hashlib.sha256(manifest[:size] + b"\0" + rejected).hexdigest()


def _content(path: Path) -> bytes:
    """Return the content of a file; nothing if it cannot be read. The error is shown when the folder is opened."""
    try:
        return path.read_bytes()
    except OSError:
        return b""
