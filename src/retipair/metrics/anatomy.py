"""Locate the optic disc and the macula of a view from its vessels, which CF and FA both show.

The vessels converge at the disc; the macula is the vessel-free region beside it.
"""

from dataclasses import dataclass

import numpy as np
from scipy import ndimage
from skimage.feature import structure_tensor
from skimage.morphology import skeletonize

from retipair.metrics.views import PreparedView

_COARSE = 4  # px of a view per px of the vote map
_REACH = 40  # px of the vote map: range of a vessel's votes along its direction
_BLUR = 3.0  # px of the vote map
# Minimum ratio of the highest vote to the mean. It is reached by nine of ten rendered views with a disc, and by one of
# ten without a disc.
_MIN_PEAK = 2.3
_SECTORS = 8  # direction bins over 180 degrees
_MAX_WIDTH = 8.0  # px: wider vessels get no larger weight
_DISC_MACULA = (130.0, 240.0)  # px: range of the distance, 3.3 to 6 mm; 190 px in the mean eye
_MAX_VERTICAL = 0.45  # of that distance
_MIN_AVASCULAR = 13.0  # px: radius of the vessel-free region, slightly larger than the foveal avascular zone


@dataclass(frozen=True)
class Anatomy:
    """Positions (x, y) in px at 512; None if not found."""

    disc: tuple[float, float] | None
    macula: tuple[float, float] | None


def anatomy(view: PreparedView) -> Anatomy:
    """Locate the disc by the convergence of vessels, then the macula by their absence.

    The disc follows Hoover and Goldbaum 2003 (doi 10.1109/TMI.2003.815900).
    """
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
    if votes[y, x] < _MIN_PEAK * votes[inside].mean():
        return None
    return float(x * _COARSE + 1.5), float(y * _COARSE + 1.5)


def _votes(view: PreparedView, lines: np.ndarray) -> np.ndarray:
    """Return the vote map, (128, 128) for 512 px: each centre-line pixel votes along its direction, weighted by width.

    Votes are counted per direction bin and their square roots added, so that one long vessel does not make a peak.
    """
    rows, columns = np.nonzero(lines)
    weights = np.minimum(ndimage.distance_transform_edt(view.vessels)[lines], _MAX_WIDTH / 2) ** 2
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
    """Return the unit vector (down, right) along the vessel at each pixel."""
    rr, rc, cc = structure_tensor(vessels.astype(np.float32), sigma=4, order="rc")
    across = 0.5 * np.arctan2(2 * rc, rr - cc)  # angle of the gradient, from down to right
    return -np.sin(across), np.cos(across)


def _macula(view: PreparedView, disc: tuple[float, float]) -> tuple[float, float] | None:
    clearance = ndimage.distance_transform_edt(~view.vessels)
    rows, columns = np.indices(view.vessels.shape)
    right, down = columns - disc[0], rows - disc[1]
    distance = np.hypot(right, down)
    in_range = (distance >= _DISC_MACULA[0]) & (distance <= _DISC_MACULA[1])
    candidates = in_range & (abs(down) <= _MAX_VERTICAL * distance) & view.inside
    clearance = np.where(candidates, clearance, 0)
    y, x = np.unravel_index(clearance.argmax(), clearance.shape)
    return (float(x), float(y)) if clearance[y, x] >= _MIN_AVASCULAR else None
