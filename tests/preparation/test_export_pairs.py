"""`export pairs` writes data sets that `datasets` and `webdataset` read, and `prepare` reads them back."""

import io
import json
import shutil
import subprocess
import sys
import tarfile
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from msgspec.structs import replace
from PIL import Image

from compare import contents
from conftest import VIEW, prepared_record, write_prepared
from eyes import draw_pair
from judging import generated_record, write_generated
from refusals import raises_file, raises_setting
from retipair.config import ExportPairsConfig, PrepareConfig
from retipair.data.dataset import load_pair, read_dataset
from retipair.data.manifest import read_manifest, write_manifest
from retipair.data.pair import is_plain_png, save_image, synthetic_mark_of
from retipair.data.pair_facts import count_pairs
from retipair.data.pair_stream import open_stream
from retipair.preparation import export_pairs as exporting
from retipair.preparation.export_pairs import STATE_NAME, export_pairs
from retipair.preparation.prepare import prepare_pairs
from retipair.runtime.errors import DamagedError, MissingError, OccupiedError, UserError

pytest.importorskip("pyarrow")
MARK = {"Synthetic": "yes: generated from noise", "Software": "retipair", "Seed": "0, pair 1"}


def export(pairs: Path, out: Path, to: Any = "hf", workers: int = 1) -> Path:
    return export_pairs(ExportPairsConfig(pairs=pairs, out=out, to=to, workers=workers))


def bring_back(data: Path, out: Path) -> Path:
    return prepare_pairs(PrepareConfig(raw=data, out=out))


def load(out: Path, cache: Path) -> Any:
    datasets = pytest.importorskip("datasets")
    datasets.disable_progress_bars()
    return datasets.load_dataset(str(out), cache_dir=str(cache))


@pytest.fixture
def generated(tmp_path: Path) -> Path:
    """Pairs with synthetic marks; the first was varied from a source, whose name its PNGs tell."""
    folder = tmp_path / "generated"
    records = [generated_record(index) for index in range(1, 7)]
    records[0] = replace(records[0], mode="from_data", source_id="eye7", source_eye="patient7", strength=0.5)
    for record in records:
        more = {"Source": "eye7"} if record.source_id else {}
        for path, view in zip((record.cf, record.fa), draw_pair(record.index, record.size), strict=True):
            save_image(folder / path, view, MARK | more)
    write_manifest(folder, records)
    return folder


def pixels(folder: Path) -> dict[str, tuple[Any, ...]]:
    loaded = {record.id: (record, load_pair(record)) for record in read_dataset(folder)}
    return {id: (record.split, record.group, pair) for id, (record, pair) in loaded.items()}


def assert_equal_pairs(first: Path, second: Path) -> None:
    before, after = pixels(first), pixels(second)
    assert list(before) == list(after)
    for id, (split, group, pair) in before.items():
        assert after[id][:2] == (split, group)
        for view in ("cf", "fa", "mask"):
            np.testing.assert_array_equal(getattr(after[id][2], view), getattr(pair, view))


# --- What the libraries read


def test_datasets_reads_typed_columns_and_equal_pixels(prepared: Path, tmp_path: Path) -> None:
    datasets = pytest.importorskip("datasets")
    read = load(export(prepared, tmp_path / "out"), tmp_path / "cache")
    assert {split: part.num_rows for split, part in read.items()} == {"train": 3, "validation": 1, "test": 1}
    features = read["train"].features
    assert all(isinstance(features[view], datasets.Image) for view in ("cf", "fa", "mask"))
    kinds = {name: features[name].dtype for name in ("id", "synthetic", "caption", "size", "consistency", "eye")}
    assert kinds == {
        **{"id": "string", "synthetic": "bool", "caption": "string"},
        **{"size": "int64", "consistency": "float64", "eye": "string"},
    }
    assert features["fa_to_cf"] == datasets.List(datasets.List(datasets.Value("float64")))
    rows = {row["id"]: row for part in read.values() for row in part}
    for record in read_dataset(prepared):
        row, pair = rows[record.id], load_pair(record)
        assert (row["split"], row["eye"], row["synthetic"], row["patient"]) == (record.split, record.group, False, None)
        assert (row["cf"].mode, row["fa"].mode) == ("RGB", "L")
        np.testing.assert_array_equal(np.asarray(row["cf"]), pair.cf)
        np.testing.assert_array_equal(np.asarray(row["fa"]), pair.fa)
        np.testing.assert_array_equal(np.asarray(row["mask"]) > 0, pair.mask)
        assert row["fa_to_cf"] == np.eye(3).tolist()


