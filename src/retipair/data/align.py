"""One raw pair -> one aligned pair with its numbers, or the reason why not."""

from dataclasses import dataclass, replace
from typing import Literal

import numpy as np

from retipair.data.landmarks import Landmarks
from retipair.data.pair import Pair, px_at_512
from retipair.data.registration import (
    WORK_SIZE,
    View,
    common_square,
    move,
    refine,
    register_features,
    register_points,
    render,
)

How = Literal["points", "features", "none"]

_FEWEST_AGREE = 0.4  # of the landmarks: 8 of 20
_FEWEST_FEATURES = 4
# At 512: 26 mispaired views, pulled together all the same, reached .13, a CF given as its own FA .21; true ones .48.
_LEAST_CONSISTENCY: dict[How, float] = {"points": 0.25, "features": 0.2, "none": 0.15}
_REMEDY: dict[How, str] = {
    "points": "are both views and the points of one eye, and are the FA's veins filled?",
    "features": "place points",
    "none": "register them, or are they of two eyes?",
}
_LEAST_SHARED = 0.1  # of the frame


@dataclass(frozen=True)
class Aligned:
    """Both views in one frame, and how well they fit; `refused` says why they may not be used, if so.

    `fa_to_frame` (3, 3) maps raw FA px to frame px; `points` (N, 4) are cf_x, cf_y, fa_x, fa_y in the frame;
    `residual_px` is the median over all points, frame px; consistencies are vesselness correlations, [-1, 1], at 512 px
    (at the frame's size where that is larger): smaller views show fewer vessels, and the limits were measured at 512.
    """

    pair: Pair
    fa_to_frame: np.ndarray
    points: np.ndarray
    inliers: int | None
    residual_px: float | None
    consistency_before: float
    consistency: float
    refused: str | None


def align(
    cf_image: np.ndarray,
    fa_image: np.ndarray,
    landmarks: Landmarks | None,
    how: How,
    size: int,
    max_residual_px: float,
) -> Aligned:
    """CF (H, W, 3) and FA (H, W), uint8, of any sizes -> the square of `size` px around what both show.

    `landmarks` are registered by if `how` is "points" and measured against in any case; `max_residual_px` is px at 512.
    """
    cf, fa = View(cf_image), View(fa_image)
    fa_to_cf, inliers = _first_guess(cf, fa, landmarks, how)
    refined = fa_to_cf
    if how != "none":
        refined = refine(cf, fa, fa_to_cf, landmarks if how == "points" else None)
    frame = common_square(cf, fa, refined, size)
    consistency_before = consistency = _consistency(cf, fa, refined, refined, size)
    if refined is not fa_to_cf:
        consistency_before = _consistency(cf, fa, refined, fa_to_cf, size)
        # The frame may show the vessels otherwise than the refinement's own scale did.
        if consistency <= consistency_before:
            refined, consistency = fa_to_cf, consistency_before
    points = _carried(landmarks, frame, frame @ refined)
    aligned = Aligned(
        pair=render(cf, fa, frame, frame @ refined, size),
        fa_to_frame=frame @ refined,
        points=points,
        inliers=inliers,
        residual_px=_median_residual(points),
        consistency_before=consistency_before,
        consistency=consistency,
        refused=None,
    )
    return replace(aligned, refused=_refusal(aligned, how, size, max_residual_px))


def _consistency(cf: View, fa: View, framed_by: np.ndarray, fa_to_cf: np.ndarray, size: int) -> float:
    """Vesselness correlation after `fa_to_cf` (3, 3), in the frame around what `framed_by` (3, 3) lets both show."""
    side = max(size, WORK_SIZE)
    frame = common_square(cf, fa, framed_by, side)
    return render(cf, fa, frame, frame @ fa_to_cf, side).consistency()


def _first_guess(cf: View, fa: View, landmarks: Landmarks | None, how: How) -> tuple[np.ndarray, int | None]:
    """Raw FA -> raw CF (3, 3) and how many landmarks or features agreed on it, None where none were asked."""
    if how == "none":
        return np.eye(3), None
    if how == "points" and landmarks is not None:
        found = register_points(cf, fa, landmarks)
        return found.fa_to_cf, found.inliers
    found = register_features(cf, fa)
    return found.fa_to_cf, found.inliers


def _carried(landmarks: Landmarks | None, cf_to_frame: np.ndarray, fa_to_frame: np.ndarray) -> np.ndarray:
    """The landmarks in the frame, (N, 4) cf_x, cf_y, fa_x, fa_y."""
    if landmarks is None:
        return np.empty((0, 4))
    return np.hstack([move(cf_to_frame, landmarks.cf), move(fa_to_frame, landmarks.fa)])


def _median_residual(points: np.ndarray) -> float | None:
    if not len(points):
        return None
    return float(np.median(np.linalg.norm(points[:, :2] - points[:, 2:], axis=1)))


def _refusal(aligned: Aligned, how: How, size: int, max_residual_px: float) -> str | None:
    """Why a pair may not be used, with its numbers; None if it may. `max_residual_px` is px at 512."""
    total, inliers = len(aligned.points), aligned.inliers
    if aligned.pair.mask.mean() < _LEAST_SHARED:
        return f"the views share {aligned.pair.mask.mean():.0%} of the frame"
    if how == "points" and inliers is not None and inliers < max(4, _FEWEST_AGREE * total):
        return f"only {inliers} of {total} points agree"
    if aligned.residual_px is not None and (residual := px_at_512(aligned.residual_px, size)) > max_residual_px:
        return f"median residual {residual:.2f} px at 512 > {max_residual_px:.2f}"
    if how == "features" and inliers is not None and inliers < _FEWEST_FEATURES:
        return f"only {inliers} features agree: place points"
    if aligned.consistency < (least := _LEAST_CONSISTENCY[how]):
        return f"consistency {aligned.consistency:.3f} < {least:.3f}: {_REMEDY[how]}"
    return None
