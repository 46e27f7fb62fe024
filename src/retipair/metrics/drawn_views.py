"""Compare a view that was drawn from a given view (`generate --mode cf2fa` and `fa2cf`) with the true view.

The true view is the other view of the real pair to which the given view belongs.
"""

from dataclasses import dataclass, replace

import numpy as np
from PIL import Image

from retipair.metrics.views import PairViews, PreparedView
from retipair.vision.ridges import MEASURED_AT, correlation, resize_to_reference

SAME_FRAME = 0.95
"""Minimum vesselness correlation at which a given view and a real view count as the same view in the same frame.

In seven real pairs, each real view reached .979 with itself resized to 128 to 1024 px, and .957 with itself saved as
JPEG of quality 75. The correlation was at most .966 after a shift of 1 px at 512, .892 after a shift of 2 px, and .054
with another eye. The correlation of grey levels does not separate these cases: it was up to .988 after enlarging by
1 %, and up to .995 after a shift of 2 px.
"""


@dataclass(frozen=True)
class TrueViewCorrelation:
    """Vesselness correlations with the true view, in [-1, 1].

    drawn_view: the correlation of the drawn view with the true view.
    given_view: the correlation of the given view with the true view. A drawn view whose vessels are exactly those of
    the given view reaches this value.
    mispaired: the correlation of the drawn view with the true view of another eye; None if no other eye is given.
    """

    drawn_view: float
    given_view: float
    mispaired: float | None


def compare_with_truth(
    given_view: np.ndarray, drawn_view: np.ndarray, names: tuple[str, str], real: PairViews, other: PairViews | None
) -> TrueViewCorrelation | None:
    """Compare a drawn view with the true view, or return None if the given view is not that of the real pair.

    The given view and that of the real pair must be the same photograph in the same frame (see `SAME_FRAME`).

    given_view, drawn_view: the views of a generated pair, CF (H, H, 3) or FA (H, H), uint8.
    names: the names of the given and of the drawn view, ("cf", "fa") or ("fa", "cf").
    real: the real pair to which the given view should belong.
    other: a real pair of another eye; None if there is none.
    """
    real_given, true = (getattr(real, name) for name in names)
    given, compared = (
        replace(view, pixels=resize_to_reference(image))
        for view, image in ((real_given, given_view), (true, drawn_view))
    )
    if correlate_vesselness(given, _stored_at(len(given_view), real_given)) < SAME_FRAME:
        return None
    return TrueViewCorrelation(
        drawn_view=correlate_vesselness(compared, true),
        given_view=correlate_vesselness(given, true),
        mispaired=correlate_vesselness(compared, getattr(other, names[1])) if other else None,
    )


def correlate_vesselness(a: PreparedView, b: PreparedView) -> float:
    """Return the Pearson correlation of the vesselness of two views where both are valid, in [-1, 1]; 0 if nowhere."""
    inside = a.inside & b.inside
    return correlation(a.vesselness[inside], b.vesselness[inside]) if inside.any() else 0.0


def _stored_at(size: int, view: PreparedView) -> PreparedView:
    """Return a view with the detail that remains if it is stored at `size` px, as the views of a generated pair are."""
    if size >= MEASURED_AT:
        return view
    small = np.asarray(Image.fromarray(view.pixels).resize((size, size), Image.Resampling.BOX))
    return replace(view, pixels=resize_to_reference(small))
