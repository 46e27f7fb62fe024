"""What is shared leads back to nobody: neither ids, nor eyes, nor patients, nor where anything lay."""

import csv
import json
import re
import shutil
import stat
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageCms
from PIL.PngImagePlugin import PngInfo
from PIL.TiffImagePlugin import ImageFileDirectory_v2

from conftest import train_command
from eyes import write_raw
from retipair.data.manifest import PreparedPair, read_manifest
from retipair.data.pair import save_image
from retipair.interfaces.cli import main

Folder = Callable[[str], Path]
NAMES = ("meier", "schulz", "lovelace", "patient7", "patient8")


@pytest.fixture(scope="module")
def raw(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three pairs under names of people, with a table that says which eyes they are."""
    folder = tmp_path_factory.mktemp("annas_patients")
    write_raw(folder, n=3, size=128, jitter=0.3)
    for number, name in enumerate(("meier", "schulz", "lovelace"), start=1):
        (folder / f"00{number}").rename(folder / name)
        for path in (folder / name).iterdir():
            path.rename(path.with_name(path.name.replace(f"00{number}", name)))
    (folder / "eyes.csv").write_text(
        "id,eye,patient\nmeier,meier_left,patient7\nschulz,schulz_left,patient8\nlovelace,lovelace_right,\n"
    )
    return folder


def prepare(raw: Path, out: Path, key: Path) -> int:
    words = ["prepare", raw, out, "--size", 128, "--workers", 1, "--anonymise", key]
    return main([str(word) for word in words])


def everything_in(folder: Path) -> str:
    """Every path within and every byte of it."""
    texts = [path.read_bytes().decode("latin-1") for path in folder.rglob("*") if path.is_file()]
    return "\n".join([*(path.relative_to(folder).as_posix() for path in folder.rglob("*")), *texts]).lower()


def test_nothing_in_the_folder_names_anybody(raw: Path, tmp_path: Path) -> None:
    assert prepare(raw, tmp_path / "out", tmp_path / "key") == 0
    told = everything_in(tmp_path / "out")
    assert [name for name in (*NAMES, "annas_patients", str(tmp_path)) if name in told] == []
    records = [one for one in read_manifest(tmp_path / "out") if isinstance(one, PreparedPair)]
    assert all(re.fullmatch("[0-9a-f]{16}", one.id) for one in records)
    assert [one.id for one in records] == sorted(one.id for one in records)
    assert sum(one.patient is not None for one in records) == 2


def test_the_key_and_the_names_are_the_owners_alone(raw: Path, tmp_path: Path) -> None:
    assert prepare(raw, tmp_path / "out", tmp_path / "key") == 0
    with (tmp_path / "key.csv").open(newline="") as stream:
        names = {row["id"]: row["anonymous"] for row in csv.DictReader(stream)}
    assert set(names) == {"meier", "schulz", "lovelace"}
    assert set(names.values()) == {record.id for record in read_manifest(tmp_path / "out")}
    for name in ("key", "key.csv"):
        assert stat.S_IMODE((tmp_path / name).stat().st_mode) == 0o600


def test_the_same_key_gives_the_same_and_another_others(raw: Path, tmp_path: Path) -> None:
    ids = {}
    for out, key in (("a", "key"), ("b", "key"), ("c", "other")):
        assert prepare(raw, tmp_path / out, tmp_path / key) == 0
        records = [one for one in read_manifest(tmp_path / out) if isinstance(one, PreparedPair)]
        ids[out] = {one.id for one in records} | {one.eye for one in records} | {one.source_sha256 for one in records}
    assert ids["a"] == ids["b"]
    assert not ids["a"] & ids["c"]


@pytest.mark.parametrize("content", ["", "secret", "g" * 64, "\u00e9"])
def test_another_file_is_no_key(content: str, raw: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "key").write_text(content, encoding="utf-8")
    assert prepare(raw, tmp_path / "out", tmp_path / "key") == 2
    assert f"{tmp_path / 'key'}: not a retipair key file" in capsys.readouterr().err
    assert (tmp_path / "key").read_text(encoding="utf-8") == content


def test_a_key_does_not_lie_among_the_pairs(raw: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for key in (tmp_path / "out/key", raw / "key"):
        assert prepare(raw, tmp_path / "out", key) == 2
        assert "--anonymise" in capsys.readouterr().err
        assert not (tmp_path / "out").exists()
        assert not key.exists()


def test_a_table_that_lies_where_the_names_would_is_not_overwritten(
    raw: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "study.csv").write_text("id,eye\nmeier,left\n")
    assert prepare(raw, tmp_path / "out", tmp_path / "study") == 2
    assert f"{tmp_path / 'study.csv'}: not a name table" in capsys.readouterr().err
    assert (tmp_path / "study.csv").read_text() == "id,eye\nmeier,left\n"
    assert not (tmp_path / "out").exists()


def test_names_of_another_set_stay_in_the_table(raw: Path, tmp_path: Path) -> None:
    write_raw(tmp_path / "others", n=3, size=128, jitter=0.3)
    assert prepare(raw, tmp_path / "a", tmp_path / "key") == 0
    assert prepare(tmp_path / "others", tmp_path / "b", tmp_path / "key") == 0
    with (tmp_path / "key.csv").open(newline="") as stream:
        assert {row["id"] for row in csv.DictReader(stream)} == {"meier", "schulz", "lovelace", "001", "002", "003"}


def test_what_was_prepared_under_names_leaves_none_behind(raw: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    assert main(["prepare", str(raw), str(out), "--size", "128", "--workers", "1"]) == 0
    (out / ".prepare.json").write_text("{}")  # as a later version might see it
    (out / "skipped.txt").write_text("meier: cannot be used\n")
    (out / ".partial/cf").mkdir(parents=True)
    (out / ".partial/cf/schulz.png").touch()
    assert prepare(raw, out, tmp_path / "key") == 0
    told = everything_in(out)
    assert [name for name in NAMES if name in told] == []


@pytest.mark.parametrize("comment", ["#meier", "# is blurred: schulz.", "# lovelace"])
def test_comments_on_rejected_pairs_must_not_name_them(
    raw: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], comment: str
) -> None:
    out = tmp_path / "out"
    assert prepare(raw, out, tmp_path / "key") == 0
    (out / "rejected.txt").write_text(f"# the year's worst\n{comment}\n")
    assert prepare(raw, out, tmp_path / "key") == 2
    assert "rejected.txt, line 2: a comment names" in capsys.readouterr().err
    (out / "rejected.txt").write_text("# the year's worst\n")
    assert prepare(raw, out, tmp_path / "key") == 0


def test_a_refused_list_of_rejected_pairs_leaves_no_key(
    raw: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    out.mkdir()
    (out / ".prepare.json").write_text("{}")
    (out / "rejected.txt").write_text("meier\n")
    assert prepare(raw, out, tmp_path / "key") == 2
    assert "no pair has the id 'meier'" in capsys.readouterr().err
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_what_is_said_of_synthetic_views_names_nobody(raw: Path, tmp_path: Path) -> None:
    views = tmp_path / "varied"
    write_raw(views, n=3, size=128, jitter=0.3)
    for path in views.rglob("*.png"):
        with Image.open(path) as image:
            view = np.asarray(image)
        save_image(path, view, {"Synthetic": "yes: variation of pair meier at strength 0.6", "Seed": "3"})
    assert prepare(views, tmp_path / "out", tmp_path / "key") == 0
    assert "meier" not in everything_in(tmp_path / "out")
    for path in (tmp_path / "out/cf").iterdir():
        with Image.open(path) as image:
            assert image.info["Synthetic"].startswith("yes")


@pytest.mark.nightly
def test_nor_does_anything_that_is_made_of_it(raw: Path, base_folder: Folder, tmp_path: Path) -> None:
    """An adapter, pairs that were varied from patients' and a report: what is handed on."""
    data, results = tmp_path / "annas_data", tmp_path / "annas_results"
    assert prepare(raw, data, tmp_path / "key") == 0
    base = shutil.copytree(base_folder("sd15"), tmp_path / "annas_models/sd15")
    assert (
        main(train_command("exp", base, data, results, "--max_steps", 1, "--num_samples", 1, "--sample_steps", 1)) == 0
    )
    run = results / "out_joint_sd15_cffa_pairs/exp"
    words = ["generate", "-n", "exp", "--results", results, "--device", "cpu", "--steps", 2, "--amount", 2]
    words += ["--mode", "from_data", "--out", tmp_path / "made"]
    assert main([str(word) for word in words]) == 0
    judged = tmp_path / "judged"
    words = ["evaluate", "--real", data, "--generated", tmp_path / "made", "--out", judged, "--base", base]
    assert main([str(word) for word in words]) == 0
    shared = [everything_in(run / "best_checkpoint"), everything_in(tmp_path / "made")]
    shared += [everything_in(next(run.glob("step_*_random_pairs"))), (judged / "report.html").read_text().lower()]
    for told in shared:
        assert [name for name in (*NAMES, "annas_models", str(tmp_path)) if name in told] == []
    lines = [json.loads(line) for line in (tmp_path / "made/manifest.jsonl").read_text().splitlines()]
    assert {line["base"] for line in lines} == {"sd15"}


# What files say beside their pixels


def told_in_a_png(image: Image.Image, path: Path) -> None:
    texts = PngInfo()
    texts.add_text("PatientName", "LOVELACE^ADA")
    texts.add_itxt("XML:com.adobe.xmp", "<x:xmpmeta><dc:creator>LOVELACE^ADA</dc:creator></x:xmpmeta>", zip=False)
    texts.add(b"prVt", b"LOVELACE^ADA")  # a private chunk
    image.save(path.with_suffix(".png"), pnginfo=texts, exif=_exif())


def told_in_a_tiff(image: Image.Image, path: Path) -> None:
    """DICOM's tags as some cameras export them: as text, and as private tags."""
    tags = ImageFileDirectory_v2()
    tags[270], tags[315] = "(0010,0010) LOVELACE^ADA", "LOVELACE^ADA"  # ImageDescription, Artist
    tags[50838] = "LOVELACE^ADA"
    tags.tagtype[50838] = 2
    image.save(path.with_suffix(".tif"), tiffinfo=tags)


def told_in_a_jpeg(image: Image.Image, path: Path) -> None:
    profile = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes() + b"LOVELACE^ADA"
    image.save(path.with_suffix(".jpg"), quality=98, comment=b"LOVELACE^ADA", exif=_exif(), icc_profile=profile)


def _exif() -> Image.Exif:
    exif = Image.Exif()
    exif[0x010E], exif[0x013B] = "LOVELACE^ADA", "LOVELACE^ADA"
    return exif


@pytest.mark.parametrize(
    "write", [told_in_a_png, told_in_a_tiff, pytest.param(told_in_a_jpeg, marks=pytest.mark.nightly)]
)
def test_what_a_raw_file_tells_beside_its_pixels_goes_nowhere(
    write: Callable[[Image.Image, Path], None], tmp_path: Path
) -> None:
    raw = tmp_path / "raw"
    write_raw(raw, n=3, size=128, jitter=0.3)
    for path in sorted(raw.rglob("*.png")):
        with Image.open(path) as image:
            view = image.copy()
        path.unlink()
        write(view, path)
    assert "lovelace" in everything_in(raw)
    assert main(["prepare", str(raw), str(tmp_path / "out"), "--size", "128", "--workers", "1"]) == 0
    assert len(list(read_manifest(tmp_path / "out"))) == 3
    assert "lovelace" not in everything_in(tmp_path / "out")
