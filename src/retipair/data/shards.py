"""Divide the pairs of a folder into the files of a data set, in constant memory."""

import hashlib
import os
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

from retipair.data.manifest import SPLITS, Split, files_of, to_line
from retipair.data.pair_stream import StreamedPair


@dataclass
class Shard:
    """The pairs of one file of a data set; all are in one split.

    number: the number of the file among those of its split, from 0.
    size: the total size of the images, bytes.
    """

    split: Split
    number: int
    pairs: list[StreamedPair] = field(default_factory=list)
    size: int = 0

    def key(self, folder: Path, version: str) -> str:
        """Return a hash of the manifest lines of the pairs, of the sizes and times of their files, and of `version`."""
        digest = hashlib.sha256(version.encode())
        for pair in self.pairs:
            digest.update(to_line(pair.record).encode())
            for name in files_of(pair.record):
                status = os.stat(f"{folder}{os.sep}{name}")  # noqa: PTH116 - a Path takes longer, for each of 3e6 files
                digest.update(f"{status.st_size} {status.st_mtime_ns}\n".encode())
        return digest.hexdigest()


def divide(folder: Path, pairs: Iterable[StreamedPair], max_bytes: int, max_pairs: int) -> Iterator[Shard]:
    """Yield the shards of a folder, each as soon as it is full; at the end, the last shard of each split.

    max_bytes, max_pairs: the highest total size of the images of a shard (if it has several pairs), and the highest
        number of its pairs.
    """
    current: dict[Split, Shard] = {}
    for pair in pairs:
        size = sum(os.path.getsize(f"{folder}{os.sep}{name}") for name in files_of(pair.record))  # noqa: PTH202
        shard = current.setdefault(pair.split, Shard(pair.split, 0))
        if shard.pairs and (shard.size + size > max_bytes or len(shard.pairs) == max_pairs):
            yield shard
            shard = current[pair.split] = Shard(pair.split, shard.number + 1)
        shard.pairs.append(pair)
        shard.size += size
    yield from (current[split] for split in SPLITS if split in current)
