"""Measure the power of the spatial frequencies at the centre of a view."""

from functools import cache
from itertools import pairwise

import numpy as np

WINDOW = 256
"""px: side of the square at the centre of a view in which spectrum and noise are measured."""
BANDS = np.geomspace(4, 120, 17)
"""Limits of 16 rings of spatial frequency, in cycles per WINDOW. The periods range from 64 to about 2 px."""
_ROUNDING = 1 / (12 * 255**2)  # power of the noise from rounding to 8 bits, equal at all frequencies


def centre(view: np.ndarray) -> np.ndarray:
    """Return the central square (WINDOW, WINDOW) of a view (H, W); H and W are at least WINDOW."""
    top, left = ((side - WINDOW) // 2 for side in view.shape)
    return view[top : top + WINDOW, left : left + WINDOW]


def power_spectrum(view: np.ndarray) -> np.ndarray:
    """Return the power at each of the `frequencies` in the central square, (WINDOW, WINDOW) float64, > 0.

    The mean is subtracted first, and a Hann window applied.

    view: grey levels (H, W) in [0, 1]; H and W are at least WINDOW.
    """
    middle = centre(view)
    hann = np.outer(np.hanning(WINDOW), np.hanning(WINDOW))
    power = abs(np.fft.fft2((middle - middle.mean()) * hann)) ** 2 / (hann**2).sum() + _ROUNDING
    return np.asarray(power)


def radial_power(power: np.ndarray) -> np.ndarray:
    """Return the mean of a `power_spectrum` in each frequency ring of BANDS, (16,) float64, > 0."""
    return np.array([power[ring].mean() for ring in _rings()])


@cache
def frequencies() -> np.ndarray:
    """Return the frequencies of `power_spectrum`, in cycles per WINDOW, (WINDOW, WINDOW)."""
    cycles = np.fft.fftfreq(WINDOW, d=1 / WINDOW)
    return np.hypot(cycles[:, None], cycles[None, :])


@cache
def _rings() -> tuple[np.ndarray, ...]:
    return tuple((frequencies() >= low) & (frequencies() < high) for low, high in pairwise(BANDS))
