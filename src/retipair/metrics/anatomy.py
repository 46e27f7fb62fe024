"""Locate the optic disc and the macula of a view from its vessels alone, so that CF and FA are treated alike.

The vessels converge at the disc; the macula is the vessel-free region beside the disc. To find the disc, each
centre-line pixel of a vessel adds its weight ("votes") along the direction of the vessel, on a reduced map of the view.
The sums are highest where vessels of many directions converge (after Hoover and Goldbaum 2003, doi
10.1109/TMI.2003.815900).
"""

from dataclasses import dataclass

import numpy as np
from scipy import ndimage
from skimage.feature import structure_tensor

from retipair.metrics.views import PreparedView

_COARSE = 4  # the vote map is smaller than the view by this factor
_REACH = 40  # px of the vote map: distance up to which a pixel votes along the direction of its vessel
_BLUR = 3.0  # px of the vote map: sigma of the Gaussian that smooths it
# Minimum ratio of the maximum of the vote map to its mean for a disc to be found. Nine of ten rendered views with a
# disc reach it, and one of ten without a disc.
_MIN_PEAK = 2.3
_SECTORS = 8  # number of bins of vessel directions, over 180 degrees
_MAX_WIDTH = 8.0  # px: vessels wider than this have the weight of this width
_DISC_MACULA = (130.0, 240.0)  # px: range of the distance from disc to macula, 3.3 to 6 mm; 190 px in the mean eye
_MAX_VERTICAL = 0.45  # maximum vertical offset of the macula from the disc, as a fraction of their distance
_MIN_AVASCULAR = 13.0  # px: minimum radius of the vessel-free region; the foveal avascular zone is slightly smaller


@dataclass(frozen=True)
class Anatomy:
    """Positions (x, y) of disc and macula in a view 512 px wide, in px; None if not found."""

    disc: tuple[float, float] | None
    macula: tuple[float, float] | None


def anatomy(view: PreparedView) -> Anatomy:
    """Locate the optic disc where vessels converge, then the macula in the vessel-free region beside it."""
    disc = _disc(view)
    return Anatomy(disc, _macula(view, disc) if disc else None)


def _disc(view: PreparedView) -> tuple[float, float] | None:
    if not view.lines.any():
        return None
    votes = _votes(view)
    inside = view.inside[::_COARSE, ::_COARSE][: votes.shape[0], : votes.shape[1]]
    votes = np.where(inside, votes, 0)
    y, x = np.unravel_index(votes.argmax(), votes.shape)
    if votes[y, x] < _MIN_PEAK * votes[inside].mean():
        return None
    return float(x * _COARSE + 1.5), float(y * _COARSE + 1.5)


def _votes(view: PreparedView) -> np.ndarray:
    """Return the vote map, (128, 128) for a view of 512 px.

    Each centre-line pixel votes along the direction of its vessel, with a weight that grows with the vessel width.
    Votes are counted separately for each bin of directions, and the square roots of the counts are added. Thus vessels
    of several directions count more than one long vessel.
    """
    rows, columns = np.nonzero(view.lines)
    weights = np.minimum(view.half_widths, _MAX_WIDTH / 2) ** 2
    down, right = _directions(view)
    steps = np.arange(-_REACH, _REACH + 1)
    y = np.rint(rows[:, None] / _COARSE + down[:, None] * steps).astype(int)
    x = np.rint(columns[:, None] / _COARSE + right[:, None] * steps).astype(int)
    shape = tuple(-(-side // _COARSE) for side in view.lines.shape)
    within = (y >= 0) & (y < shape[0]) & (x >= 0) & (x < shape[1])
    sector = (np.arctan2(down, right) / np.pi * _SECTORS).astype(int)[:, None] % _SECTORS
    place = (sector * shape[0] + y) * shape[1] + x
    weights = np.broadcast_to(weights[:, None], y.shape)
    votes = np.bincount(place[within], weights[within], _SECTORS * shape[0] * shape[1]).reshape(_SECTORS, *shape)
    return np.sqrt(ndimage.gaussian_filter(votes, (0, _BLUR, _BLUR))).sum(axis=0)


def _directions(view: PreparedView) -> tuple[np.ndarray, np.ndarray]:
    """Return the components (down, right) of the unit vector along the vessel at each pixel of its lines, (n,) each."""
    tensor = structure_tensor(view.vessels.astype(np.float32), sigma=4, order="rc")
    rr, rc, cc = (component[view.lines] for component in tensor)
    across = 0.5 * np.arctan2(2 * rc, rr - cc)  # direction of the gradient: 0 is down, pi/2 is right
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
