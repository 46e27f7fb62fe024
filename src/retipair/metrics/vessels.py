"""Measure the vessel tree of a view: density, width, branching and tortuosity."""

from dataclasses import dataclass

import numpy as np

from retipair.metrics.skeleton import branch_lengths
from retipair.metrics.views import PreparedView

THIN, WIDE = 3.0, 6.0
"""Limits of the width of thin, medium and wide vessels, px in a view 512 px wide.

Vessels narrower than THIN count as thin, vessels of WIDE or more as wide, and vessels in between as medium. In a
45-degree field of view, THIN is 75 um on the retina, and WIDE is 150 um.
"""
_MIN_CHORD = 10.0  # px: shorter branches are left out, because the pixel grid makes them appear tortuous
_BOXES = 2 ** np.arange(1, 8)  # px: sides of the boxes of box counting


@dataclass(frozen=True)
class VesselTree:
    """Vessel metrics of one view 512 px wide. All are 0 if the view has no vessels.

    density_thin, density_medium, density_wide: the fraction of the field of view that is covered by vessels of this
    calibre (see THIN), in [0, 1].
    fractal_dimension: the dimension of the centre lines by box counting, with boxes of 2 to 128 px, in [0, 2] (Mainster
    1990, doi 10.1038/eye.1990.33).
    tortuosity: the ratio of arc length to chord length of a branch, averaged over branches with the arc length as
    weight, >= 1 (Hart et al. 1999, doi 10.1016/S1386-5056(98)00163-4). 0 if no branch is long enough to measure.
    """

    density_thin: float
    density_medium: float
    density_wide: float
    fractal_dimension: float
    tortuosity: float


def vessel_tree(view: PreparedView) -> VesselTree:
    widths = widths_along(view)
    if not len(widths):
        return VesselTree(0.0, 0.0, 0.0, 0.0, 0.0)
    area = view.inside.sum()
    thin, wide = widths < THIN, widths >= WIDE
    return VesselTree(
        density_thin=float(widths[thin].sum() / area),
        density_medium=float(widths[~thin & ~wide].sum() / area),
        density_wide=float(widths[wide].sum() / area),
        fractal_dimension=fractal_dimension(view.lines),
        tortuosity=tortuosity(view.lines),
    )


def widths_along(view: PreparedView) -> np.ndarray:
    """Return the vessel width in px at each pixel of the centre lines of a view, (n,)."""
    return 2 * view.half_widths - 1  # so that a single pixel is 1 px wide


def fractal_dimension(lines: np.ndarray) -> float:
    """Return the box-counting dimension of centre lines (H, W) bool, which must not be empty."""
    boxes, counts = np.pad(lines, [(0, -side % _BOXES[-1]) for side in lines.shape]), []
    for _ in _BOXES:  # each box has twice the side of the boxes before
        boxes = boxes[::2] | boxes[1::2]
        boxes = boxes[:, ::2] | boxes[:, 1::2]
        counts.append(boxes.sum())
    return -float(np.polyfit(np.log(_BOXES), np.log(counts), 1)[0])


def tortuosity(lines: np.ndarray) -> float:
    """Return the tortuosity of centre lines (H, W) bool; 0 if no branch has a chord of 10 px or more."""
    arcs, chords = branch_lengths(lines)
    long = chords >= _MIN_CHORD
    return float(np.average(arcs[long] / chords[long], weights=arcs[long])) if long.any() else 0.0
