"""One reader for prepared and generated folders; what is held back for testing stays held back."""

from pathlib import Path

import numpy as np
import pytest
from msgspec.structs import replace

from conftest import VIEW, prepared_record, write_prepared
from eyes import draw_pair
from refusals import raises_file
from retipair.data.dataset import content_sha256, load_views, read_dataset
from retipair.data.manifest import GeneratedPair, read_manifest, write_manifest
from retipair.data.pair import save_image
from retipair.data.selection import filter_split
from retipair.runtime.errors import MissingError


def write_generated(folder: Path, sources: list[str | None]) -> Path:
    """A generated folder with a pair for each of `sources`: whose pair it varies, or None for one from noise."""
    records = []
    for index, source in enumerate(sources, start=1):
        cf, fa = draw_pair(index, VIEW)
        for view, image in (("cf", cf), ("fa", fa)):
            save_image(folder / str(index) / f"{view}.png", image)
        record = GeneratedPair(
            id=str(index),
            index=index,
            seed=0,
            attempt=0,
            mode="noise" if source is None else "from_data",
            source_id=None if source is None else f"{source}, visit {index}",
            source_eye=source,
            strength=None if source is None else 0.6,
            prompt=f"prompt {index}",
            cf=f"{index}/cf.png",
            fa=f"{index}/fa.png",
            size=VIEW,
            base="b",
            adapter_sha256="a",
            settings_sha256="s",
            fa_chroma=0.0,
            consistency=0.5,
        )
        records.append(record)
    write_manifest(folder, records)
    return folder


def test_a_prepared_folder_keeps_its_split_its_order_and_its_captions(tmp_path: Path) -> None:
    splits = ["train", "val", "test", "train"]
    folder = write_prepared(tmp_path, splits, captions={1: "an early angiogram"})
    entries = read_dataset(folder)
    assert [entry.split for entry in entries] == splits
    assert [entry.id for entry in entries] == ["eye0", "eye1", "eye2", "eye3"]
    assert [entry.caption for entry in entries] == [None, "an early angiogram", None, None]
    assert [entry.id for entry in filter_split(entries, "train", folder)] == ["eye0", "eye3"]
    assert [entry.id for entry in filter_split(entries, "test", folder)] == ["eye2"]


