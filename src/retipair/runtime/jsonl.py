"""Files of JSON lines that grow while work goes on, and that several processes may write at once.

Each process appends to a part of its own; `merge_shards` makes one file of them, without holding their lines.
"""

import re
from array import array
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from pathlib import Path

import numpy as np

from retipair.runtime.atomic_io import atomic_write

Key = Callable[[str, str], int | None]
"""(line, where it is) -> its place among the others; None: it is dropped."""


def is_text(text: str) -> bool:
    """Whether it can be written: JSON may name halves of characters that no file can hold."""
    return text.isascii() or text.encode(errors="replace").decode() == text


def shard_path(path: Path, rank: int) -> Path:
    """The file that process `rank` appends to: the first writes the file itself."""
    return path if rank == 0 else path.with_name(f"{path.stem}.{rank}{path.suffix}")


def merge_shards(path: Path, key: Key) -> None:
    """Make one file of all parts, lines by their keys, the last of those with one key; a torn last line is dropped.

    A file that is in order already is left as it is. What `key` raises comes through, before anything is changed.
    """
    part = re.compile(rf"{re.escape(path.stem)}\.\d+{re.escape(path.suffix)}")
    parts = sorted(one for one in path.parent.glob(f"{path.stem}.*{path.suffix}") if part.fullmatch(one.name))
    paths = [one for one in (path, *parts) if one.is_file()]
    keys, places, complete = array("q"), array("q"), True
    for number, one in enumerate(paths):
        for count, (offset, text) in enumerate(_lines(one), start=1):
            place = key(text, f"{one}, line {count}") if text.endswith("\n") else None
            if place is None:
                complete = False
            else:
                keys.append(place)
                places.append(offset * len(paths) + number)
    order = _order(np.array(keys))
    if paths not in ([], [path]) or not complete or not np.array_equal(order, np.arange(len(keys))):
        _write(path, paths, [divmod(places[at], len(paths)) for at in order])


def _lines(path: Path) -> Iterator[tuple[int, str]]:
    """Every line and where it begins, in bytes; what is not UTF-8 is refused by whoever reads the line."""
    offset = 0
    with path.open("rb") as stream:
        for line in stream:
            yield offset, line.decode("utf-8", errors="surrogateescape")
            offset += len(line)


def _order(keys: np.ndarray) -> np.ndarray:
    """Places of the keys from the least to the greatest, of equal ones the last alone."""
    order = np.argsort(keys, kind="stable")
    last = np.append(np.diff(keys[order]) != 0, True)[: len(keys)]
    return order[last]


def _write(path: Path, paths: Sequence[Path], places: Sequence[tuple[int, int]]) -> None:
    """places: (offset, which of `paths`) of each line."""
    with ExitStack() as stack:
        sources = [stack.enter_context(one.open("rb")) for one in paths]
        stream = stack.enter_context(atomic_write(path))
        for offset, number in places:
            sources[number].seek(offset)
            stream.write(sources[number].readline())
    for part in paths:
        if part != path:
            part.unlink()
