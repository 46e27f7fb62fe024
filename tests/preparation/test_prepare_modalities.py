"""Raw pairs of other modalities: registered by vessels that are dark in both views, measured, recorded, or refused."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from dicom_files import DicomForm, write_dicom
from eyes import draw_raw
from refusals import Refused
from retipair.data.manifest import PreparedPair, read_manifest
from retipair.data.pair import MEGAPIXELS, load_first_view
from retipair.interfaces.cli import main
from retipair.preparation.view_choice import _load_first
from retipair.vision.modality import find_modalities

Once = Callable[[str, Callable[[Path], None]], Path]
SIZE = "256"


def _phantoms(out: Path, *modalities: str) -> None:
    size = ["--amount", "2", "--size", SIZE, "--points", "12"]
    assert main(["phantom", str(out), "--unregistered", *size, "--modalities", *modalities]) == 0


@pytest.fixture(scope="module")
def dark(once: Once) -> Path:
    """Two raw pairs of a photograph and an autofluorescence image."""
    return once("raw-autofluorescence", lambda out: _phantoms(out, "cf", "autofluorescence")) / "raw"


@pytest.fixture(scope="module")
def red_free(once: Once) -> Path:
    """Two raw pairs of a red-free photograph and an angiogram."""
    return once("raw-red-free", lambda out: _phantoms(out, "red_free", "fa")) / "raw"


def _prepare(raw: Path, out: Path, *flags: str) -> list[str]:
    return ["prepare", str(raw), str(out), "--size", SIZE, "--workers", "1", *flags]


def _table(raw: Path, out: Path, **columns: str) -> Path:
    """Write a table of the pairs of a raw folder with more columns, whose cells are separated by spaces."""
    folders = sorted(path for path in raw.iterdir() if path.is_dir())
    lines = []
    for number, folder in enumerate(folders):
        row = {key: value.split()[number] for key, value in columns.items()}
        names = {view: f"{folder}/{folder.name}_0{n}.png" for n, view in enumerate(("cf", "fa"), start=1)}
        names |= {f"{view}_points": f"{names[view].removesuffix('png')}txt" for view in ("cf", "fa")}
        lines.append(json.dumps({"id": folder.name, "eye": folder.name, **names, **row}))
    out.write_text("\n".join(lines) + "\n")
    return out


def _records(out: Path) -> list[PreparedPair]:
    return [record for record in read_manifest(out) if isinstance(record, PreparedPair)]


def test_dark_vessels_are_measured_registered_and_recorded(
    dark: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    flags = ["--modalities", "cf", "autofluorescence", "--vessels_second"]
    assert main(_prepare(dark, tmp_path / "out", *flags, "auto")) == 0
    printed = capsys.readouterr()
    assert "vessels of the second views: dark (2 of 2 pairs" in printed.err
    assert "an autofluorescence image with dark vessels" in printed.out
    for record in _records(tmp_path / "out"):
        assert (record.modalities, record.vessels) == (["cf", "autofluorescence"], ["dark", "dark"])
        assert record.consistency > 0.5
        truth = json.loads((dark.parent / "truth" / record.id / "truth.json").read_text())
        assert record.raw_cf_to_cf is not None
        true = np.array(record.raw_cf_to_cf) @ np.array(truth["fa_to_cf"])
        corners = np.array([[60, 60, 1], [190, 60, 1], [60, 190, 1], [190, 190, 1]]).T
        found, right = (points[:2] / points[2] for points in (np.array(record.fa_to_cf) @ corners, true @ corners))
        assert abs(found - right).max() < 1.5
    assert main(_prepare(dark, tmp_path / "said", *flags, "dark")) == 0
    assert (tmp_path / "said" / "manifest.jsonl").read_bytes() == (tmp_path / "out" / "manifest.jsonl").read_bytes()


@pytest.mark.nightly
def test_with_the_wrong_vessels_every_pair_is_refused(dark: Path, tmp_path: Path) -> None:
    assert (
        main(_prepare(dark, tmp_path / "out", "--modalities", "cf", "autofluorescence", "--vessels_second", "bright"))
        == 2
    )
    assert not (tmp_path / "out" / "manifest.jsonl").exists()


def test_vessels_that_cannot_be_measured_are_refused(
    dark: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The second views are of other eyes than the first."""
    swapped = shutil.copytree(dark, tmp_path / "raw")
    (swapped / "0001/0001_02.png").rename(tmp_path / "other.png")
    (swapped / "0002/0002_02.png").rename(swapped / "0001/0001_02.png")
    (tmp_path / "other.png").rename(swapped / "0002/0002_02.png")
    flags = ["--modalities", "cf", "autofluorescence", "--vessels_second", "auto", "--register", "none"]
    assert main(_prepare(swapped, tmp_path / "out", *flags)) == 2
    last = capsys.readouterr().err.splitlines()[-1]
    assert "--vessels_second auto: 0 of 2 pairs fit better with dark vessels and 0 with bright ones" in last
    assert last.endswith("pass dark or bright")


