"""Measure the fine detail of a view, because generated images are often too smooth.

Compare values only with real views of the same camera: between cameras, the variance of the Laplacian differs by a
factor of up to 100.
"""

from dataclasses import dataclass
from itertools import pairwise

import numpy as np
from scipy import ndimage
from skimage.restoration import estimate_sigma

from retipair.metrics.views import PreparedView

WINDOW = 256
"""px: side of the square at the centre of a view in which spectrum and noise are measured."""
BANDS = np.geomspace(4, 120, 17)
"""Limits of 16 rings of spatial frequency, in cycles per WINDOW. The periods range from 64 to about 2 px."""
_FINE = 32.0  # cycles per WINDOW: lowest frequency of fine detail, a period of 8 px (the width of wide vessels)
_ROUNDING = 1 / (12 * 255**2)  # power of the noise from rounding to 8 bits, equal at all frequencies


@dataclass(frozen=True)
class Texture:
    """Fine detail of one view 512 px wide.

    slope: the slope of log power over log frequency from 4 to 120 cycles per 256 px. It is about -3.3 in real CF, and
    -3.2 +- .7 in real FA.
    fine_share: the power at periods of 8 px or less, divided by the power at all frequencies from 4 to 120 cycles per
    256 px; in [0, 1]. It is lower in smooth images.
    laplacian_variance: the variance of the Laplacian of the grey levels inside the field of view, except near its edge.
    It measures focus, but noise increases it too.
    noise: the standard deviation of the noise in grey levels, from the finest wavelet coefficients (Donoho and
    Johnstone 1994, doi 10.1093/biomet/81.3.425).
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
    """Return the mean spectral power of a view in each frequency ring of BANDS, (16,) float64, > 0.

    The power is measured in the central square of WINDOW px, after subtracting the mean and applying a Hann window.

    view: grey levels (H, W) in [0, 1]; H and W are at least WINDOW.
    """
    power, frequencies, _ = _spectrum(view)
    rings = ((frequencies >= low) & (frequencies < high) for low, high in pairwise(BANDS))
    return np.array([power[ring].mean() for ring in rings])


def _spectrum(view: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return the power spectrum of the central square, its frequencies, and the square, (WINDOW, WINDOW) each."""
    top, left = ((side - WINDOW) // 2 for side in view.shape)
    middle = view[top : top + WINDOW, left : left + WINDOW]
    hann = np.outer(np.hanning(WINDOW), np.hanning(WINDOW))
    power = abs(np.fft.fft2((middle - middle.mean()) * hann)) ** 2 / (hann**2).sum() + _ROUNDING
    cycles = np.fft.fftfreq(WINDOW, d=1 / WINDOW)
    return power, np.hypot(cycles[:, None], cycles[None, :]), middle
