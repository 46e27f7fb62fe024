"""Matching points placed by hand: read, and refused before they can misalign anything."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from retipair.errors import UserError

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
    """Points of a text file, "x y" or "x,y" a line, -> (N, 2) float64 px. Raises UserError otherwise."""
    rows = []
    for number, line in enumerate(read_text(path).splitlines(), start=1):
        if words := line.replace(",", " ").replace(";", " ").split():
            rows.append(_point(words, where=f"{path}, line {number}"))
    return np.array(rows, dtype=np.float64).reshape(-1, 2)


def read_text(path: Path) -> str:
    """A text file in UTF-8, with or without a byte order mark. Raises UserError, naming it, otherwise."""
    try:
        return path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError:
        raise UserError(f"{path}: not text in UTF-8; save it again as UTF-8") from None


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
    height, width = shape[:2]
    # Up to the far edge, since some tools count pixels from 1.
    outside = (points < -0.5).any(axis=1) | (points > [width, height]).any(axis=1)
    if outside.any():
        x, y = points[outside][0]
        raise UserError(f"{path}: point {x:g} {y:g} is outside its {width} x {height} px image; correct it")
    spread = np.linalg.svd(points - points.mean(axis=0), compute_uv=False)
    if spread[1] <= _FLATTEST * spread[0]:
        raise UserError(f"{path}: all points lie on one line; spread them over the field of view")
