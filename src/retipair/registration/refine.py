"""Refine a registration by aligning the vessels of both views, without moving far from the landmarks.

A *step* is a homography (3, 3) in the refinement frame that is applied to the FA after the initial transform.
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

_MAX_LANDMARK_PX = 3.8  # at 512: a result of ECC with a larger median landmark error is not accepted
_MIN_SIGMA_PX = 0.5  # least scatter of landmarks; a smaller estimate from few landmarks is chance
_INDEPENDENT_PIXELS = 700  # assumed number of independent samples in the correlation of the vesselness maps
_BLURS = (8.0, 4.0, 2.0, 1.0)  # sigma, px, from coarse to fine; the first is as wide as a large landmark error


def refine(cf: View, fa: View, fa_to_cf: np.ndarray, landmarks: Landmarks | None) -> np.ndarray:
    """Refine the transform `fa_to_cf` by aligning the vessels. Return it unchanged (up to rounding) if that fails.

    ECC (Evangelidis and Psarakis 2008, doi 10.1109/TPAMI.2008.113) runs on vesselness that is blurred by 8, 4, 2 and
    1 px. A step is accepted if it raises the score: the correlation of the unblurred vesselness minus the landmark
    cost (see `_make_objective`). Without the landmark cost, a wrong homography can win if the dye fills few vessels.

    A second method is used if the median landmark error after ECC exceeds 3.8 px at 512, or if the landmark cost
    prevents all steps: the score is then maximised over the shifts of the four frame corners (`_optimize_corners`).

    fa_to_cf: the initial transform (3, 3), from raw FA px to raw CF px.
    landmarks: the points placed by hand, or None. Without them, the score is the correlation.
    """
    cf_to_work = _work_frame(cf, fa, fa_to_cf)
    fa_to_work = cf_to_work @ fa_to_cf
    both = inside_field(cf, cf_to_work) & inside_field(fa, fa_to_work)
    maps = _VesselMaps(vessel_map(cf, cf_to_work), vessel_map(fa, fa_to_work), both)
    if landmarks is None:
        return _compose(_refine_coarse_to_fine(maps, maps.correlation), cf_to_work, fa_to_work)
    in_work = Landmarks(transform_points(cf_to_work, landmarks.cf), transform_points(fa_to_work, landmarks.fa))
    score = _make_objective(maps, in_work)
    step = _refine_coarse_to_fine(maps, score)
    refined = _compose(step, cf_to_work, fa_to_work)
    frame = common_square(cf, fa, refined, WORK_SIZE)
    limit = _MAX_LANDMARK_PX / frame[0, 0]  # raw CF px
    rejected_by_landmarks = _is_identity(step) and not _is_identity(_refine_coarse_to_fine(maps, maps.correlation))
    if not rejected_by_landmarks and np.median(reprojection_errors(refined, landmarks)) <= limit:
        return refined
    return _compose(_optimize_corners(score, step, in_work, limit * cf_to_work[0, 0]), cf_to_work, fa_to_work)


def _work_frame(cf: View, fa: View, fa_to_cf: np.ndarray) -> np.ndarray:
    """Return the transform (3, 3) from raw CF px to the refinement frame of 512 px.

    It is the work frame of the CF or, if the FA shows a magnified part of the CF, the square around their common field.
    """
    common = common_square(cf, fa, fa_to_cf, WORK_SIZE)
    return common if common[0, 0] > DETAIL_RATIO * cf.to_work[0, 0] else cf.to_work


_Score = Callable[[np.ndarray], float]
"""A function that returns the score of a step (3, 3). A higher score is better."""


@dataclass(frozen=True)
class _VesselMaps:
    """The vesselness of both views in the refinement frame.

    fixed: the vesselness of the CF, (512, 512) float32.
    moving: the vesselness of the FA after the initial transform, (512, 512) float32.
    both: the common field of view, (512, 512) bool.
    """

    fixed: np.ndarray
    moving: np.ndarray
    both: np.ndarray

    def correlation(self, step: np.ndarray) -> float:
        """Apply `step` (3, 3) to the map of the FA, and return the correlation of both maps, [-1, 1]."""
        moved = cv2.warpPerspective(self.moving, step, (WORK_SIZE, WORK_SIZE))
        return correlation(self._fixed_valid, moved[self.both]) if self.both.any() else 0.0

    @cached_property
    def _fixed_valid(self) -> np.ndarray:
        return self.fixed[self.both]


def _compose(step: np.ndarray, cf_to_work: np.ndarray, fa_to_work: np.ndarray) -> np.ndarray:
    """Return the transform (3, 3) from raw FA px to raw CF px that consists of the initial transform and a step."""
    fa_to_cf = np.linalg.inv(cf_to_work) @ step @ fa_to_work
    return np.asarray(fa_to_cf / fa_to_cf[2, 2])


def _make_objective(maps: _VesselMaps, landmarks: Landmarks) -> _Score:
    """Return a function that scores steps: the correlation of the vesselness minus the landmark cost.

    The score is a log-likelihood, divided by _INDEPENDENT_PIXELS. The log-likelihood of the vesselness is modelled as
    the correlation times _INDEPENDENT_PIXELS. That of the landmarks is minus the sum of their squared errors, divided
    by twice the variance of the errors before refinement. Only landmarks that agree with the initial transform are
    used.

    landmarks: the landmarks in px of the refinement frame, those of the FA after the initial transform.
    """
    is_inlier = reprojection_errors(np.eye(3), landmarks) <= LANDMARK_INLIER_PX
    inliers = Landmarks(landmarks.cf[is_inlier], landmarks.fa[is_inlier])

    def squared_errors(step: np.ndarray) -> float:
        return float((reprojection_errors(step, inliers) ** 2).sum())

    # The errors of n points have 2 n - 8 degrees of freedom, because the homography was fitted to the points.
    variance = max(squared_errors(np.eye(3)) / max(2 * int(is_inlier.sum()) - 8, 2), _MIN_SIGMA_PX**2)
    return lambda step: maps.correlation(step) - squared_errors(step) / (2 * variance * _INDEPENDENT_PIXELS)


def _refine_coarse_to_fine(maps: _VesselMaps, score: _Score) -> np.ndarray:
    """Run ECC from coarse to fine. Return the step (3, 3) with the highest score; it may be the identity."""
    best, highest = np.eye(3), score(np.eye(3))
    for blur in _BLURS:
        step = _ecc(maps, best, blur)
        if step is not None and score(step) > highest:
            best, highest = step, score(step)
    return best


def _is_identity(step: np.ndarray) -> bool:
    return np.array_equal(step, np.eye(3))


def _ecc(maps: _VesselMaps, start: np.ndarray, blur: float) -> np.ndarray | None:
    """Run ECC on blurred maps from the step `start` (3, 3). Return the step that it finds, or None if it fails."""
    fixed, moving = (cv2.GaussianBlur(ridges, (0, 0), blur) for ridges in (maps.fixed, maps.moving))
    backward = np.linalg.inv(start).astype(np.float32)  # OpenCV's transform maps fixed to moving px
    criteria = (cv2.TERM_CRITERIA_COUNT | cv2.TERM_CRITERIA_EPS, 60, 1e-5)
    mask = maps.both.astype(np.uint8)
    try:
        _, refined = cv2.findTransformECC(fixed, moving, backward, cv2.MOTION_HOMOGRAPHY, criteria, mask, 1)
    except cv2.error:  # ECC did not converge at this blur; it may do so at another
        return None
    step = np.linalg.inv(np.asarray(refined, dtype=np.float64))
    return step / step[2, 2] if is_plausible(step / step[2, 2]) else None


def _optimize_corners(score: _Score, initial: np.ndarray, landmarks: Landmarks, limit: float) -> np.ndarray:
    """Maximise the score over the shifts of the four frame corners. Return the best step (3, 3).

    Because the retina is not flat, one homography may not fit vessels and landmarks everywhere. So a median landmark
    error above `limit` is penalised, but not excluded. Powell's method runs three times: it starts from the identity,
    from `initial`, and from halfway between the two.

    initial: the step (3, 3) that ECC found.
    landmarks: the landmarks in px of the refinement frame, those of the FA after the initial transform.
    limit: the largest median landmark error without a penalty, px of the refinement frame.
    """

    def step_of(shifts: np.ndarray) -> np.ndarray:
        return cv2.getPerspectiveTransform(WORK_CORNERS, WORK_CORNERS + shifts.reshape(4, 2).astype(np.float32))

    def cost(shifts: np.ndarray) -> float:
        step = step_of(shifts)
        return 0.5 * max(0.0, float(np.median(reprojection_errors(step, landmarks))) - limit) - score(step)

    # With corner shifts of at most 30 px, the frame cannot fold.
    bounds = [(-30.0, 30.0)] * 8
    options = {"maxiter": 15, "xtol": 0.05, "ftol": 1e-4}
    initial_shifts = np.clip((transform_points(initial, WORK_CORNERS) - WORK_CORNERS).ravel(), -30, 30)
    starts = (weight * initial_shifts for weight in ((0.0, 0.5, 1.0) if initial_shifts.any() else (0.0,)))
    results = [minimize(cost, start, method="Powell", bounds=bounds, options=options) for start in starts]
    return step_of(min(results, key=lambda result: float(result.fun)).x)
