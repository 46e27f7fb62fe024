"""DICOM files become the same pairs as their PNGs, and nothing that is written or printed names a patient."""

import csv
import json
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from scipy.ndimage import gaussian_filter

from cached import cached
from dicom_files import OP_16_BIT, DicomForm, personal_texts, write_dicom
from eyes import draw_pair, draw_raw
from image_files import png
from refusals import Refused
from retipair.data.anonymize import hashed
from retipair.data.manifest import PreparedPair, read_manifest
from retipair.data.pair import load_image
from retipair.interfaces.cli import main
from retipair.preparation import registered, view_choice
from retipair.registration.frame_choice import LoadView

SIZE = 256
EYES = {("MRN-0001", "R"): 0, ("MRN-0001", "L"): 1, ("MRN-0002", "R"): 2}
BEST = 2
"""The frame of the angiogram of several frames in which the vessels are filled."""
Fill = Callable[[Path], object]


def angiogram(fa: np.ndarray) -> np.ndarray:
    """Frames (3, H, W): the arrival of the dye, filled vessels, and a late one; each moved a little, with noise."""
    rng, shading, frames = np.random.default_rng(0), gaussian_filter(fa.astype(float), 6), []
    for filling, move in ((0.1, 5), (1, 0), (0.15, -4)):
        frame = shading + filling * (fa - shading) + rng.normal(0, 4, fa.shape) * (fa > 8)
        frames.append(np.roll(frame, move, axis=1))
    return np.clip(np.stack(frames).round(), 0, 255).astype(np.uint8)


def deep(values: np.ndarray) -> np.ndarray:
    """The same image with 12 bits, of which no 8 are the image."""
    return values.astype(np.uint16) * 16 + (np.indices(values.shape).sum(axis=0) % 16).astype(np.uint16)


def write_both(folder: Path) -> None:
    """Write the eyes as DICOM files in dicom/, and the same pixels as PNG in png/cf and png/fa."""
    for (patient, side), seed in EYES.items():
        eye, name = draw_raw(seed=seed, size=SIZE, jitter=0.3), f"{patient}_{side}"
        many = name == "MRN-0001_L"
        fa = deep(angiogram(eye.fa)[BEST - 1] if many else eye.fa)
        pixels = np.stack([deep(frame) for frame in angiogram(eye.fa)]) if many else fa
        form = {"patient": patient, "side": side}
        write_dicom(folder / f"dicom/{patient}/CAM-IM{seed}1", eye.cf, DicomForm(**form, number=1))
        agent = "FLUORESCEIN" if many else None
        deep_form = DicomForm(**form, number=2, bits=12, sop_class=OP_16_BIT, agent=agent)
        angiogram_path = write_dicom(folder / f"dicom/{patient}/CAM-IM{seed}2.dcm", pixels, deep_form)
        for view in ("cf", "fa"):
            (folder / f"png/{view}").mkdir(parents=True, exist_ok=True)
        Image.fromarray(eye.cf).save(folder / f"png/cf/{name}.png")
        (folder / f"png/fa/{name}.png").write_bytes(png(fa[..., None]))
        if not many:
            points = {f"png/cf/{name}": eye.cf_points, f"png/fa/{name}": eye.fa_points}
            points |= {f"dicom/{patient}/CAM-IM{seed}1": eye.cf_points, angiogram_path.with_suffix(""): eye.fa_points}
            for path, values in points.items():
                np.savetxt((folder / path).with_suffix(".txt"), values, fmt="%.3f")


@pytest.fixture(autouse=True, scope="module")
def _choose_and_register_equal_views_once(shared_root: Path) -> Iterator[None]:
    """Most tests use the same three eyes."""
    with pytest.MonkeyPatch.context() as patch:
        choose = cached(view_choice.choose_views, shared_root / "choose", images_of)
        patch.setattr(view_choice, "choose_views", choose)
        patch.setattr(registered, "align", cached(registered.align, shared_root / "align", lambda *given: given))
        yield


def images_of(*views: list[LoadView]) -> object:
    return [[load().image for load in loads] for loads in views]


@pytest.fixture(scope="module")
def both(once: Callable[[str, Fill], Path]) -> Path:
    return once("dicom_and_png", write_both)


@pytest.fixture
def raw(both: Path, tmp_path: Path) -> Path:
    """A copy of the DICOM files, because the key is written beside them."""
    return Path(shutil.copytree(both / "dicom", tmp_path / "clinic"))


def prepare(raw: Path, out: Path, *flags: object) -> int:
    return main([str(word) for word in ("prepare", raw, out, "--size", 128, "--workers", 1, *flags)])


