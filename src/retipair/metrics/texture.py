"""Measure the fine detail of a view, because generated images are often too smooth.

Compare values only with real views of the same camera: between cameras, the variance of the Laplacian differs by a
factor of up to 100.
"""

from dataclasses import dataclass

import numpy as np
from scipy import ndimage
from skimage.restoration import estimate_sigma

from retipair.metrics.spectrum import BANDS, centre, frequencies
from retipair.metrics.views import PreparedView

_FINE = 32.0  # cycles per WINDOW: lowest frequency of fine detail, a period of 8 px (the width of wide vessels)


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
    centres = np.sqrt(BANDS[:-1] * BANDS[1:])
    in_range = (frequencies() >= BANDS[0]) & (frequencies() < BANDS[-1])
    fine = in_range & (frequencies() >= _FINE)
    pixels = centre(view.grey / 255.0)
    inside = view.inside if view.inside.any() else np.ones_like(view.inside)
    return Texture(
        slope=float(np.polyfit(np.log10(centres), np.log10(view.rings), 1)[0]),
        fine_share=float(view.power[fine].sum() / view.power[in_range].sum()),
        laplacian_variance=float(ndimage.laplace(view.grey.astype(np.float32))[inside].var()),
        noise=float(estimate_sigma(pixels * 255.0)) if np.ptp(pixels) else 0.0,
    )
