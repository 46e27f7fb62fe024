"""Refine a registration by the vessels of both views, within what its landmarks allow."""

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

_CONTRADICTS_PX = 3.8  # vessels that leave half the landmarks further off than this are not believed alone


_FINEST_PX = 0.5  # landmarks that seem to scatter less are few, or lucky


_INDEPENDENT_PIXELS = 700  # places in a vesselness map: how heavily its correlation weighs against the landmarks


_BLURS = (8.0, 4.0, 2.0, 1.0)  # px: coarse to fine, the coarsest as wide as a landmark is wrong


def refine(cf: View, fa: View, fa_to_cf: np.ndarray, landmarks: Landmarks | None) -> np.ndarray:
    """Pull the vessels of both views together, (3, 3) -> (3, 3); what came in where that does not help.

    ECC (Evangelidis and Psarakis 2008, doi 10.1109/TPAMI.2008.113) on vesselness maps blurred by 8 to 1 px. A
    step is kept where it raises the correlation of the unblurred maps by more than it costs the landmarks, whose
    scatter about `fa_to_cf` says how far they may be left: where few vessels are lit, a wrong homography can
    correlate best. Half the landmarks may stay about 4 px off (at 512) at most. Where more would, or where the
    landmarks hold the vessels back altogether, the best compromise of both is searched.
    """
    cf_to_work = _work_frame(cf, fa, fa_to_cf)
    fa_to_work = cf_to_work @ fa_to_cf
    both = inside_field(cf, cf_to_work) & inside_field(fa, fa_to_work)
    maps = _Ridges(vessel_map(cf, cf_to_work), vessel_map(fa, fa_to_work), both)
    if landmarks is None:
        return _compose(_refine_coarse_to_fine(maps, maps.correlation), cf_to_work, fa_to_work)
    in_work = Landmarks(transform_points(cf_to_work, landmarks.cf), transform_points(fa_to_work, landmarks.fa))
    score = _make_objective(maps, in_work)
    climbed = _refine_coarse_to_fine(maps, score)
    refined = _compose(climbed, cf_to_work, fa_to_work)
    frame = common_square(cf, fa, refined, WORK_SIZE)
    limit = _CONTRADICTS_PX / frame[0, 0]  # raw CF px
    held_back = _is_identity(climbed) and not _is_identity(_refine_coarse_to_fine(maps, maps.correlation))
    if not held_back and np.median(reprojection_errors(refined, landmarks)) <= limit:
        return refined
    return _compose(_optimize_corners(score, climbed, in_work, limit * cf_to_work[0, 0]), cf_to_work, fa_to_work)


def _work_frame(cf: View, fa: View, fa_to_cf: np.ndarray) -> np.ndarray:
    """Raw CF px -> the frame to refine in, (3, 3): the CF's work frame, or where the FA shows a detail, that detail."""
    common = common_square(cf, fa, fa_to_cf, WORK_SIZE)
    return common if common[0, 0] > DETAIL_RATIO * cf.to_work[0, 0] else cf.to_work


_Score = Callable[[np.ndarray], float]
"""How good a step (3, 3) in the work frame is."""


@dataclass(frozen=True)
class _Ridges:
    """Vesselness in the CF's work frame, (512, 512) float32 each, and where both views are valid, bool."""

    fixed: np.ndarray
    moving: np.ndarray
    both: np.ndarray

    def correlation(self, step: np.ndarray) -> float:
        """In [-1, 1], after `step` (3, 3) has moved the moving map."""
        moved = cv2.warpPerspective(self.moving, step, (WORK_SIZE, WORK_SIZE))
        return correlation(self._fixed_seen, moved[self.both]) if self.both.any() else 0.0

    @cached_property
    def _fixed_seen(self) -> np.ndarray:
        return self.fixed[self.both]


def _compose(step: np.ndarray, cf_to_work: np.ndarray, fa_to_work: np.ndarray) -> np.ndarray:
    """Raw FA -> raw CF by way of the work frame and one step in it."""
    fa_to_cf = np.linalg.inv(cf_to_work) @ step @ fa_to_work
    return np.asarray(fa_to_cf / fa_to_cf[2, 2])