def names_of(key: Path) -> dict[str, str]:
    with key.with_name(f"{key.name}.csv").open(newline="") as stream:
        return {row["anonymous"]: row["id"] for row in csv.DictReader(stream)}


def every_byte(folder: Path) -> bytes:
    """The content of every file, and the name of every file and folder."""
    paths = sorted(folder.rglob("*"))
    names = [path.relative_to(folder).as_posix().encode() for path in paths]
    return b"\n".join([*names, *(path.read_bytes() for path in paths if path.is_file())])


def found_in(content: bytes, texts: set[str]) -> list[str]:
    return [text for text in sorted(texts) if text.encode().lower() in content.lower()]


def test_dicom_files_become_the_pairs_of_their_pngs_and_name_nobody(
    both: Path, raw: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    assert prepare(raw, tmp_path / "out") == 0
    printed = "".join(capfd.readouterr())
    assert f"frame {BEST} of 3 of the angiogram" in printed
    assert " ".join(printed.split()).count("no tag states fluorescein") == 1
    assert "warning: 2 pairs (first: " in printed
    assert prepare(both / "png", tmp_path / "from_png") == 0

    names = names_of(tmp_path / "clinic.key")
    records = [record for record in read_manifest(tmp_path / "out") if isinstance(record, PreparedPair)]
    assert len(records) == len(EYES)
    for record in records:
        patient, side, _ = names[record.id].split()
        for view, mode in (("cf", "RGB"), ("fa", "L"), ("mask", "L")):
            expected = load_image(tmp_path / f"from_png/{view}/{patient}_{side}.png", mode)
            assert (load_image(tmp_path / "out" / getattr(record, view), mode) == expected).all()
    assert len({record.patient for record in records}) == 2
    assert len({record.eye for record in records}) == 3

    texts = personal_texts_of(raw)
    assert found_in(every_byte(raw), texts) == sorted(texts)  # the search finds them where they are
    assert found_in(every_byte(tmp_path / "out"), texts) == []
    assert found_in(printed.encode(), texts) == []


def personal_texts_of(raw: Path) -> set[str]:
    """The texts in the tags of the files, whatever is beside them."""
    for path in raw.rglob("*.txt"):
        path.unlink()
    return personal_texts(raw)


def test_a_second_run_aligns_nothing_again_and_keeps_the_ids(raw: Path, tmp_path: Path, capsys) -> None:
    for _ in range(2):
        assert prepare(raw, tmp_path / "out") == 0
        capsys.readouterr()
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "out/cf").iterdir()}
    assert prepare(raw, tmp_path / "out") == 0
    assert {path: path.stat().st_mtime_ns for path in (tmp_path / "out/cf").iterdir()} == before
    assert f"frame {BEST} of 3 of the angiogram" in capsys.readouterr().out
    other = tmp_path / "other.key"
    assert prepare(raw, tmp_path / "with_key", "--anonymise", other) == 0
    assert set(names_of(other).values()) == set(names_of(tmp_path / "clinic.key").values())
    assert not set(names_of(other)) & set(names_of(tmp_path / "clinic.key"))


def write_table(raw: Path, frame: object) -> Path:
    """A table of the eyes, which names a frame of the angiogram of several frames."""
    rows = ["cf,fa,fa_frame,cf_points,fa_points"]
    for (patient, side), seed in EYES.items():
        files = f"clinic/{patient}/CAM-IM{seed}1,clinic/{patient}/CAM-IM{seed}2.dcm"
        points = f"clinic/{patient}/CAM-IM{seed}1.txt,clinic/{patient}/CAM-IM{seed}2.txt"
        rows.append(f"{files},{frame},," if side == "L" else f"{files},,{points}")
    table = raw.with_name("study.csv")
    table.write_text("\n".join(rows))
    return table


