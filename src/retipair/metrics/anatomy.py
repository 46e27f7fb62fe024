"""Does a view show an optic disc and a macula where an eye has them? Told by the vessels, which both views show.

The disc is where the vessels meet; the macula lies beside it, where there are none.
"""

from dataclasses import dataclass

import numpy as np
from scipy import ndimage
from skimage.feature import structure_tensor
from skimage.morphology import skeletonize

from retipair.metrics.views import PreparedView

_COARSE = 4  # px of a view to one of the votes'
_REACH = 40  # px of the votes': how far a vessel points
_BLUR = 3.0  # px of the votes'
# A peak of votes this many times their mean is a disc: nine of ten rendered views with one have it, one of ten without.
_MEETING = 2.3
_SECTORS = 8  # directions of a half circle
_WIDEST = 8.0  # px: wider vessels do not weigh more
_ASIDE = (130.0, 240.0)  # px: 3.3 to 6 mm from the disc; the mean eye has 190
_ABOVE_BELOW = 0.45  # of that distance, up or down
_EMPTY = 13.0  # px: radius of a place without vessels, the avascular zone and a little


@dataclass(frozen=True)
class Anatomy:
    """Where they are, (x, y) in px at 512; None where none is found."""

    disc: tuple[float, float] | None
    macula: tuple[float, float] | None


def anatomy(view: PreparedView) -> Anatomy:
    """By the convergence of vessels (Hoover and Goldbaum 2003, doi 10.1109/TMI.2003.815900), then by their absence."""
    disc = _disc(view)
    return Anatomy(disc, _macula(view, disc) if disc else None)


def _disc(view: PreparedView) -> tuple[float, float] | None:
    lines = skeletonize(view.vessels)
    if not lines.any():
        return None
    votes = _votes(view, lines)
    inside = view.inside[::_COARSE, ::_COARSE][: votes.shape[0], : votes.shape[1]]
    votes = np.where(inside, votes, 0)
    y, x = np.unravel_index(votes.argmax(), votes.shape)
    if votes[y, x] < _MEETING * votes[inside].mean():
        return None
    return float(x * _COARSE + 1.5), float(y * _COARSE + 1.5)


def _votes(view: PreparedView, lines: np.ndarray) -> np.ndarray:
    """Every centre-line pixel votes for what lies ahead of it and behind, wide vessels more; (128, 128) of 512 px.

    Votes from eight directions are counted apart and their roots added: a long vessel alone has many of one direction.
    """
    rows, columns = np.nonzero(lines)
    weights = np.minimum(ndimage.distance_transform_edt(view.vessels)[lines], _WIDEST / 2) ** 2
    down, right = _directions(view.vessels)
    steps = np.arange(-_REACH, _REACH + 1)
    y = np.rint(rows[:, None] / _COARSE + down[lines][:, None] * steps).astype(int)
    x = np.rint(columns[:, None] / _COARSE + right[lines][:, None] * steps).astype(int)
    shape = tuple(-(-side // _COARSE) for side in lines.shape)
    within = (y >= 0) & (y < shape[0]) & (x >= 0) & (x < shape[1])
    sector = (np.arctan2(down[lines], right[lines]) / np.pi * _SECTORS).astype(int)[:, None] % _SECTORS
    place = (sector * shape[0] + y) * shape[1] + x
    weights = np.broadcast_to(weights[:, None], y.shape)
    votes = np.bincount(place[within], weights[within], _SECTORS * shape[0] * shape[1]).reshape(_SECTORS, *shape)
    return np.sqrt(ndimage.gaussian_filter(votes, (0, _BLUR, _BLUR))).sum(axis=0)


def _directions(vessels: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The unit vector (down, right) along the vessel at each pixel."""
    rr, rc, cc = structure_tensor(vessels.astype(np.float32), sigma=4, order="rc")
    across = 0.5 * np.arctan2(2 * rc, rr - cc)  # the angle of steepest change, from down to right
    return -np.sin(across), np.cos(across)


def _macula(view: PreparedView, disc: tuple[float, float]) -> tuple[float, float] | None:
    empty = ndimage.distance_transform_edt(~view.vessels)
    rows, columns = np.indices(view.vessels.shape)
    right, down = columns - disc[0], rows - disc[1]
    aside = np.hypot(right, down)
    likely = (aside >= _ASIDE[0]) & (aside <= _ASIDE[1]) & (abs(down) <= _ABOVE_BELOW * aside) & view.inside
    empty = np.where(likely, empty, 0)
    y, x = np.unravel_index(empty.argmax(), empty.shape)
    return (float(x), float(y)) if empty[y, x] >= _EMPTY else None
