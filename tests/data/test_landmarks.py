from pathlib import Path

import numpy as np
import pytest

from retipair.data.landmarks import read_landmarks, read_points
from retipair.errors import UserError

GOOD = "10 10\n90 12\n50 80\n20 60\n"


def _read(folder: Path, cf: str, fa: str = GOOD):
    for name, text in (("cf.txt", cf), ("fa.txt", fa)):
        (folder / name).write_text(text)
    return read_landmarks(folder / "cf.txt", folder / "fa.txt", (100, 100, 3), (100, 100))


@pytest.mark.parametrize("text", ["1 2\n3 4\n", "1,2\r\n3,4\r\n", "\ufeff1, 2\n\n3;4", "1.0\t2.0\n 3 4 \n"])
def test_points_are_read_however_they_are_separated(tmp_path, text):
    (tmp_path / "points.txt").write_bytes(text.encode())
    assert np.array_equal(read_points(tmp_path / "points.txt"), [[1, 2], [3, 4]])


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("10 10\n90 12\n50 80\n", "3 points but fa.txt has 4"),
        ("10 10\n90 12\n50 80\n20 60\n30 30\n", "5 points but fa.txt has 4"),
        ("10 10\n90 12\nnan 80\n20 60\n", "line 3"),
        ("10 10\n90 12\ninf 80\n20 60\n", "line 3"),
        ("10 10\n90 12\n50 eighty\n20 60\n", "line 3"),
        ("10 10 4\n90 12\n50 80\n20 60\n", "line 1"),
        ("10 10\n190 12\n50 80\n20 60\n", "outside its 100 x 100 px image"),
        ("10 10\n-3 12\n50 80\n20 60\n", "outside"),
        ("10 10\n20 20\n30 30\n40 40\n", "on one line"),
        ("10 10\n10 10\n10 10\n10 10\n", "on one line"),
    ],
)
def test_points_that_cannot_register_are_named(tmp_path, text, said):
    with pytest.raises(UserError, match=said) as caught:
        _read(tmp_path, text)
    assert "cf.txt" in str(caught.value)


def test_a_binary_file_is_no_points(tmp_path):
    (tmp_path / "points.txt").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(UserError, match="UTF-8"):
        read_points(tmp_path / "points.txt")


def test_three_points_are_too_few(tmp_path):
    with pytest.raises(UserError, match="3 points; place at least 4"):
        _read(tmp_path, "10 10\n90 12\n50 80\n", "10 10\n90 12\n50 80\n")