def test_red_free_photographs_stay_grey(red_free: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(_prepare(red_free, tmp_path / "out")) == 2  # neither view has colour
    assert "for views of other modalities, pass --modalities" in capsys.readouterr().err
    assert main(_prepare(red_free, tmp_path / "out", "--modalities", "red_free", "fa")) == 0
    assert {Image.open(path).mode for path in (tmp_path / "out").glob("[cf]?/*.png")} == {"L"}
    assert {tuple(record.modalities or ()) for record in _records(tmp_path / "out")} == {("red_free", "fa")}


def test_a_table_names_the_modalities(red_free: Path, tmp_path: Path, refused: Refused) -> None:
    table = _table(red_free, tmp_path / "pairs.jsonl", cf_modality="red_free red_free")
    assert main(_prepare(table, tmp_path / "out")) == 0
    assert {tuple(record.modalities or ()) for record in _records(tmp_path / "out")} == {("red_free", "fa")}
    conflict = refused(*_prepare(table, tmp_path / "other", "--modalities", "cf", "octa"))
    assert "red_free and fa" in conflict
    assert "cf and octa" in conflict


@pytest.mark.parametrize("columns", [{"cf_modality": "red_free cf"}, {"fa_modality": "fa autofluorescence"}])
def test_a_mixture_is_refused_with_both_names(
    columns: dict[str, str], red_free: Path, tmp_path: Path, refused: Refused
) -> None:
    text = refused(*_prepare(_table(red_free, tmp_path / "pairs.jsonl", **columns), tmp_path / "out"))
    assert all(name in text for name in next(iter(columns.values())).split())
    assert not (tmp_path / "out").exists()


def test_dicom_tags_tell_only_cf_and_fa_apart(tmp_path: Path, refused: Refused) -> None:
    eye = draw_raw(seed=1, size=96)
    for number, view in enumerate((eye.cf, eye.fa), start=1):
        write_dicom(tmp_path / f"raw/IM{number}", view, DicomForm(patient="MRN-1", side="R", number=number))
    text = refused(*_prepare(tmp_path / "raw", tmp_path / "out", "--modalities", "cf", "octa"))
    assert "table" in text
    assert "MRN-1" not in text


def test_exported_pairs_state_what_they_are(tmp_path: Path, refused: Refused) -> None:
    real, export = str(tmp_path / "real"), str(tmp_path / "export")
    assert main(["phantom", real, "--amount", "2", "--size", "64", "--modalities", "cf", "octa"]) == 0
    assert main(["export", "pairs", real, export, "--to", "hf", "--workers", "1"]) == 0
    for flags in (["--modalities", "cf", "octa"], ["--vessels_second", "auto"]):
        assert refused("prepare", export, tmp_path / "out", *flags).setting == flags[0].removeprefix("--")


def test_unknown_names_are_refused(red_free: Path, tmp_path: Path, refused: Refused) -> None:
    table = _table(red_free, tmp_path / "pairs.jsonl", cf_modality="red_free mri")
    assert "line 2" in refused(*_prepare(table, tmp_path / "out"))
    assert refused(*_prepare(red_free, tmp_path / "out", "--modalities", "fa", "cf")).setting == "modalities"


def test_photographs_in_colour_are_no_red_free_ones_and_this_is_said(
    dark: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(_prepare(dark, tmp_path / "out", "--modalities", "red_free", "autofluorescence")) == 0
    assert "warning: 2 first views are in colour (first: 0001) and are converted to grey" in capsys.readouterr().err


def test_second_views_in_colour_are_named_as_first_ones_are(
    red_free: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    raw = shutil.copytree(red_free, tmp_path / "raw")
    _tint(raw / "0002/0002_02.png")
    assert main(_prepare(raw, tmp_path / "one", "--modalities", "red_free", "fa")) == 0
    printed = capsys.readouterr().err
    assert "warning: 1 second views are in colour (first: 0002) and are converted to grey" in printed
    assert "first views are in colour" not in printed
    _tint(raw / "0002/0002_01.png")
    assert main(_prepare(raw, tmp_path / "both", "--modalities", "red_free", "fa")) == 0
    printed = capsys.readouterr().err
    for place in ("first", "second"):
        assert f"warning: 1 {place} views are in colour (first: 0002) and are converted to grey" in printed


def _tint(path: Path) -> None:
    """Save a grey image in green."""
    grey = np.asarray(Image.open(path).convert("L"))
    Image.fromarray(np.stack([grey // 4, grey, grey // 4], axis=2)).save(path)


def test_a_first_view_saved_in_colour_is_grey_in_the_checkerboard_and_in_the_choice_of_frames(
    red_free: Path, tmp_path: Path
) -> None:
    for number in (1, 2):
        shutil.copy(red_free / f"0001/0001_0{number}.png", tmp_path)
    _tint(tmp_path / "0001_01.png")
    cf, fa = tmp_path / "0001_01.png", tmp_path / "0001_02.png"
    assert main(["register", str(cf), str(fa), str(tmp_path / "out"), "--modalities", "red_free", "fa"]) == 0
    board = np.asarray(Image.open(tmp_path / "out/checkerboard.png").convert("RGB"))
    assert np.ptp(board, axis=2).max() == 0
    modalities = find_modalities(("red_free", "fa"))
    view = _load_first((cf, 1), MEGAPIXELS, modalities)
    assert np.array_equal(view.image, load_first_view(cf, modalities.first))
    assert np.ptp(view.image, axis=2).max() == 0


@pytest.mark.nightly
def test_register_finds_dark_vessels(dark: Path, tmp_path: Path, refused: Refused) -> None:
    views = [str(dark / "0001" / f"0001_0{number}.png") for number in (1, 2)]
    flags = ["--modalities", "cf", "autofluorescence"]
    assert main(["register", *views, str(tmp_path / "out"), *flags]) == 0
    assert json.loads((tmp_path / "out/registration.json").read_text())["consistency"] > 0.5
    assert "refused" in refused("register", *views, tmp_path / "wrong", *flags, "--vessels_second", "bright")
    assert main(["register", "--folder", str(dark), str(tmp_path / "all"), *flags, "--workers", "1"]) == 0
