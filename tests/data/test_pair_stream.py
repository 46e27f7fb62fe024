"""A stream gives the pairs and splits of `read_dataset`, one at a time."""

import random
from pathlib import Path

import pytest
from msgspec.structs import replace

from conftest import prepared_record, write_prepared
from judging import generated_record, write_generated
from refusals import raises_file
from retipair.data.dataset import read_dataset
from retipair.data.manifest import MANIFEST_NAME, Record, write_manifest
from retipair.data.pair_stream import open_stream
from retipair.runtime.errors import MissingError, UserError


def write_listed(folder: Path, records: list[Record]) -> Path:
    """A folder whose files exist, but are empty."""
    for record in records:
        for name in (record.cf, record.fa):
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            (folder / name).touch()
    write_manifest(folder, records)
    return folder


def assert_same(folder: Path) -> None:
    expected = [(record.id, record.split) for record in read_dataset(folder)]
    assert [(pair.record.id, pair.split) for pair in open_stream(folder)] == expected


def test_prepared_pairs_keep_their_splits(prepared: Path) -> None:
    assert_same(prepared)


@pytest.mark.parametrize("amount", [1, 2, 3, 7, 100])
def test_generated_pairs_get_the_splits_of_read_dataset(tmp_path: Path, amount: int) -> None:
    assert_same(write_listed(tmp_path, [generated_record(index) for index in range(1, amount + 1)]))


def test_pairs_of_one_source_get_one_split(tmp_path: Path) -> None:
    rng = random.Random(0)
    sources = [f"eye{rng.randrange(40)}" if rng.random() < 0.7 else None for _ in range(200)]
    records: list[Record] = [
        replace(generated_record(index), mode="from_data" if source else "noise", source_id=source, source_eye=source)
        for index, source in enumerate(sources, start=1)
    ]
    assert_same(write_listed(tmp_path, records))
    # Sources that the same manifest lists as prepared pairs give their splits.
    prepared: list[Record] = [prepared_record(f"eye{n}", ("train", "val", "test")[n % 3]) for n in range(30)]
    assert_same(write_listed(tmp_path, [*records[:100], *prepared, *records[100:]]))


def test_rejected_and_deleted_pairs_are_left_out(tmp_path: Path) -> None:
    folder = write_listed(tmp_path, [generated_record(index) for index in range(1, 31)])
    (folder / "rejected.txt").write_text("3\n17\n")
    for view in ("cf", "fa"):
        (folder / "5" / f"{view}.png").unlink()
    assert_same(folder)
    assert not {"3", "17", "5"} & {pair.record.id for pair in open_stream(folder)}


def test_what_read_dataset_refuses_is_refused(tmp_path: Path) -> None:
    folder = write_listed(tmp_path, [generated_record(1), generated_record(2), generated_record(1)])
    with raises_file(folder / MANIFEST_NAME, line=3):
        open_stream(folder)
    write_manifest(folder, [generated_record(1)])
    (folder / "rejected.txt").write_text("1\n9\n")
    with raises_file(folder / "rejected.txt", line=2):
        open_stream(folder)
    write_manifest(
        folder, [replace(prepared_record(name, split), eye="one") for name, split in (("a", "train"), ("b", "val"))]
    )
    (folder / "rejected.txt").unlink()
    with raises_file(folder / MANIFEST_NAME):
        open_stream(folder)
    write_manifest(folder, [])
    with raises_file(folder, MissingError):
        open_stream(folder)


def test_an_unreadable_line_is_named(tmp_path: Path) -> None:
    write_generated(tmp_path, 2)
    with (tmp_path / MANIFEST_NAME).open("a") as stream:
        stream.write('{"schema": "other"}\n')
    with pytest.raises(UserError, match="line 3"):
        open_stream(tmp_path)


def test_a_mixed_folder(tmp_path: Path) -> None:
    write_prepared(tmp_path, ["train", "val"])
    assert_same(tmp_path)
