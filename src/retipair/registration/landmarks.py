"""Matching points placed by hand: read, and refused before they can misalign anything."""

import re
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from retipair.runtime.errors import UserError
from retipair.runtime.text_files import read_lines

_FEWEST = 4  # what a homography takes
_FLATTEST = 0.01  # of the spread along the points' main axis


@dataclass(frozen=True)
class Landmarks:
    """Matching points in raw px, (N, 2) x, y in each view."""

    cf: np.ndarray
    fa: np.ndarray


def read_landmarks(cf_path: Path, fa_path: Path, cf_shape: tuple[int, ...], fa_shape: tuple[int, ...]) -> Landmarks:
    """The points of both files, for views of these shapes (H, W, ...).

    Raises UserError, naming the file, for unequal or too few points, points outside the image or on one line.
    """
    landmarks = Landmarks(read_points(cf_path), read_points(fa_path))
    if len(landmarks.cf) != len(landmarks.fa):
        counts = f"{len(landmarks.cf)} points but {fa_path.name} has {len(landmarks.fa)}"
        raise UserError(f"{cf_path}: {counts}; line n of both must be the same place")
    for path, points, shape in ((cf_path, landmarks.cf, cf_shape), (fa_path, landmarks.fa, fa_shape)):
        _check(path, points, shape)
    return landmarks


def read_points(path: Path) -> np.ndarray:
    """Points of a text file, two numbers a line, -> (N, 2) float64 px.

    Numbers are separated by blanks, tabs, semicolons or commas; where commas stand within numbers they are decimal
    commas. Raises UserError for other lines, and where a comma may mark decimals or thousands.
    """
    separator, first, text = read_lines(path)
    places = [f"{path}, line {number}" for number, _ in enumerate(text.split("\n"), start=first)]
    lines = [line.replace(";", " ") for line in text.split("\n")]
    if separator != "," and any(map(_DECIMAL_COMMAS.fullmatch, lines)):
        lines = _with_decimal_points(lines, places)
    else:
        lines = [line.replace(",", " ") for line in lines]
    rows = [_point(line.split(), where) for line, where in zip(lines, places, strict=True) if line.split()]
    return np.array(rows, dtype=np.float64).reshape(-1, 2)


_DECIMAL_COMMAS = re.compile(r"\s*[-+]?\d+,\d+\s+[-+]?\d+,\d+\s*", re.ASCII)
_NO_THOUSANDS = re.compile(r"(^|\s)[-+]?(0\d*|\d{4,}),\d|,(\d{1,2}|\d{4,})(\s|$)", re.ASCII)


def _with_decimal_points(lines: list[str], places: list[str]) -> list[str]:
    """Replace decimal commas. Raises UserError where they may mark thousands, or where there are decimal points too."""
    for line, where in zip(lines, places, strict=True):
        if "." in line:
            raise UserError(f"{where}: has a decimal point, other lines have decimal commas; use points everywhere")
    if not any(map(_NO_THOUSANDS.search, lines)):
        where = next(place for line, place in zip(lines, places, strict=True) if "," in line)
        raise UserError(f"{where}: its commas may mark decimals or thousands; write numbers with a decimal point")
    return [line.replace(",", ".") for line in lines]


def _point(words: list[str], where: str) -> list[float]:
    try:
        x, y = map(float, words)
    except ValueError:
        raise UserError(f"{where}: {' '.join(words)!r} is no point; write two numbers, x y, a line") from None
    if not np.isfinite([x, y]).all():
        raise UserError(f"{where}: {' '.join(words)!r} is no place in an image; correct or remove it")
    return [x, y]


def _check(path: Path, points: np.ndarray, shape: tuple[int, ...]) -> None:
    if len(points) < _FEWEST:
        raise UserError(f"{path}: {len(points)} points; place at least {_FEWEST}, better 10 or more")
    if points.min() >= 0 and points.max() <= 1:
        raise UserError(f"{path}: all points lie within the first pixel; write px, not shares of the image's size")
    height, width = shape[:2]
    # Up to the far edge, since some tools count pixels from 1.
    outside = (points < -0.5).any(axis=1) | (points > [width, height]).any(axis=1)
    if outside.any():
        x, y = points[outside][0]
        raise UserError(f"{path}: point {x:g} {y:g} is outside its {width} x {height} px image; correct it")
    spread = np.linalg.svd(points - points.mean(axis=0), compute_uv=False)
    if spread[1] <= _FLATTEST * spread[0]:
        raise UserError(f"{path}: all points lie on one line; spread them over the field of view")