def _make_objective(maps: _Ridges, landmarks: Landmarks) -> _Score:
    """The correlation after a step, less what it costs the landmarks, whose first guess is the identity.

    Both as log-likelihoods: a landmark costs its squared residual over twice the variance, as much as the correlation
    of _INDEPENDENT_PIXELS places. Only landmarks that agreed on the first guess count: the others may be wrong.
    """
    agree = reprojection_errors(np.eye(3), landmarks) <= LANDMARK_INLIER_PX
    agreed = Landmarks(landmarks.cf[agree], landmarks.fa[agree])

    def squares(step: np.ndarray) -> float:
        return float((reprojection_errors(step, agreed) ** 2).sum())

    # n points have 2 n coordinates, 8 of which a homography fits.
    variance = max(squares(np.eye(3)) / max(2 * int(agree.sum()) - 8, 2), _FINEST_PX**2)
    return lambda step: maps.correlation(step) - squares(step) / (2 * variance * _INDEPENDENT_PIXELS)


def _refine_coarse_to_fine(maps: _Ridges, score: _Score) -> np.ndarray:
    """Coarse to fine, the step with the highest score, (3, 3); the identity if none raises it."""
    best, highest = np.eye(3), score(np.eye(3))
    for blur in _BLURS:
        step = _ecc(maps, best, blur)
        if step is not None and score(step) > highest:
            best, highest = step, score(step)
    return best


def _is_identity(step: np.ndarray) -> bool:
    return np.array_equal(step, np.eye(3))


def _ecc(maps: _Ridges, start: np.ndarray, blur: float) -> np.ndarray | None:
    """One run of ECC from `start`, (3, 3), on maps blurred by `blur` px; None where it does not converge."""
    fixed, moving = (cv2.GaussianBlur(ridges, (0, 0), blur) for ridges in (maps.fixed, maps.moving))
    backward = np.linalg.inv(start).astype(np.float32)  # ECC asks where each fixed pixel comes from
    until = (cv2.TERM_CRITERIA_COUNT | cv2.TERM_CRITERIA_EPS, 60, 1e-5)
    mask = maps.both.astype(np.uint8)
    try:
        _, found = cv2.findTransformECC(fixed, moving, backward, cv2.MOTION_HOMOGRAPHY, until, mask, 1)
    except cv2.error:  # OpenCV's way to say that it diverged: a finer or coarser scale may not
        return None
    step = np.linalg.inv(np.asarray(found, dtype=np.float64))
    return step / step[2, 2] if is_plausible(step / step[2, 2]) else None


def _optimize_corners(score: _Score, climbed: np.ndarray, landmarks: Landmarks, limit: float) -> np.ndarray:
    """The step with the highest score that leaves half the landmarks within `limit` work px, (3, 3).

    A field is not flat, so that no one homography may suit vessels and landmarks everywhere. The step is
    searched by its four corners (Powell's method) from what the landmarks want, what the vessels want, and
    the middle.
    """

    def step_of(shifts: np.ndarray) -> np.ndarray:
        return cv2.getPerspectiveTransform(WORK_CORNERS, WORK_CORNERS + shifts.reshape(4, 2).astype(np.float32))

    def cost(shifts: np.ndarray) -> float:
        step = step_of(shifts)
        return 0.5 * max(0.0, float(np.median(reprojection_errors(step, landmarks))) - limit) - score(step)

    # Within 30 px, so that the corners cannot fold over one another.
    bounds = [(-30.0, 30.0)] * 8
    options = {"maxiter": 15, "xtol": 0.05, "ftol": 1e-4}
    wanted = np.clip((transform_points(climbed, WORK_CORNERS) - WORK_CORNERS).ravel(), -30, 30)
    starts = (share * wanted for share in ((0.0, 0.5, 1.0) if wanted.any() else (0.0,)))
    found = [minimize(cost, start, method="Powell", bounds=bounds, options=options) for start in starts]
    return step_of(min(found, key=lambda result: float(result.fun)).x)
