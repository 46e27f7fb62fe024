"""`prepare`, `train` and `evaluate` take Hugging Face data sets: raw pairs in two image columns, or an export."""

import io
import json
import struct
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from compare import contents
from conftest import VIEW, train_command, write_prepared
from eyes import draw_pair
from refusals import raises_file
from retipair.config import EvaluateConfig, ExportPairsConfig, PrepareConfig
from retipair.data.dataset import read_dataset
from retipair.data.manifest import read_manifest
from retipair.data.pair import load_image
from retipair.data.parquet import is_parquet_dataset, split_in_name
from retipair.evaluation.comparison import load_comparisons, pairs_sha256
from retipair.interfaces.cli import main
from retipair.preparation.export_pairs import export_pairs
from retipair.preparation.from_dataset import extracted_views, is_export, raw_captions
from retipair.preparation.prepare import prepare_pairs, prepared_folder
from retipair.runtime.errors import DamagedError, FileError, OccupiedError, UserError

pyarrow = pytest.importorskip("pyarrow")
pytest.importorskip("pyarrow.parquet")
EYES = 3


def png(image: np.ndarray) -> bytes:
    stream = io.BytesIO()
    Image.fromarray(image).save(stream, "PNG")
    return stream.getvalue()


@pytest.fixture(scope="session")
def views() -> list[tuple[bytes, bytes]]:
    return [(png(cf), png(fa)) for cf, fa in (draw_pair(seed, VIEW) for seed in range(EYES))]


def write(path: Path, **columns: list[Any]) -> Path:
    """A Parquet file; image columns hold bytes, or {"bytes": ..., "path": ...} as `datasets` writes them."""
    path.parent.mkdir(parents=True, exist_ok=True)
    pyarrow.parquet.write_table(pyarrow.table(columns), path)
    return path


def images(contents: list[bytes]) -> list[dict[str, Any]]:
    return [{"bytes": content, "path": f"{number}.png"} for number, content in enumerate(contents)]


def prepare(data: Path, out: Path, **settings: Any) -> Path:
    return prepare_pairs(PrepareConfig(raw=data, out=out, size=VIEW, register="none", workers=1, **settings))


@pytest.fixture
def raw(views: list[tuple[bytes, bytes]], tmp_path: Path) -> Path:
    """A data set that the library `datasets` might have written, with other names and a column that is not used."""
    cf, fa = zip(*views, strict=True)
    write(
        tmp_path / "set/data/train-00000-of-00001.parquet",
        **{"Fundus": images(list(cf)), "FFA": images(list(fa)), "id": ["a", "b", "c"], "patient": ["P1", "P2", "P3"]},
        eye=["P1 left", "P2 left", "P3 right"],
        caption=["an eye", None, "another eye"],
        age=[50, 60, 70],
    )
    return tmp_path / "set"


@pytest.fixture
def folder(views: list[tuple[bytes, bytes]], tmp_path: Path) -> Path:
    """The same views as files in folders."""
    for name, (cf, fa) in zip("abc", views, strict=True):
        for view, content in (("cf", cf), ("fa", fa)):
            path = tmp_path / "raw" / view / f"{name}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(content)
    return tmp_path / "raw"


def test_two_image_columns_are_prepared_like_the_same_files(raw: Path, folder: Path, tmp_path: Path) -> None:
    from_set, from_files = prepare(raw, tmp_path / "one"), prepare(folder, tmp_path / "two")
    for view in ("cf", "fa", "mask"):
        for name in "abc":
            np.testing.assert_array_equal(
                *(load_image(out / view / f"{name}.png", "RGB") for out in (from_set, from_files))
            )
    records = {record.id: record for record in read_manifest(from_set)}
    assert [(r.patient, r.eye, r.caption) for r in records.values()] == [  # type: ignore[union-attr]
        ("P1", "P1 left", "an eye"),
        ("P2", "P2 left", None),
        ("P3", "P3 right", "another eye"),
    ]
    assert [path.name for path in tmp_path.iterdir() if "raw" in path.name] == ["raw"]  # no temporary folder is left


def test_rows_never_overwrite_one_another(views: list[tuple[bytes, bytes]], tmp_path: Path) -> None:
    """An id may look like the number of another row."""
    cf, fa = zip(*views, strict=True)
    data = tmp_path / "set/data/train.parquet"
    write(data, cf=images(list(cf)), fa=images(list(fa)), id=["000002", "x y", "c"])
    with extracted_views(tmp_path / "set", tmp_path / "out") as extracted:
        rows = [json.loads(line) for line in extracted.table.read_text().splitlines()]
        assert [(extracted.table.parent / row["cf"]).read_bytes() for row in rows] == list(cf)


