"""Write and read lines of JSON, and merge JSON-lines files that several processes write.

Each process appends to a file of its own, called a shard. `merge_shards` merges the shards into one sorted file without
holding the lines in memory.
"""

import json
import re
from array import array
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np

from retipair.runtime.atomic_io import atomic_write
from retipair.runtime.errors import UserError

Key = Callable[[str, str], int | None]
"""A function that maps a line and its place, "FILE, line NUMBER", to a sort key, or to None to drop the line."""


def is_text(text: str) -> bool:
    """Return whether UTF-8 can encode `text`. It cannot encode lone surrogates, which text from JSON may contain."""
    return text.isascii() or text.encode(errors="replace").decode() == text


def to_json_line(values: dict[str, Any], optional: Sequence[str]) -> str:
    """Return a line of JSON, with a newline; `schema` is the first key, then the other keys in order.

    optional: the keys that are left out if their values are None.
    """
    values = {key: value for key, value in values.items() if key not in optional or value is not None}
    return json.dumps({"schema": values.pop("schema"), **values}, ensure_ascii=False, allow_nan=False) + "\n"


def parse_json_line(line: str, where: str, advice: str) -> Any:
    """Return the value in a line of JSON. Raises UserError, which begins with `where`, if the line is invalid.

    advice: what the user can do if the line is complete, that is, ends with a newline.
    """
    try:
        return json.loads(line)
    except (ValueError, RecursionError) as error:
        if not line.endswith("\n"):  # the command that wrote it was killed
            advice = "repeat the command that wrote this file, which repairs the line"
        raise UserError(f"{where}: not JSON ({error}); {advice}") from None


def shard_path(path: Path, rank: int) -> Path:
    """Return the path of the shard of a process, which is `path` itself for the main process (rank 0)."""
    return path if rank == 0 else path.with_name(f"{path.stem}.{rank}{path.suffix}")


def merge_shards(path: Path, key: Key) -> None:
    """Merge all shards of `path` into `path`, with the lines sorted by key, and delete the other shards.

    Of several lines with the same key, only the last is kept. An incomplete last line of a shard is dropped. If `path`
    is the only shard, and its lines are in order and all kept, the file is not rewritten.
    If `key` raises an exception, no file has been changed.
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
    """Yield (byte offset, text) of each line. Invalid UTF-8 becomes lone surrogates, which the caller must reject."""
    offset = 0
    with path.open("rb") as stream:
        for line in stream:
            yield offset, line.decode("utf-8", errors="surrogateescape")
            offset += len(line)


def _order(keys: np.ndarray) -> np.ndarray:
    """Return the indices that sort `keys`; of several equal keys, only the index of the last is returned."""
    order = np.argsort(keys, kind="stable")
    last = np.append(np.diff(keys[order]) != 0, True)[: len(keys)]
    return order[last]


def _write(path: Path, paths: Sequence[Path], positions: Sequence[tuple[int, int]]) -> None:
    """Write lines of the files `paths` to `path`, in the given order, and delete the other files.

    positions: for each line, its byte offset and the index of its file in `paths`.
    """
    with ExitStack() as stack:
        sources = [stack.enter_context(file.open("rb")) for file in paths]
        stream = stack.enter_context(atomic_write(path))
        for offset, number in positions:
            sources[number].seek(offset)
            stream.write(sources[number].readline())
    for shard in paths:
        if shard != path:
            shard.unlink()