def test_datasets_reads_generated_pairs(generated: Path, tmp_path: Path) -> None:
    read = load(export(generated, tmp_path / "out"), tmp_path / "cache")
    rows = {row["id"]: row for part in read.values() for row in part}
    assert len(rows) == 6
    assert all(row["synthetic"] and row["caption"] == "an eye" and row["base"] == "tiny-sdxl" for row in rows.values())
    assert (rows["1"]["mode"], rows["1"]["source_eye"], rows["2"]["source_eye"]) == ("from_data", "patient7", None)
    assert {row["split"] for row in read["validation"]} == {"val"}
    for record in read_dataset(generated):
        np.testing.assert_array_equal(np.asarray(rows[record.id]["mask"]) > 0, load_pair(record).mask)


def test_webdataset_reads_the_pairs(generated: Path, tmp_path: Path) -> None:
    webdataset = pytest.importorskip("webdataset")
    out = export(generated, tmp_path / "out", "webdataset")
    expected = {record.id: record for record in read_dataset(generated)}
    seen = {}
    for path in sorted(out.glob("*.tar")):
        for sample in webdataset.WebDataset(str(path), shardshuffle=False).decode("pil"):
            values = sample["json"]
            seen[values["id"]] = values["split"]
            assert path.name.startswith(values["split"])
            pair = load_pair(expected[values["id"]])
            np.testing.assert_array_equal(np.asarray(sample["cf.png"]), pair.cf)
            np.testing.assert_array_equal(np.asarray(sample["mask.png"].convert("L")) > 0, pair.mask)
    assert seen == {id: record.split for id, record in expected.items()}


def test_ids_with_dots_are_single_samples(tmp_path: Path) -> None:
    webdataset = pytest.importorskip("webdataset")
    folder = write_named(tmp_path / "named", ["a.1", "a.2", "José.x"])
    out = export(folder, tmp_path / "out", "webdataset")
    samples = list(webdataset.WebDataset(str(out / "train-000000.tar"), shardshuffle=False).decode())
    assert [sample["json"]["id"] for sample in samples] == ["a.1", "a.2", "José.x"]
    assert all({"cf.png", "fa.png", "mask.png"} <= set(sample) for sample in samples)


def write_named(folder: Path, names: list[str]) -> Path:
    records = []
    for number, name in enumerate(names):
        for view, image in zip(("cf", "fa"), draw_pair(number, VIEW), strict=True):
            save_image(folder / view / f"{name}.png", image)
        save_image(folder / "mask" / f"{name}.png", np.full((VIEW, VIEW), 255, np.uint8))
        records.append(prepared_record(name, "train"))
    write_manifest(folder, records)
    return folder


# --- Bytes and marks


def files_in_tars(out: Path) -> dict[str, bytes]:
    found = {}
    for path in sorted(out.glob("*.tar")):
        with tarfile.open(path) as archive:
            found |= {entry.name: archive.extractfile(entry).read() for entry in archive}  # type: ignore[union-attr]
    return found


def test_png_files_are_copied_byte_for_byte(generated: Path, tmp_path: Path) -> None:
    files = files_in_tars(export(generated, tmp_path / "out", "webdataset"))
    assert files["2.cf.png"] == (generated / "2/cf.png").read_bytes()
    assert files["2.fa.png"] == (generated / "2/fa.png").read_bytes()


