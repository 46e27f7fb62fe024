"""Measure the fine detail of a view: generated images are often too smooth.

Cameras differ by a factor of 100 (in the variance of the Laplacian), so compare values only with real views of the same
camera.
"""

from dataclasses import dataclass
from itertools import pairwise

import numpy as np
from scipy import ndimage
from skimage.restoration import estimate_sigma

from retipair.metrics.views import PreparedView

WINDOW = 256
"""px: side of the central square in which spectrum and noise are measured; it lies within every field of view."""
BANDS = np.geomspace(4, 120, 17)
"""Edges of 16 frequency rings, cycles per WINDOW: periods from 64 to about 2 px."""
_FINE = 32.0  # cycles per WINDOW: fine detail has periods of at most 8 px, the width of the widest vessels
_ROUNDING = 1 / (12 * 255**2)  # power of 8-bit rounding noise, the same at every frequency


@dataclass(frozen=True)
class Texture:
    """Texture of one view, 512 px wide.

    slope: of log power over log frequency, 4 to 120 cycles per 256 px; real CF about -3.3, FA -3.2 +- .7.
    fine_share: fraction of the power in that range with periods under 8 px, in [0, 1]; lower in smooth images.
    laplacian_variance: of grey levels, inside the field of view; a focus measure that noise raises too.
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
    in_range = (frequencies >= BANDS[0]) & (frequencies < BANDS[-1])
    inside = view.inside if view.inside.any() else np.ones_like(view.inside)
    return Texture(
        slope=float(np.polyfit(np.log10(centres), np.log10(rings), 1)[0]),
        fine_share=float(power[in_range & (frequencies >= _FINE)].sum() / power[in_range].sum()),
        laplacian_variance=float(ndimage.laplace(view.grey.astype(np.float32))[inside].var()),
        noise=float(estimate_sigma(pixels * 255.0)) if np.ptp(pixels) else 0.0,
    )


def radial_power(view: np.ndarray) -> np.ndarray:
    """Return the mean power in each ring of BANDS, (16,) float64, > 0, of a view (H, W) in [0, 1], 256 px or larger.

    The mean is subtracted from the central WINDOW px, and a Hann window applied.
    """
    power, frequencies, _ = _spectrum(view)
    rings = ((frequencies >= low) & (frequencies < high) for low, high in pairwise(BANDS))
    return np.array([power[ring].mean() for ring in rings])


def _spectrum(view: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return power, frequency in cycles and the central crop they belong to, (WINDOW, WINDOW) each."""
    top, left = ((side - WINDOW) // 2 for side in view.shape)
    middle = view[top : top + WINDOW, left : left + WINDOW]
    hann = np.outer(np.hanning(WINDOW), np.hanning(WINDOW))
    power = abs(np.fft.fft2((middle - middle.mean()) * hann)) ** 2 / (hann**2).sum() + _ROUNDING
    cycles = np.fft.fftfreq(WINDOW, d=1 / WINDOW)
    return power, np.hypot(cycles[:, None], cycles[None, :]), middle
