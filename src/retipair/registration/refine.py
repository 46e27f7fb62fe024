"""Refine a registration by the vessels of both views, constrained by its landmarks."""

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

_MAX_LANDMARK_PX = 3.8  # at 512: an ECC result with a larger median landmark error is not accepted
_MIN_SIGMA_PX = 0.5  # of landmarks: a smaller estimate of their scatter would be due to chance
_INDEPENDENT_PIXELS = 700  # assumed number of independent samples in the correlation of the vesselness maps
_BLURS = (8.0, 4.0, 2.0, 1.0)  # px: coarse to fine, the coarsest as wide as typical landmark errors


def refine(cf: View, fa: View, fa_to_cf: np.ndarray, landmarks: Landmarks | None) -> np.ndarray:
    """Refine a transform (3, 3) by aligning the vessels; return the given transform if that does not improve it.

    Runs ECC (Evangelidis and Psarakis 2008, doi 10.1109/TPAMI.2008.113) on vesselness maps blurred by 8 to 1 px. A step
    is accepted if it raises the correlation of the unblurred maps by more than it raises the landmark cost. This cost
    is the sum of the squared landmark errors, in units of their variance under the initial `fa_to_cf`, times a constant
    weight. Without it, a wrong homography can win if few vessels are filled. If the median landmark error then exceeds
    3.8 px at 512, or if every step is rejected because of the landmark cost, the shifts of the four frame corners are
    optimised for the correlation and the landmark cost together.
    """
    cf_to_work = _work_frame(cf, fa, fa_to_cf)
    fa_to_work = cf_to_work @ fa_to_cf
    both = inside_field(cf, cf_to_work) & inside_field(fa, fa_to_work)
    maps = _Ridges(vessel_map(cf, cf_to_work), vessel_map(fa, fa_to_work), both)
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
    """Return raw CF px -> refinement frame, (3, 3): CF's work frame, or the common square if the FA is magnified."""
    common = common_square(cf, fa, fa_to_cf, WORK_SIZE)
    return common if common[0, 0] > DETAIL_RATIO * cf.to_work[0, 0] else cf.to_work


_Score = Callable[[np.ndarray], float]
"""Scores a step (3, 3) in the work frame; higher is better."""


@dataclass(frozen=True)
class _Ridges:
    """Vesselness of both views in the refinement frame, (512, 512) float32, and where both are valid, bool."""

    fixed: np.ndarray
    moving: np.ndarray
    both: np.ndarray

    def correlation(self, step: np.ndarray) -> float:
        """Return the correlation after applying `step` (3, 3) to the moving map, in [-1, 1]."""
        moved = cv2.warpPerspective(self.moving, step, (WORK_SIZE, WORK_SIZE))
        return correlation(self._fixed_valid, moved[self.both]) if self.both.any() else 0.0

    @cached_property
    def _fixed_valid(self) -> np.ndarray:
        return self.fixed[self.both]


def _compose(step: np.ndarray, cf_to_work: np.ndarray, fa_to_work: np.ndarray) -> np.ndarray:
    """Return the transform raw FA px -> raw CF px through a step in the work frame."""
    fa_to_cf = np.linalg.inv(cf_to_work) @ step @ fa_to_work
    return np.asarray(fa_to_cf / fa_to_cf[2, 2])


def _make_objective(maps: _Ridges, landmarks: Landmarks) -> _Score:
    """Return a score of steps: the correlation minus the cost of the landmark residuals.

    Both are log-likelihoods: a landmark costs its squared residual over twice the variance, and the correlation has the
    weight of _INDEPENDENT_PIXELS samples. Only inliers of the initial transform, which is the identity here, are used.
    """
    is_inlier = reprojection_errors(np.eye(3), landmarks) <= LANDMARK_INLIER_PX
    inliers = Landmarks(landmarks.cf[is_inlier], landmarks.fa[is_inlier])

    def squared_errors(step: np.ndarray) -> float:
        return float((reprojection_errors(step, inliers) ** 2).sum())

    # n points have 2 n coordinates; a homography has 8 degrees of freedom.
    variance = max(squared_errors(np.eye(3)) / max(2 * int(is_inlier.sum()) - 8, 2), _MIN_SIGMA_PX**2)
    return lambda step: maps.correlation(step) - squared_errors(step) / (2 * variance * _INDEPENDENT_PIXELS)


def _refine_coarse_to_fine(maps: _Ridges, score: _Score) -> np.ndarray:
    """Run ECC from coarse to fine; return the step with the highest score, (3, 3), the identity if none raises it."""
    best, highest = np.eye(3), score(np.eye(3))
    for blur in _BLURS:
        step = _ecc(maps, best, blur)
        if step is not None and score(step) > highest:
            best, highest = step, score(step)
    return best


def _is_identity(step: np.ndarray) -> bool:
    return np.array_equal(step, np.eye(3))


def _ecc(maps: _Ridges, start: np.ndarray, blur: float) -> np.ndarray | None:
    """Run ECC from `start`, (3, 3), on maps blurred by `blur` px; return None if it does not converge."""
    fixed, moving = (cv2.GaussianBlur(ridges, (0, 0), blur) for ridges in (maps.fixed, maps.moving))
    backward = np.linalg.inv(start).astype(np.float32)  # ECC maps fixed to moving pixels
    criteria = (cv2.TERM_CRITERIA_COUNT | cv2.TERM_CRITERIA_EPS, 60, 1e-5)
    mask = maps.both.astype(np.uint8)
    try:
        _, refined = cv2.findTransformECC(fixed, moving, backward, cv2.MOTION_HOMOGRAPHY, criteria, mask, 1)
    except cv2.error:  # ECC diverged at this scale; it may converge at another
        return None
    step = np.linalg.inv(np.asarray(refined, dtype=np.float64))
    return step / step[2, 2] if is_plausible(step / step[2, 2]) else None


def _optimize_corners(score: _Score, initial: np.ndarray, landmarks: Landmarks, limit: float) -> np.ndarray:
    """Return the step (3, 3) with the highest score; a median landmark error above `limit` work px is penalised.

    The retina is not flat, so one homography may not fit vessels and landmarks everywhere. Powell's method optimises
    the shifts of the four corners, starting from the identity, from `initial` and from halfway between.
    """

    def step_of(shifts: np.ndarray) -> np.ndarray:
        return cv2.getPerspectiveTransform(WORK_CORNERS, WORK_CORNERS + shifts.reshape(4, 2).astype(np.float32))

    def cost(shifts: np.ndarray) -> float:
        step = step_of(shifts)
        return 0.5 * max(0.0, float(np.median(reprojection_errors(step, landmarks))) - limit) - score(step)

    # Within 30 px, so that the frame cannot fold.
    bounds = [(-30.0, 30.0)] * 8
    options = {"maxiter": 15, "xtol": 0.05, "ftol": 1e-4}
    initial_shifts = np.clip((transform_points(initial, WORK_CORNERS) - WORK_CORNERS).ravel(), -30, 30)
    starts = (weight * initial_shifts for weight in ((0.0, 0.5, 1.0) if initial_shifts.any() else (0.0,)))
    results = [minimize(cost, start, method="Powell", bounds=bounds, options=options) for start in starts]
    return step_of(min(results, key=lambda result: float(result.fun)).x)
