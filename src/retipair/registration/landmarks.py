"""Read and check landmarks: corresponding points that were placed by hand in the CF and the FA."""

import re
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from retipair.registration.imagej_points import ROI_SUFFIX, is_results_table, read_results_table, read_roi
from retipair.runtime.errors import FileError
from retipair.runtime.text_files import read_table_text

_MIN_POINTS = 4  # a homography needs 4 points
_MIN_SPREAD_RATIO = 0.01  # minor to major principal axis; points with a smaller ratio count as lying on one line


@dataclass(frozen=True)
class Landmarks:
    """Corresponding points in CF and FA, (N, 2) each: x and y in raw px."""

    cf: np.ndarray
    fa: np.ndarray


def read_landmarks(cf_path: Path, fa_path: Path, cf_shape: tuple[int, ...], fa_shape: tuple[int, ...]) -> Landmarks:
    """Read the point files of both views and check the points.

    cf_shape, fa_shape: the shapes of the images, (H, W, ...).

    Raises UserError if the files have different numbers of points, if there are fewer than 4 points, if a point lies
    outside its image, or if all points lie within the first pixel or on one line.
    """
    landmarks = Landmarks(read_points(cf_path), read_points(fa_path))
    if len(landmarks.cf) != len(landmarks.fa):
        counts = f"{len(landmarks.cf)} points but {fa_path.name} has {len(landmarks.fa)}"
        raise FileError(cf_path, f"{counts}; line n of both files must mark the same place")
    for path, points, shape in ((cf_path, landmarks.cf, cf_shape), (fa_path, landmarks.fa, fa_shape)):
        _check(path, points, shape)
    return landmarks


def read_points(path: Path) -> np.ndarray:
    """Read a file with one point "x y" per line, or a file of ImageJ. Return the points as (N, 2) float64 px.

    A file of ImageJ is a selection of points (.roi), or a table with the columns X and Y; see `imagej_points`. In other
    files, the two numbers of a line are separated by blanks, tabs, semicolons or commas. A comma within a number is a
    decimal comma.
    Raises UserError if a line is not a point, if some numbers have decimal commas and others decimal points, if commas
    may be decimal commas as well as thousands separators, or if a file of ImageJ cannot be read.
    """
    if path.suffix.lower() == ROI_SUFFIX:
        return read_roi(path)
    separator, first, text = read_table_text(path)
    if is_results_table(text.partition("\n")[0]):
        return read_results_table(path)
    lines = [line.replace(";", " ") for line in text.split("\n")]
    if separator != "," and any(map(_DECIMAL_COMMAS.fullmatch, lines)):
        lines = _with_decimal_points(path, first, lines)
    else:
        lines = [line.replace(",", " ") for line in lines]
    rows = [_point(path, number, line.split()) for number, line in enumerate(lines, start=first) if line.split()]
    return np.array(rows, dtype=np.float64).reshape(-1, 2)


_DECIMAL_COMMAS = re.compile(r"\s*[-+]?\d+,\d+\s+[-+]?\d+,\d+\s*", re.ASCII)
_NO_THOUSANDS = re.compile(r"(^|\s)[-+]?(0\d*|\d{4,}),\d|,(\d{1,2}|\d{4,})(\s|$)", re.ASCII)


def _with_decimal_points(path: Path, first: int, lines: list[str]) -> list[str]:
    """Replace the decimal commas of all lines by decimal points.

    first: the number, in the file, of the first line in `lines`. It is used in error messages.

    Raises FileError if the commas may be thousands separators, or if some lines have decimal points.
    """
    for number, line in enumerate(lines, start=first):
        if "." in line:
            problem = "has a decimal point, but other lines have decimal commas; use decimal points everywhere"
            raise FileError(path, problem, number)
    if not any(map(_NO_THOUSANDS.search, lines)):
        number = next(number for number, line in enumerate(lines, start=first) if "," in line)
        raise FileError(path, "its commas may mark decimals or thousands; write numbers with a decimal point", number)
    return [line.replace(",", ".") for line in lines]


def _point(path: Path, number: int, words: list[str]) -> list[float]:
    try:
        x, y = map(float, words)
    except ValueError:
        raise FileError(
            path, f"{' '.join(words)!r} is not a point; write two numbers per line, 'x y'", number
        ) from None
    if not np.isfinite([x, y]).all():
        raise FileError(path, f"{' '.join(words)!r} contains NaN or infinity; correct or remove the line", number)
    return [x, y]


def _check(path: Path, points: np.ndarray, shape: tuple[int, ...]) -> None:
    if len(points) < _MIN_POINTS:
        raise FileError(path, f"{len(points)} points; place at least {_MIN_POINTS}, better 10 or more")
    if points.min() >= 0 and points.max() <= 1:
        raise FileError(path, "all points lie within the first pixel; write px, not fractions of the image size")
    height, width = shape[:2]
    # x = width and y = height are accepted, because some tools count pixels from 1.
    outside = (points < -0.5).any(axis=1) | (points > [width, height]).any(axis=1)
    if outside.any():
        x, y = points[outside][0]
        raise FileError(path, f"point {x:g} {y:g} is outside its {width} x {height} px image; correct it")
    spread = np.linalg.svd(points - points.mean(axis=0), compute_uv=False)
    if spread[1] <= _MIN_SPREAD_RATIO * spread[0]:
        raise FileError(path, "all points lie on one line; spread them over the field of view")
