"""How fine a view's detail is: too smooth is what models get wrong first. Compare only with the user's own real views.

Cameras differ by a hundredfold (in the Laplacian's variance), so no figure here is good or bad by itself.
"""

from dataclasses import dataclass
from itertools import pairwise

import numpy as np
from scipy import ndimage
from skimage.restoration import estimate_sigma

from retipair.metrics.views import PreparedView

WINDOW = 256
"""px: spectrum and noise are those of the middle, which is field in every view."""
BANDS = np.geomspace(4, 120, 17)
"""Cycles over WINDOW: the edges of 16 rings, periods from 64 to about 2 px."""
_FINE = 32.0  # cycles: periods of 8 px, what the widest vessels measure, and less
_ROUNDING = 1 / (12 * 255**2)  # to 8 bits: a flat view has that much power in every frequency


@dataclass(frozen=True)
class Texture:
    """Of one view, 512 px wide.

    slope: of log power over log frequency, 4 to 120 cycles over the middle 256 px; real CF about -3.3, FA -3.2 +- .7.
    fine_share: share of the power between those that has periods under 8 px, in [0, 1]; smoothness lowers it.
    laplacian_variance: of grey levels, inside the field; a focus measure, and of noise too.
    noise: sigma in grey levels, from the finest wavelets (Donoho and Johnstone 1994, doi 10.1093/biomet/81.3.425).
    """

    slope: float
    fine_share: float
    laplacian_variance: float
    noise: float


def texture(view: PreparedView) -> Texture:
    power, frequencies, pixels = _spectrum(view.grey / 255.0)
    rings = radial_power(view.grey / 255.0)
    centres = np.sqrt(BANDS[:-1] * BANDS[1:])
    wanted = (frequencies >= BANDS[0]) & (frequencies < BANDS[-1])
    inside = view.inside if view.inside.any() else np.ones_like(view.inside)
    return Texture(
        slope=float(np.polyfit(np.log10(centres), np.log10(rings), 1)[0]),
        fine_share=float(power[wanted & (frequencies >= _FINE)].sum() / power[wanted].sum()),
        laplacian_variance=float(ndimage.laplace(view.grey.astype(np.float32))[inside].var()),
        noise=float(estimate_sigma(pixels * 255.0)) if np.ptp(pixels) else 0.0,
    )


def radial_power(view: np.ndarray) -> np.ndarray:
    """Mean power over each ring of BANDS, (16,) float64, > 0; of a view (H, W) in [0, 1], at least 256 px wide.

    Of its middle, through a Hann window, the mean removed.
    """
    power, frequencies, _ = _spectrum(view)
    rings = ((frequencies >= low) & (frequencies < high) for low, high in pairwise(BANDS))
    return np.array([power[ring].mean() for ring in rings])


def _spectrum(view: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Power and frequency in cycles, (WINDOW, WINDOW) each, and the middle that they are of."""
    top, left = ((side - WINDOW) // 2 for side in view.shape)
    middle = view[top : top + WINDOW, left : left + WINDOW]
    hann = np.outer(np.hanning(WINDOW), np.hanning(WINDOW))
    power = abs(np.fft.fft2((middle - middle.mean()) * hann)) ** 2 / (hann**2).sum() + _ROUNDING
    cycles = np.fft.fftfreq(WINDOW, d=1 / WINDOW)
    return power, np.hypot(cycles[:, None], cycles[None, :]), middle
