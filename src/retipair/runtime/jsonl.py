"""JSON-lines files to which several processes append during their work.

Each process appends to its own shard; `merge_shards` merges them without holding the lines in memory.
"""

import re
from array import array
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from pathlib import Path

import numpy as np

from retipair.runtime.atomic_io import atomic_write

Key = Callable[[str, str], int | None]
"""(line, "FILE, line NUMBER") -> sort key, or None to drop the line."""


def is_text(text: str) -> bool:
    """Return True if `text` can be encoded: JSON may contain lone surrogates, which UTF-8 cannot represent."""
    return text.isascii() or text.encode(errors="replace").decode() == text


def shard_path(path: Path, rank: int) -> Path:
    """Return the file that process `rank` appends to: `path` itself for the main process."""
    return path if rank == 0 else path.with_name(f"{path.stem}.{rank}{path.suffix}")


def merge_shards(path: Path, key: Key) -> None:
    """Merge all shards into `path`, sorted by key.

    Of lines with equal keys, the last is kept. An incomplete last line of a file is dropped. A single file that is
    already sorted is not rewritten. Exceptions of `key` are raised before any file is changed.
    """
    pattern = re.compile(rf"{re.escape(path.stem)}\.\d+{re.escape(path.suffix)}")
    shards = sorted(file for file in path.parent.glob(f"{path.stem}.*{path.suffix}") if pattern.fullmatch(file.name))
    paths = [file for file in (path, *shards) if file.is_file()]
    keys, positions, complete = array("q"), array("q"), True
    for number, file in enumerate(paths):
        for count, (offset, text) in enumerate(_lines(file), start=1):
            line_key = key(text, f"{file}, line {count}") if text.endswith("\n") else None
            if line_key is None:
                complete = False
            else:
                keys.append(line_key)
                positions.append(offset * len(paths) + number)
    order = _order(np.array(keys))
    if paths not in ([], [path]) or not complete or not np.array_equal(order, np.arange(len(keys))):
        _write(path, paths, [divmod(positions[i], len(paths)) for i in order])


def _lines(path: Path) -> Iterator[tuple[int, str]]:
    """Yield (byte offset, line) of every line; invalid UTF-8 becomes surrogates, which the caller must reject."""
    offset = 0
    with path.open("rb") as stream:
        for line in stream:
            yield offset, line.decode("utf-8", errors="surrogateescape")
            offset += len(line)


def _order(keys: np.ndarray) -> np.ndarray:
    """Return the indices that sort `keys`, with only the last of equal keys."""
    order = np.argsort(keys, kind="stable")
    last = np.append(np.diff(keys[order]) != 0, True)[: len(keys)]
    return order[last]


def _write(path: Path, paths: Sequence[Path], positions: Sequence[tuple[int, int]]) -> None:
    """Write the lines at the positions (offset, index into `paths`) to `path` and delete the shards."""
    with ExitStack() as stack:
        sources = [stack.enter_context(file.open("rb")) for file in paths]
        stream = stack.enter_context(atomic_write(path))
        for offset, number in positions:
            sources[number].seek(offset)
            stream.write(sources[number].readline())
    for shard in paths:
        if shard != path:
            shard.unlink()
