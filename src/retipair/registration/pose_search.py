"""A first guess without points: vesselness maps correlated over rotations, scales and all shifts.

Masked normalised cross-correlation by FFT (Padfield 2012, doi 10.1109/TIP.2011.2181402). It looks at all vessels at
once and depends on no feature, so its errors are independent of those of `registration.register_features`.
"""

from itertools import product

import numpy as np
from scipy.fft import irfft2, rfft2
from scipy.ndimage import gaussian_filter

from retipair.registration.estimate import to_raw
from retipair.registration.warp import WORK_SIZE, View, inside_field, resample, to_square, vessel_map

_SIDE = 128  # px
_BLUR = 3.0  # px at 512: vessels as wide as the steps between poses
_BRIGHTEST = 99.0  # percentile: brighter vessels count no more
_ANGLES = np.deg2rad(np.arange(-44, 45, 4))
_SCALES = 1.07 ** np.arange(-10, 11)  # 0.51 to 1.97, between the diameters of both fields of view
_LEAST_OVERLAP = 0.25  # of the CF's field
_TO_SMALL = to_square(np.ones((WORK_SIZE, WORK_SIZE), dtype=bool), _SIDE)


def search_pose(cf: View, fa: View) -> np.ndarray:
    """Raw FA px -> raw CF px, (3, 3), a similarity: the pose whose correlation is least likely by chance."""
    fixed, fixed_field = _small(cf)
    moving, moving_field = _small(fa)
    spectra, least = _spectra(fixed, fixed_field), max(1.0, _LEAST_OVERLAP * fixed_field.sum())
    best, most = np.eye(3), -np.inf
    for angle, scale in product(_ANGLES, _SCALES):
        pose = _about_centre(angle, scale)
        posed, field = resample(moving, pose, _SIDE), resample(moving_field, pose, _SIDE)
        evidence, shift = _best_shift(spectra, _spectra(posed, field), least)
        if evidence > most:
            best, most = shift @ pose, evidence
    return to_raw(cf, fa, np.linalg.inv(_TO_SMALL) @ best @ _TO_SMALL)


def _small(view: View) -> tuple[np.ndarray, np.ndarray]:
    """Blurred vesselness of mean 0 and deviation 1 within the field, float32, and the field, bool, (128, 128) each."""
    ridges, inside = vessel_map(view, view.to_work), inside_field(view, view.to_work)
    field = resample(inside, _TO_SMALL, _SIDE)
    if not field.any():
        return np.zeros(field.shape, dtype=np.float32), field
    limited = np.minimum(ridges, np.percentile(ridges[inside], _BRIGHTEST))
    small = resample(gaussian_filter(limited, _BLUR), _TO_SMALL, _SIDE)
    return (small - small[field].mean()) / (small[field].std() + 1e-6), field


def _about_centre(angle: float, scale: float) -> np.ndarray:
    """Rotate by `angle` rad and scale about the centre of the small frame, (3, 3)."""
    cos, sin, centre = scale * np.cos(angle), scale * np.sin(angle), (_SIDE - 1) / 2
    shift = centre * np.array([1 - cos + sin, 1 - cos - sin])
    return np.array([[cos, -sin, shift[0]], [sin, cos, shift[1]], [0, 0, 1]])


def _spectra(ridges: np.ndarray, field: np.ndarray) -> np.ndarray:
    """Transforms of a map within its field, its square, and the field, padded to twice the side, (3, 256, 129)."""
    inside = ridges * field
    return np.asarray(rfft2(np.stack([inside, inside**2, field.astype(np.float32)]), (2 * _SIDE, 2 * _SIDE)))


def _best_shift(fixed: np.ndarray, moving: np.ndarray, least: float) -> tuple[float, np.ndarray]:
    """The highest evidence over all shifts that leave `least` common px, and that shift of the moving map, (3, 3).

    Evidence is Fisher's z, the inverse hyperbolic tangent of the correlation times the root of the common area: large
    correlations of small areas are likely by chance.
    """
    (f, ff, f_field), (m, mm, m_field) = fixed, moving.conj()
    products = np.stack([f_field * m_field, f * m_field, ff * m_field, f_field * m, f_field * mm, f * m])
    n, sum_f, sum_ff, sum_m, sum_mm, sum_fm = irfft2(products, (2 * _SIDE, 2 * _SIDE))
    n = n.clip(1)
    covariance = sum_fm - sum_f * sum_m / n
    variances = (sum_ff - sum_f**2 / n).clip(1e-3) * (sum_mm - sum_m**2 / n).clip(1e-3)
    correlation = (covariance / np.sqrt(variances)).clip(-0.99, 0.99)
    evidence = np.where(n >= least, np.arctanh(correlation) * np.sqrt(n), -np.inf)
    highest = np.unravel_index(int(evidence.argmax()), evidence.shape)
    down, right = (int(at) if at < _SIDE else int(at) - 2 * _SIDE for at in highest)
    return float(evidence[highest]), np.array([[1.0, 0, right], [0, 1, down], [0, 0, 1]])
