"""Refine a registration by aligning the vessels of both views, without moving far from the landmarks.

The *initial transform* maps raw FA px to raw CF px. With it, both views are resampled to a common square of 512 px, the
*refinement frame*. A *correction* is a homography (3, 3) that then moves the FA within this frame, so that the vessels
of the FA fit the vessels of the CF better.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property

import cv2
import numpy as np
from scipy.optimize import minimize

from retipair.registration.estimate import LANDMARK_INLIER_PX, is_plausible
from retipair.registration.landmarks import Landmarks
from retipair.registration.warp import (
    DETAIL_RATIO,
    WORK_CORNERS,
    WORK_SIZE,
    View,
    common_square,
    inside_field,
    reprojection_errors,
    transform_points,
    vessel_map,
)
from retipair.vision.ridges import correlation

_MAX_LANDMARK_PX = 3.8  # in a view 512 px wide: a result of ECC with a larger median landmark error is not accepted
_MIN_SIGMA_PX = 0.5  # least assumed scatter of landmarks; a smaller estimate from few landmarks is due to chance
_INDEPENDENT_PIXELS = 700  # assumed number of independent samples in the correlation of the vesselness maps
_BLURS = (8.0, 4.0, 2.0, 1.0)  # sigma, px, from coarse to fine; the first is as wide as a large landmark error


def refine(cf: View, fa: View, fa_to_cf: np.ndarray, landmarks: Landmarks | None) -> np.ndarray:
    """Refine the transform `fa_to_cf` by aligning the vessels. Return it unchanged (up to rounding) if that fails.

    ECC (Evangelidis and Psarakis 2008, doi 10.1109/TPAMI.2008.113) runs on vesselness that is blurred by 8, 4, 2 and
    1 px. A correction is accepted if it raises the score: the correlation of the unblurred vesselness minus the
    landmark cost (see `_make_objective`). Without the landmark cost, a wrong homography can have the highest score if
    the dye fills few vessels.

    A second method is used if the median landmark error after ECC exceeds 3.8 px in a view 512 px wide, or if the
    landmark cost prevents all corrections. The score is then maximised over the shifts of the four frame corners (see
    `_optimize_corners`).

    fa_to_cf: the initial transform (3, 3), from raw FA px to raw CF px.
    landmarks: the points placed by hand, matches that are used in their place, or None. With None, the score is the
        correlation.
    """
    cf_to_frame = _refinement_frame(cf, fa, fa_to_cf)
    fa_to_frame = cf_to_frame @ fa_to_cf
    both = inside_field(cf, cf_to_frame) & inside_field(fa, fa_to_frame)
    maps = _VesselMaps(vessel_map(cf, cf_to_frame), vessel_map(fa, fa_to_frame), both)
    if landmarks is None:
        return _compose(_refine_coarse_to_fine(maps, maps.correlation), cf_to_frame, fa_to_frame)
    in_frame = Landmarks(transform_points(cf_to_frame, landmarks.cf), transform_points(fa_to_frame, landmarks.fa))
    score = _make_objective(maps, in_frame)
    correction = _refine_coarse_to_fine(maps, score)
    refined = _compose(correction, cf_to_frame, fa_to_frame)
    common = common_square(cf, fa, refined, WORK_SIZE)
    limit = _MAX_LANDMARK_PX / common[0, 0]  # raw CF px
    prevented = _is_identity(correction) and not _is_identity(_refine_coarse_to_fine(maps, maps.correlation))
    if not prevented and np.median(reprojection_errors(refined, landmarks)) <= limit:
        return refined
    return _compose(_optimize_corners(score, correction, in_frame, limit * cf_to_frame[0, 0]), cf_to_frame, fa_to_frame)


def _refinement_frame(cf: View, fa: View, fa_to_cf: np.ndarray) -> np.ndarray:
    """Return the transform (3, 3) from raw CF px to the refinement frame of 512 px.

    The frame is the square around the field of view of the CF. If the FA shows a magnified part of the CF, the frame is
    the square around the common field of view instead.
    """
    common = common_square(cf, fa, fa_to_cf, WORK_SIZE)
    return common if common[0, 0] > DETAIL_RATIO * cf.to_work[0, 0] else cf.to_work


_Score = Callable[[np.ndarray], float]
"""A function that returns the score of a correction (3, 3). A higher score is better."""


@dataclass(frozen=True)
class _VesselMaps:
    """The vesselness of both views in the refinement frame.

    fixed: the vesselness of the CF, (512, 512) float32.
    moving: the vesselness of the FA after the initial transform, (512, 512) float32.
    both: the common field of view without its rim, (512, 512) bool.
    """

    fixed: np.ndarray
    moving: np.ndarray
    both: np.ndarray

    def correlation(self, correction: np.ndarray) -> float:
        """Apply `correction` (3, 3) to the map of the FA, and return the correlation of both maps, [-1, 1]."""
        moved = cv2.warpPerspective(self.moving, correction, (WORK_SIZE, WORK_SIZE))
        return correlation(self._fixed_valid, moved[self.both]) if self.both.any() else 0.0

    @cached_property
    def _fixed_valid(self) -> np.ndarray:
        return self.fixed[self.both]


def _compose(correction: np.ndarray, cf_to_frame: np.ndarray, fa_to_frame: np.ndarray) -> np.ndarray:
    """Return the transform (3, 3) from raw FA px to raw CF px that results from a correction.

    correction: the homography (3, 3) that moves the FA within the refinement frame.
    cf_to_frame: the transform (3, 3) from raw CF px to the refinement frame.
    fa_to_frame: the transform (3, 3) from raw FA px to the refinement frame: the initial transform, then `cf_to_frame`.
    """
    fa_to_cf = np.linalg.inv(cf_to_frame) @ correction @ fa_to_frame
    return np.asarray(fa_to_cf / fa_to_cf[2, 2])


def _make_objective(maps: _VesselMaps, landmarks: Landmarks) -> _Score:
    """Return a function that scores corrections: the correlation of the vesselness minus the landmark cost.

    The score is a log-likelihood, divided by _INDEPENDENT_PIXELS. The log-likelihood of the vesselness is modelled as
    the correlation times _INDEPENDENT_PIXELS. That of the landmarks is minus the sum of their squared errors, divided
    by twice the variance of the errors before refinement. Only landmarks that agree with the initial transform are
    used.

    landmarks: the landmarks in px of the refinement frame, those of the FA after the initial transform.
    """
    is_inlier = reprojection_errors(np.eye(3), landmarks) <= LANDMARK_INLIER_PX
    inliers = Landmarks(landmarks.cf[is_inlier], landmarks.fa[is_inlier])

    def squared_errors(correction: np.ndarray) -> float:
        return float((reprojection_errors(correction, inliers) ** 2).sum())

    # The errors of n points have 2 n - 8 degrees of freedom, because the homography was fitted to the points.
    variance = max(squared_errors(np.eye(3)) / max(2 * int(is_inlier.sum()) - 8, 2), _MIN_SIGMA_PX**2)
    return lambda matrix: maps.correlation(matrix) - squared_errors(matrix) / (2 * variance * _INDEPENDENT_PIXELS)


def _refine_coarse_to_fine(maps: _VesselMaps, score: _Score) -> np.ndarray:
    """Run ECC from coarse to fine. Return the correction (3, 3) with the highest score; it may be the identity."""
    best, highest = np.eye(3), score(np.eye(3))
    for blur in _BLURS:
        correction = _ecc(maps, best, blur)
        if correction is not None and score(correction) > highest:
            best, highest = correction, score(correction)
    return best


def _is_identity(correction: np.ndarray) -> bool:
    return np.array_equal(correction, np.eye(3))


def _ecc(maps: _VesselMaps, start: np.ndarray, blur: float) -> np.ndarray | None:
    """Run ECC on blurred maps. Return the correction (3, 3), or None if ECC fails or the correction is implausible.

    start: the correction (3, 3) from which ECC starts.
    blur: the sigma of the Gaussian blur, px.
    """
    fixed, moving = (cv2.GaussianBlur(ridges, (0, 0), blur) for ridges in (maps.fixed, maps.moving))
    backward = np.linalg.inv(start).astype(np.float32)  # OpenCV's transform maps fixed to moving px
    criteria = (cv2.TERM_CRITERIA_COUNT | cv2.TERM_CRITERIA_EPS, 60, 1e-5)
    mask = maps.both.astype(np.uint8)
    try:
        _, refined = cv2.findTransformECC(fixed, moving, backward, cv2.MOTION_HOMOGRAPHY, criteria, mask, 1)
    except cv2.error:  # ECC did not converge at this blur; it may do so at another
        return None
    correction = np.linalg.inv(np.asarray(refined, dtype=np.float64))
    return correction / correction[2, 2] if is_plausible(correction / correction[2, 2]) else None


def _optimize_corners(score: _Score, initial: np.ndarray, landmarks: Landmarks, limit: float) -> np.ndarray:
    """Maximise the score over the shifts of the four frame corners. Return the best correction (3, 3).

    Because the retina is not flat, one homography may not fit vessels and landmarks everywhere. So a median landmark
    error above `limit` is penalised, but not excluded. Powell's method starts from the identity, and, if `initial`
    differs from it, again from `initial` and from halfway between the two.

    initial: the correction (3, 3) that ECC found.
    landmarks: the landmarks in px of the refinement frame, those of the FA after the initial transform.
    limit: the largest median landmark error without a penalty, px of the refinement frame.
    """

    def correction_of(shifts: np.ndarray) -> np.ndarray:
        return cv2.getPerspectiveTransform(WORK_CORNERS, WORK_CORNERS + shifts.reshape(4, 2).astype(np.float32))

    def cost(shifts: np.ndarray) -> float:
        correction = correction_of(shifts)
        return 0.5 * max(0.0, float(np.median(reprojection_errors(correction, landmarks))) - limit) - score(correction)

    # With corner shifts of at most 30 px, the frame cannot fold.
    bounds = [(-30.0, 30.0)] * 8
    options = {"maxiter": 15, "xtol": 0.05, "ftol": 1e-4}
    initial_shifts = np.clip((transform_points(initial, WORK_CORNERS) - WORK_CORNERS).ravel(), -30, 30)
    starts = (weight * initial_shifts for weight in ((0.0, 0.5, 1.0) if initial_shifts.any() else (0.0,)))
    results = [minimize(cost, start, method="Powell", bounds=bounds, options=options) for start in starts]
    return correction_of(min(results, key=lambda result: float(result.fun)).x)
