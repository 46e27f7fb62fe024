"""What is left of a pair that was changed and came back: by a layout, an autoencoder, or both."""

from dataclasses import dataclass

import numpy as np
from scipy import ndimage

from retipair.data.pair import Pair
from retipair.metrics.consistency import dice
from retipair.metrics.texture import texture
from retipair.metrics.vessels import THIN, widths_along
from retipair.metrics.views import PairViews, PreparedView

NEAR = 2
"""px at 512: how far from a vessel it is looked for."""


@dataclass(frozen=True)
class Fidelity:
    """Of one view, the returned against the original, 512 px wide.

    psnr: dB inside the mask, at the views' own size. vessels: Dice of both views' vessels, in [0, 1]; thin: the same
    within 2 px of the original's vessels under 3 px wide. fine_left: the returned view's share of fine detail in units
    of the original's (Texture.fine_share).
    """

    psnr: float
    vessels: float
    thin: float
    fine_left: float


def fidelity(pair: Pair, before: PairViews, returned: Pair, after: PairViews) -> dict[str, Fidelity]:
    """Of CF and FA."""
    return {
        "cf": _of_view(psnr(pair.cf, returned.cf, pair.mask), before.cf, after.cf),
        "fa": _of_view(psnr(pair.fa, returned.fa, pair.mask), before.fa, after.fa),
    }


def psnr(original: np.ndarray, returned: np.ndarray, mask: np.ndarray) -> float:
    """dB within the mask; inf of equal views, nan of an empty mask."""
    if not mask.any():
        return float("nan")
    error = ((original[mask].astype(np.float64) - returned[mask]) ** 2).mean()
    return float(10 * np.log10(255**2 / error)) if error else float("inf")


def _of_view(decibels: float, before: PreparedView, after: PreparedView) -> Fidelity:
    near = _near_thin(before.vessels)
    share, share_after = (texture(view).fine_share for view in (before, after))
    return Fidelity(
        psnr=decibels,
        vessels=dice(before.vessels, after.vessels),
        thin=dice(before.vessels & near, after.vessels & near),
        fine_left=share_after / share if share else 0.0,
    )


def _near_thin(vessels: np.ndarray) -> np.ndarray:
    """Within NEAR px of thin vessels, (H, W) bool."""
    lines, widths = widths_along(vessels)
    thin = np.zeros_like(vessels)
    thin[lines] = widths < THIN
    return np.asarray(ndimage.distance_transform_edt(~thin) <= NEAR) if thin.any() else thin
