"""Points as ImageJ saves them are read as those of a text file."""

import sys
from pathlib import Path

import numpy as np
import pytest
import roifile

from refusals import raises_file
from retipair.data.folders import points_beside
from retipair.registration.landmarks import read_landmarks, read_points
from retipair.runtime.errors import DamagedError, FileError, UserError

POINTS = np.array([[10.5, 20.25], [100.0, 30.5], [40.0, 90.75], [12.0, 80.0], [60.0, 61.0]])
TABLE = " ,Area,Mean,Min,Max,X,Y\n" + "".join(f"{n},0,97,97,97,{x},{y}\n" for n, (x, y) in enumerate(POINTS, start=1))


def save_roi(path: Path, points: np.ndarray, kind: roifile.ROI_TYPE = roifile.ROI_TYPE.POINT) -> Path:
    roi = roifile.ImagejRoi.frompoints(points)
    roi.roitype = kind
    roi.tofile(path)
    return path


def save_table(path: Path, text: str) -> Path:
    path.write_text(text, encoding="utf-8")
    return path


def test_selections_and_tables_hold_the_same_points(tmp_path: Path) -> None:
    assert read_points(save_roi(tmp_path / "a.roi", POINTS)) == pytest.approx(POINTS)
    assert read_points(save_table(tmp_path / "a.csv", TABLE)) == pytest.approx(POINTS)


def test_whole_pixels_are_read_from_a_selection(tmp_path: Path) -> None:
    whole = POINTS.round().astype(np.int32)
    assert (read_points(save_roi(tmp_path / "a.roi", whole)) == whole).all()


@pytest.mark.parametrize("delimiter", ["\t", ";"])
def test_tables_with_other_delimiters_and_columns(delimiter: str, tmp_path: Path) -> None:
    text = TABLE.replace(" ,Area", "Label,Area,Counter", 1).replace(",0,", ",0,1,").replace(",", delimiter)
    assert read_points(save_table(tmp_path / "Results.txt", text)) == pytest.approx(POINTS)


def test_they_are_landmarks(tmp_path: Path) -> None:
    landmarks = read_landmarks(
        save_roi(tmp_path / "cf.roi", POINTS), save_table(tmp_path / "fa.csv", TABLE), (128, 128, 3), (128, 128)
    )
    assert landmarks.cf == pytest.approx(landmarks.fa)
    with raises_file(tmp_path / "cf.roi"):  # a point outside its image
        read_landmarks(tmp_path / "cf.roi", tmp_path / "fa.csv", (64, 64, 3), (128, 128))


def test_files_beside_a_view_are_found_and_two_are_refused(tmp_path: Path) -> None:
    view = tmp_path / "a_01.png"
    assert points_beside(view) is None
    table = save_table(tmp_path / "a_01.CSV", TABLE)
    assert points_beside(view) == table
    save_roi(tmp_path / "a_01.roi", POINTS)
    with raises_file(tmp_path / "a_01.roi"):
        points_beside(view)


def test_bad_files_are_named(tmp_path: Path) -> None:
    with raises_file(save_roi(tmp_path / "line.roi", POINTS, roifile.ROI_TYPE.POLYLINE)):
        read_points(tmp_path / "line.roi")
    for content in (b"", b"Iout", b"12 30\n"):
        (tmp_path / "bad.roi").write_bytes(content)
        with raises_file(tmp_path / "bad.roi", DamagedError):
            read_points(tmp_path / "bad.roi")
    for text in ("X,Y\n1,2\n3,\n", "X,Y\n1,2\nNaN,4\n", 'X;Y\n1;2\n"3,5";4\n'):
        with pytest.raises(UserError, match="t.csv, line 3: "):
            read_points(save_table(tmp_path / "t.csv", text))


def test_without_roifile_the_extra_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    save_roi(tmp_path / "a.roi", POINTS)
    monkeypatch.setitem(sys.modules, "roifile", None)
    with pytest.raises(FileError, match=r"pip install 'retipair\[imagej\]'"):
        read_points(tmp_path / "a.roi")