def test_views_are_those_of_the_manifest_at_the_size_asked_for(tmp_path: Path) -> None:
    entry = read_dataset(write_prepared(tmp_path, ["train"]))[0]
    for seen, drawn in zip(load_views(entry, VIEW), draw_pair(0, VIEW), strict=True):
        assert np.array_equal(seen, drawn)
    cf, fa = load_views(entry, VIEW // 2)
    assert cf.shape == (VIEW // 2, VIEW // 2, 3)
    assert fa.shape == (VIEW // 2, VIEW // 2)
    blocks = draw_pair(0, VIEW)[1].reshape(VIEW // 2, 2, VIEW // 2, 2).mean((1, 3))
    assert np.abs(fa - blocks).mean() < 6  # antialiased, in place


def test_all_variations_of_one_eye_are_on_one_side(tmp_path: Path) -> None:
    sources = [f"eye{number % 5}" for number in range(20)]
    entries = read_dataset(write_generated(tmp_path, list(sources)))
    sides: dict[str, set[str]] = {}
    for entry, source in zip(entries, sources, strict=True):
        sides.setdefault(source, set()).add(entry.split)
    assert all(len(side) == 1 for side in sides.values())
    assert sorted(side for (side,) in sides.values()) == ["train"] * 4 + ["val"]
    assert [entry.caption for entry in entries[:2]] == ["prompt 1", "prompt 2"]


def test_eyes_from_noise_are_eyes_of_their_own(tmp_path: Path) -> None:
    entries = read_dataset(write_generated(tmp_path, [None] * 10))
    assert sorted(entry.split for entry in entries) == ["train"] * 8 + ["val"] * 2


def test_a_generated_folder_that_varies_one_eye_only_can_be_judged_but_not_validated_on(tmp_path: Path) -> None:
    folder = write_generated(tmp_path, ["eye0"] * 4)
    assert {entry.split for entry in read_dataset(folder)} == {"train"}
    with raises_file(folder, MissingError):
        filter_split(read_dataset(folder), "val", folder)


def test_an_empty_side_is_refused_by_name(tmp_path: Path) -> None:
    folder = write_prepared(tmp_path, ["train", "train"])
    with raises_file(folder, MissingError):
        filter_split(read_dataset(folder), "val", folder)


def test_an_empty_manifest_is_refused(tmp_path: Path) -> None:
    write_manifest(tmp_path, [])
    with raises_file(tmp_path, MissingError):
        read_dataset(tmp_path)


def test_the_fingerprint_follows_everything_in_the_pairs_and_nothing_else(tmp_path: Path) -> None:
    folder = write_prepared(tmp_path / "a", ["train", "val"])
    fingerprint = content_sha256(read_dataset(folder))
    twin = write_prepared(tmp_path / "b", ["train", "val"])
    assert content_sha256(read_dataset(twin)) == fingerprint  # wherever it lies

    def changed(**values: object) -> str:
        first, *others = read_manifest(twin)
        write_manifest(twin, [replace(first, **values), *others])  # type: ignore[arg-type]
        now = content_sha256(read_dataset(twin))
        write_manifest(twin, [first, *others])
        return now

    different = [changed(caption="new"), changed(split="test"), changed(id="other"), changed(fa="fa/eye1.png")]
    assert len({fingerprint, *different}) == 5
    assert changed(consistency=0.9) == fingerprint  # a figure about the pair, not the pair
    save_image(twin / "fa" / "eye1.png", np.zeros((VIEW, VIEW), np.uint8))
    assert content_sha256(read_dataset(twin)) != fingerprint


def test_a_missing_image_is_named(tmp_path: Path) -> None:
    folder = write_prepared(tmp_path, ["train", "val"])
    (folder / "fa" / "eye1.png").unlink()
    with raises_file(folder / "fa/eye1.png", MissingError):
        content_sha256(read_dataset(folder))


def test_two_kinds_of_records_read_alike(tmp_path: Path) -> None:
    folder = write_generated(tmp_path, ["a", "b", "c"])
    prepared = [replace(prepared_record("1", "test"), cf="1/cf.png", fa="1/fa.png", mask="1/fa.png")]
    write_manifest(folder, [*read_manifest(folder), *prepared])
    entries = read_dataset(folder)
    assert [entry.split for entry in entries if entry.id == "1"][-1] == "test"
    assert np.array_equal(load_views(entries[0], VIEW)[0], load_views(entries[-1], VIEW)[0])


@pytest.mark.parametrize("side", ["train", "val", "test"])
@pytest.mark.parametrize("first", ["prepared", "generated"])
def test_variations_are_on_the_side_of_their_eye_where_the_manifest_has_it(
    tmp_path: Path, side: str, first: str
) -> None:
    folder = write_generated(tmp_path, [f"eye{number % 5}" for number in range(10)] + ["other"] * 4)
    prepared = [
        replace(prepared_record(f"eye{number}", side), cf="1/cf.png", fa="1/fa.png", mask="1/fa.png")
        for number in range(5)
    ]
    generated = [*read_manifest(folder)]
    write_manifest(folder, [*prepared, *generated] if first == "prepared" else [*generated, *prepared])
    sides = {entry.id: entry.split for entry in read_dataset(folder) if not entry.id.startswith("eye")}
    assert [sides[f"{index}"] for index in range(1, 11)] == [side] * 10
    assert len({sides[f"{index}"] for index in range(11, 15)}) == 1


@pytest.mark.parametrize("who", ["eye", "patient"])
def test_a_manifest_that_puts_one_eye_on_two_sides_is_refused(tmp_path: Path, who: str) -> None:
    folder = write_prepared(tmp_path, ["train", "train", "val"])
    write_manifest(folder, [replace(record, **{who: "one"}) for record in read_manifest(folder)])
    with raises_file(folder / "manifest.jsonl"):
        read_dataset(folder)


def test_a_patient_and_an_eye_of_one_name_may_be_on_two_sides(tmp_path: Path) -> None:
    folder = write_prepared(tmp_path, ["train", "val"])
    first, second = read_manifest(folder)
    write_manifest(folder, [replace(first, patient="1"), replace(second, eye="1")])
    assert [entry.split for entry in read_dataset(folder)] == ["train", "val"]