def test_the_name_of_a_source_does_not_leave_but_the_synthetic_mark_does(generated: Path, tmp_path: Path) -> None:
    content = files_in_tars(export(generated, tmp_path / "out", "webdataset"))["1.cf.png"]
    (tmp_path / "one.png").write_bytes(content)
    assert synthetic_mark_of([tmp_path / "one.png"]) == MARK
    with Image.open(io.BytesIO(content)) as image:
        assert "Source" not in image.info
        np.testing.assert_array_equal(np.asarray(image), np.asarray(Image.open(generated / "1/cf.png")))


@pytest.mark.parametrize("to", ["hf", "webdataset"])
def test_the_same_pairs_give_the_same_bytes(generated: Path, tmp_path: Path, to: str) -> None:
    shutil.copytree(generated, tmp_path / "copy")
    first = export(generated, tmp_path / "first", to)
    second = export(tmp_path / "copy", tmp_path / "second", to, workers=3)
    assert {name: data for name, data in contents(first).items() if name != STATE_NAME} == {
        name: data for name, data in contents(second).items() if name != STATE_NAME
    }


def test_rejected_pairs_are_left_out(generated: Path, tmp_path: Path) -> None:
    (generated / "rejected.txt").write_text("2\n")
    files = files_in_tars(export(generated, tmp_path / "out", "webdataset"))
    assert {name.partition(".")[0] for name in files} == {"1", "3", "4", "5", "6"}


# --- Interrupted, repeated and changed exports