def test_a_table_names_the_frame(raw: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    table = write_table(raw, BEST)
    assert prepare(table, tmp_path / "out") == 0
    assert f"frame {BEST} of 3 of the angiogram, as the table states" in capsys.readouterr().out
    assert len(names_of(tmp_path / "study.csv.key")) == len(EYES)


def test_a_frame_that_does_not_exist_is_one_line(raw: Path, tmp_path: Path, refused: Refused) -> None:
    table = write_table(raw, 4)
    line = refused("prepare", table, tmp_path / "out")
    assert line.startswith(f"retipair: {raw / 'MRN-0001/CAM-IM12.dcm'}: has no frame 4, only 3")
    assert not (tmp_path / "out").exists()


def test_points_of_an_unknown_frame_are_refused(raw: Path, tmp_path: Path, refused: Refused) -> None:
    for name in ("CAM-IM11.txt", "CAM-IM12.txt"):
        (raw / "MRN-0001" / name).write_text("10 10\n90 20\n30 80\n70 90\n")
    line = refused("prepare", raw, tmp_path / "out")
    assert line.startswith(f"retipair: {raw / 'MRN-0001/CAM-IM12.dcm'}: ")
    assert "fa_frame" in line


def test_an_fa_without_cf_is_refused_or_skipped(raw: Path, tmp_path: Path, refused: Refused) -> None:
    (raw / "MRN-0001/CAM-IM11").unlink()
    line = refused("prepare", raw, tmp_path / "out")
    assert line.startswith(f"retipair: {raw / 'MRN-0001/CAM-IM12.dcm'}: its eye has no CF")
    assert not (tmp_path / "out").exists()
    assert not (tmp_path / "clinic.key").exists()
    assert prepare(raw, tmp_path / "out", "--skip_bad") == 0
    assert len(list(read_manifest(tmp_path / "out"))) == 2
    assert found_in(every_byte(tmp_path / "out"), personal_texts_of(raw)) == []


def test_a_key_that_cannot_be_written_is_one_line(raw: Path, tmp_path: Path, refused: Refused) -> None:
    (tmp_path / "clinic.key").write_text("mine")
    assert refused("prepare", raw, tmp_path / "out").path == tmp_path / "clinic.key"
    assert (tmp_path / "clinic.key").read_text() == "mine"


def test_aligned_views_are_compared_as_they_are(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    raw = tmp_path / "clinic"
    for patient, seed in (("A", 0), ("B", 1)):
        for number, photograph in enumerate((draw_pair(7, SIZE)[0], draw_pair(seed, SIZE)[0]), start=1):
            write_dicom(raw / f"{patient}{number}", photograph, DicomForm(patient=patient, number=number))
        frames = angiogram(draw_pair(seed, SIZE)[1])
        write_dicom(raw / f"{patient}3", frames, DicomForm(patient=patient, number=3))
    assert prepare(raw, tmp_path / "out", "--register", "none") == 0
    chosen = f"photograph 2 of 2 and frame {BEST} of 3 of the angiogram"
    assert capsys.readouterr().out.count(chosen) == 2


def test_registered_matches_name_nobody(raw: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """The ids are known before the run, because the key is."""
    key = "0" * 64
    (tmp_path / "clinic.key").write_text(key)
    shutil.rmtree(raw / "MRN-0002")
    for name in ("CAM-IM11", "CAM-IM12.dcm"):
        (raw / "MRN-0001" / name).unlink()
    id = hashed(bytes.fromhex(key), "pair", "MRN-0001 R 20240517")
    cf, fa = (np.loadtxt(raw / f"MRN-0001/CAM-IM0{number}.txt") for number in (1, 2))
    (tmp_path / "matches").mkdir()
    np.savez(tmp_path / f"matches/{id}.npz", cf=cf, fa=fa)
    command = ["register", raw, tmp_path / "all", "--folder", "--matches", tmp_path / "matches", "--workers", 1]
    assert main([str(word) for word in command]) == 0
    assert [path.name for path in (tmp_path / "all").iterdir() if path.is_dir()] == [id]
    texts = personal_texts_of(raw)
    assert found_in(every_byte(tmp_path / "all"), texts) == []
    assert found_in("".join(capfd.readouterr()).encode(), texts) == []


@pytest.mark.nightly
def test_register_names_nobody_either(raw: Path, both: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    assert main(["register", str(raw), str(tmp_path / "all"), "--folder", "--workers", "1"]) == 0
    cf, fa = raw / "MRN-0001/CAM-IM11", raw / "MRN-0001/CAM-IM12.dcm"
    assert main(["register", str(cf), str(fa), str(tmp_path / "one")]) == 0
    printed = "".join(capfd.readouterr())
    assert printed.count(f"frame {BEST} of 3 of the angiogram") == 2
    record = json.loads((tmp_path / "one/registration.json").read_text())
    assert (record["cf"], record["fa"], record["chosen"]) == (None, None, f"frame {BEST} of 3 of the angiogram")
    assert set(names_of(tmp_path / "clinic.key")) == {
        path.name for path in (tmp_path / "all").iterdir() if path.is_dir()
    }
    texts = personal_texts_of(raw)
    for folder in ("all", "one"):
        assert found_in(every_byte(tmp_path / folder), texts) == []
    assert found_in(printed.encode(), texts) == []
