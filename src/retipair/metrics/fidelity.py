"""Measure how similar a reconstructed pair is to the original.

A pair is reconstructed by joining its views in a layout and splitting them again. An autoencoder may encode and decode
the joint image in between.
"""

from dataclasses import dataclass

import numpy as np

from retipair.data.pair import Pair
from retipair.metrics.consistency import dice
from retipair.metrics.texture import texture
from retipair.metrics.vessels import THIN, widths_along
from retipair.metrics.views import PairViews, PreparedView
from retipair.vision.distance import is_farther

NEAR = 2
"""px in a view 512 px wide: thin vessels are compared in the pixels up to this distance from their centre lines."""


@dataclass(frozen=True)
class Fidelity:
    """Similarity of one reconstructed view to the original view, measured at a width of 512 px.

    psnr: the PSNR inside the mask, in dB, at the original size of the views.
    vessels: the Dice coefficient of the vessel masks of the original and the reconstructed view, in [0, 1].
    thin: the same Dice coefficient, restricted to pixels near the centre lines of thin vessels of the original.
    fine_left: `Texture.fine_share` of the reconstruction divided by that of the original.
    """

    psnr: float
    vessels: float
    thin: float
    fine_left: float


def fidelity(pair: Pair, before: PairViews, returned: Pair, after: PairViews) -> dict[str, Fidelity]:
    """Return the fidelity of the reconstructed CF ("cf") and FA ("fa").

    pair, returned: the original and the reconstructed pair.
    before, after: the same two pairs, prepared for the metrics.
    """
    return {
        "cf": _view_fidelity(psnr(pair.cf, returned.cf, pair.mask), before.cf, after.cf),
        "fa": _view_fidelity(psnr(pair.fa, returned.fa, pair.mask), before.fa, after.fa),
    }


def psnr(original: np.ndarray, returned: np.ndarray, mask: np.ndarray) -> float:
    """Return the PSNR of two views inside the mask, in dB; infinity for equal views, NaN for an empty mask."""
    if not mask.any():
        return float("nan")
    error = ((original[mask].astype(np.float64) - returned[mask]) ** 2).mean()
    return float(10 * np.log10(255**2 / error)) if error else float("inf")


def _view_fidelity(decibels: float, before: PreparedView, after: PreparedView) -> Fidelity:
    near = _near_thin(before)
    fine, fine_after = (texture(view).fine_share for view in (before, after))
    return Fidelity(
        psnr=decibels,
        vessels=dice(before.vessels, after.vessels),
        thin=dice(before.vessels & near, after.vessels & near),
        fine_left=fine_after / fine if fine else 0.0,
    )


def _near_thin(view: PreparedView) -> np.ndarray:
    """Return the pixels within NEAR px of the centre lines of thin vessels, (H, W) bool."""
    thin = np.zeros_like(view.vessels)
    thin[view.lines] = widths_along(view) < THIN
    return ~is_farther(~thin, NEAR)