@pytest.fixture
def _two_pairs_a_file(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(exporting, "MAX_PAIRS", 2)


def times(out: Path) -> dict[str, int]:
    return {path.name: path.stat().st_mtime_ns for path in (out / "data").iterdir()}


@pytest.mark.usefixtures("_two_pairs_a_file")
def test_an_interrupted_export_continues(generated: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = export(generated, tmp_path / "whole")
    original, calls = exporting.load_row, []

    def fail_at_fourth(folder: Path, pair: Any) -> Any:
        calls.append(pair)
        if len(calls) == 4:
            raise KeyboardInterrupt
        return original(folder, pair)

    monkeypatch.setattr(exporting, "load_row", fail_at_fourth)
    with pytest.raises(KeyboardInterrupt):
        export(generated, tmp_path / "out")
    before = times(tmp_path / "out")
    assert len(before) == 1  # and no partial file
    with raises_file(tmp_path / "out", MissingError):
        bring_back(tmp_path / "out", tmp_path / "back")
    export(generated, tmp_path / "out")
    assert len(calls) == 4 + 4  # the two pairs of the complete file are not read again
    assert before.items() <= times(tmp_path / "out").items()
    assert contents(tmp_path / "out") == contents(whole)


@pytest.mark.usefixtures("_two_pairs_a_file")
def test_only_files_with_changed_pairs_are_written_again(generated: Path, tmp_path: Path) -> None:
    out = export(generated, tmp_path / "out")
    before = times(out)
    export(generated, out)
    assert times(out) == before
    last = [record for record in read_dataset(generated) if record.split == "train"][-1]
    save_image(last.cf, draw_pair(77, VIEW)[0], MARK)
    export(generated, out)
    changed = {name for name, time in times(out).items() if before[name] != time}
    assert changed == {max(name for name in before if name.startswith("train"))}
    (generated / "rejected.txt").write_text("".join(f"{n}\n" for n in range(1, 6)))
    export(generated, out)
    assert len(times(out)) == 1  # files of pairs that are left out now are deleted
    assert contents(out).keys() == contents(export(generated, tmp_path / "fresh")).keys()


def test_an_edited_card_is_kept(generated: Path, tmp_path: Path) -> None:
    out = export(generated, tmp_path / "out")
    edited = (out / "README.md").read_text().replace("# license: to be filled in", "license: cc-by-4.0 # ")
    (out / "README.md").write_text(edited)
    (generated / "rejected.txt").write_text("2\n")
    export(generated, out)
    assert (out / "README.md").read_text() == edited


# --- Back to a prepared folder


def test_an_export_of_prepared_pairs_becomes_the_same_folder(prepared: Path, tmp_path: Path) -> None:
    back = bring_back(export(prepared, tmp_path / "out"), tmp_path / "back")
    assert_equal_pairs(prepared, back)
    assert (back / "manifest.jsonl").read_bytes() == (prepared / "manifest.jsonl").read_bytes()
    for record in read_dataset(prepared):
        assert (back / record.cf_name).read_bytes() == record.cf.read_bytes()


def test_an_export_of_generated_pairs_becomes_a_prepared_folder(generated: Path, tmp_path: Path) -> None:
    (generated / "rejected.txt").write_text("3\n")
    back = bring_back(export(generated, tmp_path / "out"), tmp_path / "back")
    assert_equal_pairs(generated, back)
    assert synthetic_mark_of([back / "cf/2.png", back / "fa/2.png"]) == MARK


def test_an_import_knows_in_which_mode_and_from_which_pair_it_was_generated(generated: Path, tmp_path: Path) -> None:
    back = bring_back(export(generated, tmp_path / "out"), tmp_path / "back")
    again = bring_back(export(back, tmp_path / "out2"), tmp_path / "back2")
    for folder in (generated, back, again):
        pairs = {pair.id: pair for pair in read_dataset(folder)}
        assert (pairs["1"].variation, pairs["1"].source_id) == (True, "eye7")
        assert (pairs["2"].mode, pairs["2"].source_id) == ("noise", None)
        facts = count_pairs(folder, open_stream(folder)).facts()
        assert (facts.origins, facts.sourced, facts.kind) == ({"from_data": 1, "noise": 5}, 1, "Synthetic")


def test_a_repeated_import_continues_and_other_pairs_are_refused(
    prepared: Path, generated: Path, tmp_path: Path
) -> None:
    out, back = export(prepared, tmp_path / "out"), tmp_path / "back"
    bring_back(out, back)
    whole = contents(back)
    (back / "manifest.jsonl").unlink()
    (back / "cf/eye1.png").unlink()
    bring_back(out, back)
    assert contents(back) == whole
    with raises_file(back, OccupiedError):
        bring_back(export(generated, tmp_path / "other"), back)
    with raises_setting("anonymise"):
        prepare_pairs(PrepareConfig(raw=out, out=tmp_path / "anonymous", anonymise=tmp_path / "key"))


# --- Refusals


def test_missing_and_damaged_files_are_named(generated: Path, tmp_path: Path) -> None:
    (generated / "4/fa.png").unlink()
    with raises_file(generated / "4/fa.png", MissingError):
        export(generated, tmp_path / "out")
    assert not (tmp_path / "out").exists()
    content = (generated / "4/cf.png").read_bytes()
    save_image(generated / "4/fa.png", draw_pair(4, VIEW)[1])
    (generated / "4/cf.png").write_bytes(content[:-900])
    with raises_file(generated / "4/cf.png", DamagedError):
        export(generated, tmp_path / "out")
    assert not list((tmp_path / "out").rglob("*.parquet*"))
    save_image(generated / "4/cf.png", draw_pair(4, 64)[0])
    with raises_file(generated / "4/cf.png"):
        export(generated, tmp_path / "out")


def test_a_wrong_out_is_refused(generated: Path, prepared: Path, tmp_path: Path) -> None:
    with raises_file(generated / "out", OccupiedError):
        export(generated, generated / "out")
    (tmp_path / "full").mkdir()
    (tmp_path / "full/mine.txt").touch()
    with raises_file(tmp_path / "full", OccupiedError):
        export(generated, tmp_path / "full")
    out = export(generated, tmp_path / "out")
    with raises_file(out, OccupiedError):
        export(generated, out, "webdataset")
    with raises_setting("workers"):
        export(generated, out, workers=-1)
    (out / STATE_NAME).write_text("{}")
    with pytest.raises(UserError, match=STATE_NAME):
        export(generated, out)


def test_an_unsafe_id_is_refused(tmp_path: Path) -> None:
    write_generated(tmp_path / "pairs", 2)
    records = list(read_manifest(tmp_path / "pairs"))
    write_manifest(tmp_path / "pairs", [replace(records[0], id="../x"), records[1]])
    with raises_file(tmp_path / "pairs/manifest.jsonl"):
        export(tmp_path / "pairs", tmp_path / "out")


def test_without_pyarrow_the_extra_is_named(generated: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    with pytest.raises(UserError, match=r"pip install 'retipair\[hf\]'"):
        export(generated, tmp_path / "out")
    assert not (tmp_path / "out").exists()
    export(generated, tmp_path / "tars", "webdataset")


# --- Memory


def write_many(folder: Path, amount: int) -> Path:
    """A prepared folder whose pairs all name the same files, of about 150 kB a pair."""
    rng = np.random.default_rng(0)
    for view, shape in (("cf", (192, 192, 3)), ("fa", (192, 192)), ("mask", (192, 192))):
        save_image(folder / view / "one.png", rng.integers(0, 256, shape, np.uint8))
    one = replace(prepared_record("one", "train"), size=192)
    write_manifest(folder, (replace(one, id=f"eye{n}", eye=f"eye{n}") for n in range(amount)))
    return folder


PEAK = """
import json, resource, sys
from pathlib import Path
from retipair.config import ExportPairsConfig
from retipair.preparation import export_pairs as exporting
exporting.MAX_PAIRS = 50
few, many, out = map(Path, sys.argv[1:])
peaks = {}
for to in ("webdataset", "hf"):
    for folder in (few, many):
        exporting.export_pairs(ExportPairsConfig(pairs=folder, out=out / to / folder.name, to=to, workers=1))
        peaks[f"{to} {folder.name}"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
print(json.dumps(peaks))
"""


def test_memory_does_not_grow_with_the_number_of_pairs(tmp_path: Path) -> None:
    few, many = write_many(tmp_path / "few", 100), write_many(tmp_path / "many", 500)
    command = [sys.executable, "-c", PEAK, str(few), str(many), str(tmp_path / "out")]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    peaks = json.loads(done.stdout.splitlines()[-1])
    unit = 1 if sys.platform == "darwin" else 1024
    for to in ("webdataset", "hf"):  # the additional pairs are 60 MB of images
        assert (peaks[f"{to} many"] - peaks[f"{to} few"]) * unit < 15e6


def test_prepared_sets_of_several_splits(tmp_path: Path) -> None:
    folder = write_prepared(tmp_path / "pairs", ["train", "val"])
    read = load(export(folder, tmp_path / "out"), tmp_path / "cache")
    assert sorted(read) == ["train", "validation"]


def test_pairs_with_a_real_view_are_not_called_synthetic(
    generated: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A photograph from which an FA was drawn is part of the pair."""
    records = [generated_record(index) for index in range(1, 7)]
    given = replace(records[1], mode="cf2fa", source_id="photo", source_eye="photo")
    photograph = draw_pair(2, given.size)[0]
    save_image(generated / given.cf, photograph, {"Synthetic": "no: the view from which the other was drawn"})
    write_manifest(generated, [records[0], given, *records[2:]])
    out = export(generated, tmp_path / "out", "webdataset")
    assert "warning: the data set contains real images" in capsys.readouterr().err
    rows = {id: json.loads(content) for id, content in files_in_tars(out).items() if id.endswith(".json")}
    assert [rows[f"{number}.json"]["synthetic"] for number in (1, 2, 3)] == [True, False, True]
    assert "Some images are real and show patients" in (out / "README.md").read_text()


def test_texts_after_the_pixels_of_a_png_do_not_leave(generated: Path, tmp_path: Path) -> None:
    path = generated / "2/cf.png"
    content = path.read_bytes()
    end = content.rindex(b"IEND") - 4
    body = b"tEXt" + b"PatientName\0Doe"
    chunk = (len(body) - 4).to_bytes(4) + body + zlib.crc32(body).to_bytes(4)
    path.write_bytes(content[:end] + chunk + content[end:])
    assert not is_plain_png(path, "RGB")
    copied = files_in_tars(export(generated, tmp_path / "out", "webdataset"))["2.cf.png"]
    assert b"Doe" not in copied
