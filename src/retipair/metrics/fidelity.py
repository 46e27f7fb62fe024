"""Measure how well a layout, an autoencoder, or both reconstruct a pair."""

from dataclasses import dataclass

import numpy as np
from scipy import ndimage

from retipair.data.pair import Pair
from retipair.metrics.consistency import dice
from retipair.metrics.texture import texture
from retipair.metrics.vessels import THIN, widths_along
from retipair.metrics.views import PairViews, PreparedView

NEAR = 2
"""px at 512: radius around a thin vessel in which it is compared."""


@dataclass(frozen=True)
class Fidelity:
    """Fidelity of one reconstructed view to the original, 512 px wide.

    psnr: dB inside the mask, at the views' own size. vessels: Dice of the two vessel masks, in [0, 1]; thin: the same,
    but only over pixels within 2 px of a vessel of the original that is narrower than 3 px. fine_left:
    Texture.fine_share of the reconstruction divided by that of the original.
    """

    psnr: float
    vessels: float
    thin: float
    fine_left: float


def fidelity(pair: Pair, before: PairViews, returned: Pair, after: PairViews) -> dict[str, Fidelity]:
    """Return the fidelity of CF and FA."""
    return {
        "cf": _view_fidelity(psnr(pair.cf, returned.cf, pair.mask), before.cf, after.cf),
        "fa": _view_fidelity(psnr(pair.fa, returned.fa, pair.mask), before.fa, after.fa),
    }


def psnr(original: np.ndarray, returned: np.ndarray, mask: np.ndarray) -> float:
    """Return the PSNR within the mask, dB; infinity for equal views, NaN for an empty mask."""
    if not mask.any():
        return float("nan")
    error = ((original[mask].astype(np.float64) - returned[mask]) ** 2).mean()
    return float(10 * np.log10(255**2 / error)) if error else float("inf")


def _view_fidelity(decibels: float, before: PreparedView, after: PreparedView) -> Fidelity:
    near = _near_thin(before.vessels)
    fine, fine_after = (texture(view).fine_share for view in (before, after))
    return Fidelity(
        psnr=decibels,
        vessels=dice(before.vessels, after.vessels),
        thin=dice(before.vessels & near, after.vessels & near),
        fine_left=fine_after / fine if fine else 0.0,
    )


def _near_thin(vessels: np.ndarray) -> np.ndarray:
    """Return the mask (H, W) bool of the pixels within NEAR px of thin vessels."""
    lines, widths = widths_along(vessels)
    thin = np.zeros_like(vessels)
    thin[lines] = widths < THIN
    return np.asarray(ndimage.distance_transform_edt(~thin) <= NEAR) if thin.any() else thin
