"""Estimate the initial transform without landmarks, by an exhaustive search over rotations, scales and shifts.

The vesselness of both views is compared by masked normalised cross-correlation with FFTs (Padfield 2012, doi
10.1109/TIP.2011.2181402). The search uses all vessels and no features, so its errors are independent of those of
`estimate.register_features`.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from itertools import product

import numpy as np
from scipy.fft import irfft2, rfft2
from scipy.ndimage import gaussian_filter

from retipair.registration.estimate import to_raw
from retipair.registration.warp import WORK_SIZE, View, inside_field, resample, to_square, vessel_map

_SIDE = 128  # px: side of the images that are compared
_BLUR = 3.0  # px in a view 512 px wide: widens the vessels, so that they still overlap halfway between two tested poses
_CLIP_PERCENTILE = 99.0  # vesselness above this percentile is clipped
_ANGLES = np.deg2rad(np.arange(-44, 45, 4))
_SCALES = 1.07 ** np.arange(-10, 11)  # 0.51 to 1.97; at 1, both fields of view have the same diameter
POSES = tuple(product(range(len(_ANGLES)), range(len(_SCALES))))
"""All rotations and scales of the search, as indices."""
_MIN_OVERLAP = 0.25  # of the CF's field of view
_TO_SMALL = to_square(np.ones((WORK_SIZE, WORK_SIZE), dtype=bool), _SIDE)


@dataclass(frozen=True)
class ReducedView:
    """A view in its work frame, reduced to 128 px.

    vesselness: (128, 128) float32, blurred, with a mean of 0 and a standard deviation of 1 in the field of view.
    field: the field of view, (128, 128) bool.
    """

    vesselness: np.ndarray
    field: np.ndarray


@dataclass(frozen=True)
class PoseFit:
    """The best shift of a view at one of the `POSES`.

    evidence: how well the view fits (see `_best_shift`).
    pose: the indices of rotation and scale.
    transform: the transform (3, 3) from px of the moving reduced view to px of the fixed one.
    """

    evidence: float
    pose: tuple[int, int]
    transform: np.ndarray


def search_pose(cf: View, fa: View) -> np.ndarray:
    """Return the similarity transform (3, 3), from raw FA px to raw CF px, with the highest evidence.

    `_best_shift` defines the evidence.
    """
    return raw_transform(cf, fa, best_pose(reduce_view(cf), reduce_view(fa), POSES))


def raw_transform(cf: View, fa: View, fit: PoseFit) -> np.ndarray:
    """Return the transform (3, 3) of a fit from raw FA px to raw CF px."""
    return to_raw(cf, fa, np.linalg.inv(_TO_SMALL) @ fit.transform @ _TO_SMALL)


def best_pose(fixed: ReducedView, moving: ReducedView, poses: Iterable[tuple[int, int]]) -> PoseFit:
    """Return the fit of the moving view with the highest evidence, among some of the `POSES` and all shifts."""
    spectra = _spectra(fixed.vesselness, fixed.field)
    min_overlap = max(1.0, _MIN_OVERLAP * fixed.field.sum())
    best = PoseFit(-np.inf, (0, 0), np.eye(3))
    for angle, scale in poses:
        pose = _about_centre(_ANGLES[angle], _SCALES[scale])
        posed, field = resample(moving.vesselness, pose, _SIDE), resample(moving.field, pose, _SIDE)
        evidence, shift = _best_shift(spectra, _spectra(posed, field), min_overlap)
        if evidence > best.evidence:
            best = PoseFit(evidence, (angle, scale), shift @ pose)
    return best


def reduce_view(view: View) -> ReducedView:
    """Return the vesselness and the field of view of a view, reduced to 128 px."""
    ridges, inside = vessel_map(view, view.to_work), inside_field(view, view.to_work)
    field = resample(inside, _TO_SMALL, _SIDE)
    if not field.any():
        return ReducedView(np.zeros(field.shape, dtype=np.float32), field)
    limited = np.minimum(ridges, np.percentile(ridges[inside], _CLIP_PERCENTILE))
    small = resample(gaussian_filter(limited, _BLUR), _TO_SMALL, _SIDE)
    return ReducedView((small - small[field].mean()) / (small[field].std() + 1e-6), field)


def _about_centre(angle: float, scale: float) -> np.ndarray:
    """Return the transform (3, 3) that rotates by `angle` rad and scales, about the centre of a 128 px image."""
    cos, sin, centre = scale * np.cos(angle), scale * np.sin(angle), (_SIDE - 1) / 2
    shift = centre * np.array([1 - cos + sin, 1 - cos - sin])
    return np.array([[cos, -sin, shift[0]], [sin, cos, shift[1]], [0, 0, 1]])


def _spectra(ridges: np.ndarray, field: np.ndarray) -> np.ndarray:
    """Return the FFTs of vesselness in the field of view, of its square, and of the field itself, (3, 256, 129).

    The images are padded to twice their side, so that shifts do not wrap around.
    """
    inside = ridges * field
    return np.asarray(rfft2(np.stack([inside, inside**2, field.astype(np.float32)]), (2 * _SIDE, 2 * _SIDE)))


def _best_shift(fixed: np.ndarray, moving: np.ndarray, min_overlap: float) -> tuple[float, np.ndarray]:
    """Return (highest evidence, shift (3, 3) that has it) over all shifts of the moving image.

    The evidence of a shift is Fisher's z of its correlation, artanh(r), times the square root of the number of px in
    the overlap. The factor takes into account that a high correlation by chance is more likely in a small overlap.

    fixed, moving: the FFTs of both images (`_spectra`).
    min_overlap: the least number of px in the overlap of both fields of view.
    """
    (f, ff, f_field), (m, mm, m_field) = fixed, moving.conj()
    products = np.stack([f_field * m_field, f * m_field, ff * m_field, f_field * m, f_field * mm, f * m])
    n, sum_f, sum_ff, sum_m, sum_mm, sum_fm = irfft2(products, (2 * _SIDE, 2 * _SIDE))
    n = n.clip(1)
    covariance = sum_fm - sum_f * sum_m / n
    variances = (sum_ff - sum_f**2 / n).clip(1e-3) * (sum_mm - sum_m**2 / n).clip(1e-3)
    correlation = (covariance / np.sqrt(variances)).clip(-0.99, 0.99)
    evidence = np.where(n >= min_overlap, np.arctanh(correlation) * np.sqrt(n), -np.inf)
    highest = np.unravel_index(int(evidence.argmax()), evidence.shape)
    down, right = (int(shift) if shift < _SIDE else int(shift) - 2 * _SIDE for shift in highest)
    return float(evidence[highest]), np.array([[1.0, 0, right], [0, 1, down], [0, 0, 1]])