def test_splits_in_the_names_of_files_are_used(views: list[tuple[bytes, bytes]], tmp_path: Path) -> None:
    for number, name in enumerate(("train-0.parquet", "validation-0.parquet", "test-0.parquet")):
        write(tmp_path / "set" / name, cf=[views[number][0]], fa=[views[number][1]])
    records = list(read_manifest(prepare(tmp_path / "set", tmp_path / "out")))
    assert {record.id: record.split for record in records} == {  # type: ignore[union-attr]
        "000001": "test",  # files are read in the order of their names
        "000002": "train",
        "000003": "val",
    }


@pytest.mark.parametrize(
    ("name", "split"),
    [
        ("data/train-00000-of-00001.parquet", "train"),
        ("validation/0.parquet", "val"),
        ("dev.parquet", "val"),
        ("my_test_1.parquet", "test"),
        ("latest.parquet", None),
        ("0000.parquet", None),
    ],
)
def test_split_in_name(name: str, split: str | None) -> None:
    assert split_in_name(Path("set") / name, Path("set")) == split


@pytest.fixture
def exported(tmp_path: Path) -> tuple[Path, Path]:
    """A prepared folder, and its export."""
    pairs = write_prepared(tmp_path / "pairs", ["train", "val", "train"])
    return pairs, export_pairs(ExportPairsConfig(pairs=pairs, out=tmp_path / "export", to="hf"))


