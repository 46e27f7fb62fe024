from pathlib import Path

import numpy as np
import pytest

from refusals import raises_file
from retipair.registration.landmarks import read_landmarks, read_points
from retipair.runtime.errors import DamagedError

GOOD = "10 10\n90 12\n50 80\n20 60\n"


def _read(folder: Path, cf: str, fa: str = GOOD):
    for name, text in (("cf.txt", cf), ("fa.txt", fa)):
        (folder / name).write_text(text)
    return read_landmarks(folder / "cf.txt", folder / "fa.txt", (100, 100, 3), (100, 100))


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16"])
@pytest.mark.parametrize(
    "text",
    [
        *("1 2\n3 4\n", "1,2\r\n3,4\r\n", "1, 2\n\n3;4", "1.0\t2.0\n 3 4 \n", "1 2\r3 4\r", "sep=,\n1,2\n3,4\n"),
        *("1;2;;\r\n3;4;;\r\n;;;\r\n", "1,2,,\r\n3,4,,\r\n,,,\r\n", "1\t2\t\r\n3\t4\t\r\n\t\t\r\n"),  # a spreadsheet's
        *("1,0 2,0\n3 4\n", "1,0;2,0\r\n3,0;4,0\r\n", "1,000\t2,00\n3\t4\n", "sep=;\r\n1,0;2,0\r\n3;4\r\n"),
    ],
)
def test_points_are_read_however_they_are_separated(tmp_path, text, encoding):
    (tmp_path / "points.txt").write_bytes(text.encode(encoding))
    assert np.array_equal(read_points(tmp_path / "points.txt"), [[1, 2], [3, 4]])


@pytest.mark.parametrize(
    ("text", "line"),
    [
        ("10 10\n90 12\n50 80\n", None),
        ("10 10\n90 12\n50 80\n20 60\n30 30\n", None),
        ("10 10\n90 12\nnan 80\n20 60\n", 3),
        ("10 10\n90 12\ninf 80\n20 60\n", 3),
        ("10 10\n90 12\n50 eighty\n20 60\n", 3),
        ("10 10 4\n90 12\n50 80\n20 60\n", 1),
        ("10 10\n190 12\n50 80\n20 60\n", None),
        ("10 10\n-3 12\n50 80\n20 60\n", None),
        ("10 10\n20 20\n30 30\n40 40\n", None),
        ("10 10\n10 10\n10 10\n10 10\n", None),
    ],
)
def test_points_that_cannot_register_are_named(tmp_path, text, line):
    with raises_file(tmp_path / "cf.txt", line=line):
        _read(tmp_path, text)


def test_a_binary_file_is_no_points(tmp_path):
    (tmp_path / "points.txt").write_bytes(b"\xff\xfe\x00")
    with raises_file(tmp_path / "points.txt", DamagedError):
        read_points(tmp_path / "points.txt")


def test_three_points_are_too_few(tmp_path):
    with raises_file(tmp_path / "cf.txt"):
        _read(tmp_path, "10 10\n90 12\n50 80\n", "10 10\n90 12\n50 80\n")


@pytest.mark.parametrize(
    ("text", "line"),
    [
        ("12,500 30,125\n", 1),
        ("12 30\n1,234;2,345\n", 2),
        ("12,5 30,1\n12.5 30.1\n", 2),
        ("12,5 30,1\n12,30\n", 2),
        ("12,5,30,1\n", 1),
        ("12,5 3\n", 1),  # or the point 12 5 of number 3
        ("sep=,\n12,5 30,1\n", 2),
    ],
)
def test_numbers_with_commas_that_mean_two_things_are_refused(tmp_path, text, line):
    (tmp_path / "points.txt").write_text(text)
    with raises_file(tmp_path / "points.txt", line=line):
        read_points(tmp_path / "points.txt")


@pytest.mark.parametrize("text", ["12,50 30,125\n", "0,500 30,125\n", "1200,500 30,125\n", "12,5000 30,125\n"])
def test_commas_that_cannot_mark_thousands_are_decimal(tmp_path, text):
    (tmp_path / "points.txt").write_text(text)
    x, y = text.replace(",", ".").split()
    assert np.array_equal(read_points(tmp_path / "points.txt"), [[float(x), float(y)]])


def test_shares_of_the_image_are_no_pixels(tmp_path):
    shares = "0.1 0.1\n0.9 0.12\n0.5 0.8\n0.2 1\n"
    with raises_file(tmp_path / "cf.txt"):
        _read(tmp_path, shares, shares)
