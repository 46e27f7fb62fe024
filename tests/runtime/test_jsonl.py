"""Lines that several processes wrote become one file, in order; what was cut off is dropped, what is damaged named."""

import re
from pathlib import Path

import pytest

from retipair.runtime.atomic_io import append_line
from retipair.runtime.errors import UserError
from retipair.runtime.jsonl import merge_shards, shard_path


def number(line: str, where: str) -> int | None:
    """Lines here are "3 c", and "-" where there is nothing to keep."""
    if line.startswith("-"):
        return None
    if not re.match(r"\d+ ", line):
        raise UserError(f"{where}: {line!r}")
    return int(line.split()[0])


def written(path: Path) -> list[str]:
    return path.read_text().splitlines()


def test_parts_become_one_file_in_order(tmp_path: Path) -> None:
    path = tmp_path / "all.jsonl"
    for at, (rank, line) in enumerate([(0, "1 a"), (0, "4 d"), (1, "2 b"), (11, "5 é"), (2, "3 c")]):
        append_line(shard_path(path, rank), line + "\n")
        assert at or shard_path(path, 0) == path
    merge_shards(path, number)
    assert written(path) == ["1 a", "2 b", "3 c", "4 d", "5 é"]
    assert list(tmp_path.iterdir()) == [path]


def test_of_lines_with_one_key_the_last_stays(tmp_path: Path) -> None:
    path = tmp_path / "all.jsonl"
    for line in ("2 old", "1 a", "2 new"):
        append_line(path, line + "\n")
    merge_shards(path, number)
    assert written(path) == ["1 a", "2 new"]


@pytest.mark.parametrize("torn", ["3 half of a li", "3"])
def test_a_torn_last_line_is_dropped_and_the_next_stands_alone(torn: str, tmp_path: Path) -> None:
    path = tmp_path / "all.jsonl"
    path.write_text(f"1 a\n2 b\n{torn}")
    merge_shards(path, number)
    append_line(path, "3 c\n")
    assert written(path) == ["1 a", "2 b", "3 c"]


def test_what_is_not_wanted_is_dropped(tmp_path: Path) -> None:
    path = tmp_path / "all.jsonl"
    path.write_text("-\n1 a\n-\n")
    merge_shards(path, number)
    assert written(path) == ["1 a"]


def test_what_is_in_order_is_left_alone(tmp_path: Path) -> None:
    path = tmp_path / "all.jsonl"
    path.write_text("1 a\n2 b\n")
    before = path.stat().st_mtime_ns, path.stat().st_ino
    merge_shards(path, number)
    assert (path.stat().st_mtime_ns, path.stat().st_ino) == before


def test_a_file_that_only_looks_like_a_part_is_none(tmp_path: Path) -> None:
    path, other = tmp_path / "all.jsonl", tmp_path / "all.backup.jsonl"
    path.write_text("2 b\n1 a\n")
    other.write_text("1 old\n")
    merge_shards(path, number)
    assert written(path) == ["1 a", "2 b"]
    assert written(other) == ["1 old"]


def test_a_damaged_line_is_named_and_nothing_is_changed(tmp_path: Path) -> None:
    path = tmp_path / "all.jsonl"
    path.write_text("2 b\n1 a\n")
    append_line(shard_path(path, 1), "torn in the middle\n")
    append_line(shard_path(path, 1), "3 c\n")
    with pytest.raises(UserError, match=r"all\.1\.jsonl, line 1: 'torn"):
        merge_shards(path, number)
    assert written(path) == ["2 b", "1 a"]
    assert written(shard_path(path, 1)) == ["torn in the middle", "3 c"]


def test_nothing_is_made_of_nothing(tmp_path: Path) -> None:
    merge_shards(tmp_path / "all.jsonl", number)
    assert list(tmp_path.iterdir()) == []