def test_train_prepares_a_data_set_once(
    exported: tuple[Path, Path], raw: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pairs, data = exported
    assert main(train_command("x", "random:tiny-sd15", data, tmp_path / "results", "--dry_run")) == 0
    assert "3 raw pairs" in capsys.readouterr().out
    assert raw_captions(raw) == [("a", "an eye"), ("b", None), ("c", "another eye")]
    prepared = prepared_folder(data, tmp_path / "results", VIEW)
    assert (prepared / "cf/eye0.png").read_bytes() == (pairs / "cf/eye0.png").read_bytes()
    before = (prepared / "manifest.jsonl").stat().st_mtime_ns
    assert prepared_folder(data, tmp_path / "results", VIEW) == prepared
    assert (prepared / "manifest.jsonl").stat().st_mtime_ns == before


def test_evaluate_compares_with_the_pairs_of_a_data_set(exported: tuple[Path, Path], tmp_path: Path) -> None:
    pairs, data = exported
    for _ in range(2):
        [compared] = load_comparisons(EvaluateConfig(real=data, out=tmp_path / "out")).values()
        [aligned] = (tmp_path / "out/prepared").iterdir()
        assert compared.provenance.real == str(aligned)
        assert compared.provenance.real_sha256 == pairs_sha256(read_dataset(pairs))
    (tmp_path / "full").mkdir()
    (tmp_path / "full/mine.txt").touch()
    with raises_file(tmp_path / "full", OccupiedError):
        load_comparisons(EvaluateConfig(real=data, out=tmp_path / "full"))
    assert [path.name for path in (tmp_path / "full").iterdir()] == ["mine.txt"]


@pytest.mark.nightly
def test_train_and_evaluate_run_on_an_export(exported: tuple[Path, Path], tmp_path: Path) -> None:
    _, data = exported
    assert main(train_command("x", "random:tiny-sd15", data, tmp_path / "results")) == 0
    for _ in range(2):  # the second time, the scores are found again
        assert main(["evaluate", "--real", str(data), "--out", str(tmp_path / "scores")]) == 0
    scores = json.loads((tmp_path / "scores/scores.json").read_text())
    assert scores["sizes"] == {"train": 2, "val": 1}


# --- Refusals


def test_unknown_image_columns_are_listed(views: list[tuple[bytes, bytes]], tmp_path: Path) -> None:
    path = write(tmp_path / "set/0.parquet", image=[views[0][0]], target=[views[0][1]], n=[1])
    with raises_file(path):
        prepare(tmp_path / "set", tmp_path / "out")
    with pytest.raises(FileError, match="image, target"):
        prepare(tmp_path / "set", tmp_path / "out")
    write(path, n=[1])
    with pytest.raises(FileError, match="no image columns"):
        prepare(tmp_path / "set", tmp_path / "out")
    write(path, cf=[views[0][0]], fa=[views[0][1]])
    other = write(tmp_path / "set/1.parquet", cf=[views[0][0]])
    with raises_file(other):
        prepare(tmp_path / "set", tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_rows_that_cannot_be_used_are_named(views: list[tuple[bytes, bytes]], tmp_path: Path) -> None:
    (cf, fa), (other, _) = views[:2]
    path = write(tmp_path / "set/0.parquet", cf=[cf, other], fa=[fa, None], id=["a", "b"])
    with pytest.raises(UserError, match=f"{path}, row 2: column fa"):
        prepare(tmp_path / "set", tmp_path / "out")
    write(path, cf=[cf, b"no image"], fa=[fa, fa], id=["a", "b"])
    with pytest.raises(UserError, match=f"^{path}, row 2, cf: unsupported image format"):
        prepare(tmp_path / "set", tmp_path / "out")
    write(path, cf=[cf, other], fa=[fa, fa], id=["a", "a"])
    with pytest.raises(UserError, match="occurs more than once"):
        prepare(tmp_path / "set", tmp_path / "out")
    write(path, cf=[cf, other], fa=[fa, fa], id=["../../a", "b"])
    with pytest.raises(UserError, match="not a safe file name"):
        prepare(tmp_path / "set", tmp_path / "out")
    assert sorted(entry.name for entry in tmp_path.iterdir()) == ["set"]


def test_skipped_rows_are_named(
    views: list[tuple[bytes, bytes]], tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    (cf, fa), *others = views
    write(tmp_path / "set/0.parquet", cf=[cf, b"no image"], fa=[fa, fa], id=["extracted", "b"], split=["train", "val"])
    cfs, fas = zip(*others, strict=True)
    path = write(tmp_path / "set/1.parquet", cf=[*cfs, cf], fa=[*fas, cf], id=["c", "d", "e"], split=["val"] * 3)
    prepare(tmp_path / "set", tmp_path / "out", skip_bad=True)
    printed = " ".join("".join(capfd.readouterr()).split())
    skipped = (tmp_path / "out/skipped.txt").read_text().splitlines()
    assert skipped[0].startswith(f"{tmp_path / 'set/0.parquet'}, row 2, cf: unsupported image format")
    assert skipped[1].startswith(f"{path}, row 3, fa: the same image as {path}, row 3;")
    for text in ("".join(skipped), printed):
        assert "out.raw" not in text
        assert "extracted_row" not in text


def test_files_that_are_not_parquet_are_named(raw: Path, tmp_path: Path) -> None:
    [path] = raw.rglob("*.parquet")
    content = path.read_bytes()
    path.write_bytes(content[: len(content) // 2])
    with raises_file(path, DamagedError):
        prepare(raw, tmp_path / "out")
    path.write_bytes(b"")
    with raises_file(path, DamagedError):
        prepare(raw, tmp_path / "out")
    with raises_file(raw / "out", OccupiedError):
        prepare(raw, raw / "out")


def test_a_folder_of_save_to_disk_is_named(tmp_path: Path) -> None:
    datasets = pytest.importorskip("datasets")
    datasets.disable_progress_bars()
    datasets.Dataset.from_dict({"id": ["a"]}).save_to_disk(str(tmp_path / "saved"))
    with raises_file(tmp_path / "saved"):
        prepare(tmp_path / "saved", tmp_path / "out")


def test_an_export_with_a_changed_row_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pairs = write_prepared(tmp_path / "pairs", ["train", "val"])
    data = export_pairs(ExportPairsConfig(pairs=pairs, out=tmp_path / "set", to="hf"))
    path = data / "data/train-00000.parquet"
    table = pyarrow.parquet.read_table(path)

    def with_column(name: str, value: Any) -> None:
        place = table.schema.get_field_index(name)
        changed = table.set_column(
            place, table.schema.field(name), pyarrow.array([value], table.schema.field(name).type)
        )
        pyarrow.parquet.write_table(changed, path)

    def enlarged(png: bytes, side: int) -> bytes:
        """A PNG whose header states another size, as a decompression bomb does."""
        header = b"IHDR" + struct.pack(">II", side, side) + png[24:29]
        return png[:12] + header + zlib.crc32(header).to_bytes(4) + png[33:]

    cell = {"bytes": (pairs / "cf/eye0.png").read_bytes(), "path": "x"}
    stream = io.BytesIO()
    Image.new("RGB", (VIEW, VIEW)).save(stream, "JPEG")
    wrong: list[tuple[str, Any]] = [
        *(("id", "../../evil"), ("id", ""), ("id", "eye1"), ("split", "nonsense"), ("consistency", None)),
        *(("schema", "other"), ("size", 64), ("cf", {"bytes": b"no image"}), ("cf", {"bytes": None}), ("eye", None)),
        *(("cf", {"bytes": cell["bytes"][:-size]}) for size in (12, 40)),
        *(("cf", {"bytes": stream.getvalue()}), ("cf", {"bytes": enlarged(cell["bytes"], 60_000)})),
    ]
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", None)  # as in the commands
    for name, value in wrong:
        with_column(name, value)
        with pytest.raises(UserError) as caught:
            prepare(data, tmp_path / f"out-{name}")
        assert ", row 1: " in str(caught.value), (name, value)
    assert not (tmp_path / "evil.png").exists()


def rewrite(data: Path, drop: tuple[str, ...] = (), **columns: Any) -> Path:
    """Drop and replace columns of the first file of an export, and return its path."""
    path = data / "data/train-00000.parquet"
    table = pyarrow.parquet.read_table(path)
    for name in (*drop, *(set(columns) & set(table.column_names))):
        table = table.drop_columns(name)
    for name, values in columns.items():
        table = table.append_column(name, pyarrow.array(values))
    pyarrow.parquet.write_table(table, path)
    return path


@pytest.mark.parametrize("index", [["a", "b"], [[1], [2]], [1.5, 2.5]], ids=["text", "lists", "fractions"])
def test_an_index_that_is_no_integer_is_refused_before_anything_is_written(
    exported: tuple[Path, Path], index: list[Any], tmp_path: Path
) -> None:
    path = rewrite(exported[1], index=index)
    with pytest.raises(UserError, match=rf"^{path}, row 1: index .* is not an integer"):
        prepare(exported[1], tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("with_state", [True, False])
@pytest.mark.parametrize("name", ["id", "split", "schema", "mask", "cf", "size", "consistency"])
def test_an_export_that_lost_a_column_is_not_read_as_raw_pairs(
    exported: tuple[Path, Path], name: str, with_state: bool, tmp_path: Path
) -> None:
    """Its aligned pairs would be aligned again, and its validation eyes could be used for training."""
    data = exported[1]
    path = rewrite(data, drop=(name,))
    if not with_state:
        (data / ".export_pairs.json").unlink()
    with raises_file(path) as caught:
        prepare(data, tmp_path / "out")
    assert f"no column {name};" in str(caught.value)
    assert not (tmp_path / "out").exists()


def test_any_trace_of_an_export_is_found(exported: tuple[Path, Path], raw: Path) -> None:
    data = exported[1]
    rewrite(data, drop=("split", "consistency_before"))
    with pytest.raises(FileError, match="split"):  # the state file
        is_export(data)
    (data / ".export_pairs.json").unlink()
    (data / "data/validation-00000.parquet").unlink()
    with pytest.raises(FileError, match="split"):  # the values of `schema`
        is_export(data)
    rewrite(data, schema=["mine", "mine"])
    assert not is_export(data)
    assert not is_export(raw)


@pytest.mark.parametrize("name", ["eye", "patient"])
def test_an_eye_in_two_splits_is_refused_before_anything_is_written(
    exported: tuple[Path, Path], name: str, tmp_path: Path
) -> None:
    path = rewrite(exported[1], **{name: ["same", "same"], "split": ["train", "val"]})
    with raises_file(path) as caught:
        prepare(exported[1], tmp_path / "out")
    assert f"{name} same is both in train (eye0) and in val (eye2); put all" in str(caught.value)
    assert not (tmp_path / "out").exists()


def test_a_transform_of_another_shape_is_refused(exported: tuple[Path, Path], tmp_path: Path) -> None:
    path = rewrite(exported[1], fa_to_cf=[[[1.0]], [[1.0]]])
    with pytest.raises(UserError, match=rf"^{path}, row 1: fa_to_cf must be 3 x 3 numbers"):
        prepare(exported[1], tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("cell", [{"bytes": b"no image"}, "eye0.png"], ids=["damaged", "text"])
def test_a_damaged_image_is_named_by_its_row_and_column_only(
    exported: tuple[Path, Path], cell: Any, tmp_path: Path
) -> None:
    path = rewrite(exported[1], fa=[cell, cell])
    with pytest.raises(UserError, match=rf"^{path}, row 1: (column )?fa ") as caught:
        prepare(exported[1], tmp_path / "out")
    assert "object at" not in str(caught.value)


def test_only_folders_with_parquet_files_count(raw: Path, folder: Path, tmp_path: Path) -> None:
    assert is_parquet_dataset(raw)
    assert is_parquet_dataset(next(raw.rglob("*.parquet")))
    assert not is_parquet_dataset(folder)
    assert not is_parquet_dataset(tmp_path / "missing")
    assert contents(raw)
