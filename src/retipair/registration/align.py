"""One raw pair -> one aligned pair with its numbers, or the reason why not."""

from dataclasses import dataclass, replace
from typing import Literal

import numpy as np

from retipair.data.pair import Pair, px_at_512
from retipair.registration.estimate import count_agreeing, distance, match_features, register_features, register_points
from retipair.registration.landmarks import Landmarks
from retipair.registration.patches import patch_shifts
from retipair.registration.pose_search import search_pose
from retipair.registration.refine import refine
from retipair.registration.warp import WORK_SIZE, View, common_square, render, transform_points

Method = Literal["points", "features", "none"]

_FEWEST_AGREE = 0.4  # of the landmarks: 8 of 20
_FEWEST_FEATURES = 4  # seven real pairs had 7 to 59, mispaired ones none
_FEWEST_PATCHES = 8  # of vessels; whole views have 50
# Of the patches, within 5 px: real pairs have .78 and more, one that was 18 px off had .49, mispaired ones .27 at most.
_LEAST_PATCHES = 0.6
_FEW_PATCHES = 0.7
_SAME_PX = 10.0  # at 512: two first guesses closer than this lead to the same vessels
# At 512: 30 mispaired views, pulled together all the same, reached .16, a CF given as its own FA .21; true ones .48.
_LEAST_CONSISTENCY: dict[Method, float] = {"points": 0.25, "features": 0.2, "none": 0.15}
_REMEDY: dict[Method, str] = {
    "points": "are both views and the points of one eye, and are the FA's veins filled?",
    "features": "place points (without any, fields of view that differ more than twice in width cannot be aligned)",
    "none": "register them, or are they of two eyes?",
}
_LEAST_SHARED = 0.1  # of the frame
_MIRRORED = "the FA is mirrored left to right: turn it, or add --allow_mirror"
_TURNED = "its FA was mirrored left to right: is the CF the right way round?"


@dataclass(frozen=True)
class Limits:
    """What a pair must keep: a median residual in px at 512, and a consistency (None: the default of the method).

    `allow_mirror`: use an FA that is mirrored left to right.
    """

    max_residual_px: float = 5.0
    min_consistency: float | None = None
    allow_mirror: bool = False


@dataclass(frozen=True)
class Aligned:
    """Both views in one frame, and how well they fit; `refused` says why they may not be used, if so.

    `fa_to_frame` (3, 3) maps raw FA px to frame px, with a negative determinant if the FA was mirrored; `points` (N, 4)
    are cf_x, cf_y, fa_x, fa_y in the frame; `residual_px`, frame px, is the median over all points or, registered by
    features without any, over patches of vessels. Consistencies are vesselness correlations, [-1, 1], at 512 px (at the
    frame's size where that is larger): smaller views show fewer vessels, and the limits were measured at 512. `doubt`
    says why to look at a pair that may be used.
    """

    pair: Pair
    fa_to_frame: np.ndarray
    points: np.ndarray
    inliers: int | None
    residual_px: float | None
    consistency_before: float
    consistency: float
    refused: str | None
    doubt: str | None


@dataclass(frozen=True)
class _Registered:
    """Raw FA -> raw CF, (3, 3), by the first guess and refined, and how many landmarks or features agree."""

    guess: np.ndarray
    refined: np.ndarray
    inliers: int | None


def align(
    cf_image: np.ndarray, fa_image: np.ndarray, landmarks: Landmarks | None, how: Method, size: int, limits: Limits
) -> Aligned:
    """CF (H, W, 3) and FA (H, W), uint8, of any sizes -> the square of `size` px around what both show.

    `landmarks` are registered by if `how` is "points" and measured against in any case. A pair that fits only if its FA
    is mirrored is refused as such, or mirrored where that is allowed.
    """
    aligned = _align(View(cf_image), View(fa_image), landmarks, how, size, limits)
    if not aligned.refused or how == "none":
        return aligned
    mirror = np.array([[-1.0, 0, fa_image.shape[1] - 1], [0, 1, 0], [0, 0, 1]])
    turned = landmarks and Landmarks(landmarks.cf, transform_points(mirror, landmarks.fa))
    mirrored = _align(View(cf_image), View(np.ascontiguousarray(fa_image[:, ::-1])), turned, how, size, limits)
    if mirrored.refused:
        return aligned
    if not limits.allow_mirror:
        return replace(aligned, refused=_MIRRORED)
    return replace(mirrored, fa_to_frame=mirrored.fa_to_frame @ mirror, doubt=_TURNED)


def _align(cf: View, fa: View, landmarks: Landmarks | None, how: Method, size: int, limits: Limits) -> Aligned:
    found = _register(cf, fa, landmarks, how)
    refined = found.refined
    frame = common_square(cf, fa, refined, size)
    measured = _measured(cf, fa, refined, refined, size)
    consistency_before = consistency = measured.consistency()
    if refined is not found.guess:
        before = _measured(cf, fa, refined, found.guess, size)
        consistency_before = before.consistency()
        # The frame may show the vessels otherwise than the refinement's own scale did.
        if consistency <= consistency_before:
            refined, measured, consistency = found.guess, before, consistency_before
    shifts = patch_shifts(measured.cf, measured.fa, measured.mask)
    by_features = shifts if how == "features" else None
    points = _transform_landmarks(landmarks, frame, frame @ refined)
    aligned = Aligned(
        pair=measured if size >= WORK_SIZE else render(cf, fa, frame, frame @ refined, size),
        fa_to_frame=frame @ refined,
        points=points,
        inliers=found.inliers,
        residual_px=_median_residual(points, by_features, size),
        consistency_before=consistency_before,
        consistency=consistency,
        refused=None,
        doubt=None,
    )
    refused = _refusal(aligned, how, size, limits) or _patches_refused(by_features, limits.max_residual_px)
    return replace(aligned, refused=refused, doubt=_doubt(found, how, shifts, limits))


def _measured(cf: View, fa: View, framed_by: np.ndarray, fa_to_cf: np.ndarray, size: int) -> Pair:
    """Both views after `fa_to_cf` (3, 3), in the frame around what `framed_by` (3, 3) lets both show."""
    side = max(size, WORK_SIZE)
    frame = common_square(cf, fa, framed_by, side)
    return render(cf, fa, frame, frame @ fa_to_cf, side)


def _register(cf: View, fa: View, landmarks: Landmarks | None, how: Method) -> _Registered:
    if how == "none":
        return _Registered(np.eye(3), np.eye(3), None)
    if how == "features" or landmarks is None:
        return _register_by_vessels(cf, fa)
    found = register_points(cf, fa, landmarks)
    enough = found.inliers >= _fewest(len(landmarks.cf))
    refined = refine(cf, fa, found.fa_to_cf, landmarks) if enough else found.fa_to_cf
    return _Registered(found.fa_to_cf, refined, found.inliers)


def _register_by_vessels(cf: View, fa: View) -> _Registered:
    """From two independent first guesses, whichever leads to the higher consistency."""
    features = match_features(cf, fa)
    searched, matched = search_pose(cf, fa), register_features(cf, fa, features)
    guesses = [searched]
    if matched.inliers and distance(cf, fa, searched, matched.fa_to_cf) > _SAME_PX:
        guesses.append(matched.fa_to_cf)
    ends = [(guess, refine(cf, fa, guess, None)) for guess in guesses]
    best = (
        max(ends, key=lambda end: _measured(cf, fa, end[1], end[1], WORK_SIZE).consistency())
        if len(ends) > 1
        else ends[0]
    )
    return _Registered(*best, count_agreeing(cf, best[1], features))


def _transform_landmarks(landmarks: Landmarks | None, cf_to_frame: np.ndarray, fa_to_frame: np.ndarray) -> np.ndarray:
    """The landmarks in the frame, (N, 4) cf_x, cf_y, fa_x, fa_y."""
    if landmarks is None:
        return np.empty((0, 4))
    return np.hstack([transform_points(cf_to_frame, landmarks.cf), transform_points(fa_to_frame, landmarks.fa)])


def _median_residual(points: np.ndarray, shifts: np.ndarray | None, size: int) -> float | None:
    """Over the landmarks (N, 4), else over the patches' shifts (N,) px at 512; frame px."""
    if len(points):
        return float(np.median(np.linalg.norm(points[:, :2] - points[:, 2:], axis=1)))
    return float(np.median(shifts)) * size / 512 if shifts is not None and len(shifts) else None


def _refusal(aligned: Aligned, how: Method, size: int, limits: Limits) -> str | None:
    """Why a pair may not be used, with its numbers; None if it may."""
    total, inliers = len(aligned.points), aligned.inliers
    least = _LEAST_CONSISTENCY[how] if limits.min_consistency is None else limits.min_consistency
    if aligned.pair.mask.mean() < _LEAST_SHARED:
        return f"the views share {aligned.pair.mask.mean():.0%} of the frame"
    if how == "points" and inliers is not None and inliers < _fewest(total):
        return f"only {inliers} of {total} points agree"
    residual = px_at_512(aligned.residual_px, size) if total and aligned.residual_px is not None else 0.0
    if residual > limits.max_residual_px:
        return f"median residual {residual:.2f} px at 512 > {limits.max_residual_px:.2f}"
    if aligned.consistency < least:
        return f"consistency {aligned.consistency:.3f} < {least:.3f}: {_REMEDY[how]}"
    return None


def _fewest(landmarks: int) -> float:
    return max(4, _FEWEST_AGREE * landmarks)


def _patches_refused(shifts: np.ndarray | None, max_residual_px: float) -> str | None:
    """Why patches of vessels say that features misled, (N,) px at 512; None if they do not or were not asked."""
    if shifts is None:
        return None
    if len(shifts) < _FEWEST_PATCHES:
        return f"only {len(shifts)} patches of vessels can be compared: {_REMEDY['features']}"
    if (share := (shifts <= max_residual_px).mean()) < _LEAST_PATCHES:
        return f"only {share:.0%} of the vessels fit within {max_residual_px:g} px at 512: {_REMEDY['features']}"
    return None


def _doubt(found: _Registered, how: Method, shifts: np.ndarray, limits: Limits) -> str | None:
    """Why to look at a pair, its patches' shifts (N,) px at 512.

    Points that were placed on images of another size agree with one another too, and only the vessels contradict.
    """
    if how == "features" and found.inliers is not None and found.inliers < _FEWEST_FEATURES:
        return f"only {found.inliers} features agree with it"
    if len(shifts) >= _FEWEST_PATCHES and (share := (shifts <= limits.max_residual_px).mean()) < _FEW_PATCHES:
        size = "; were its points placed on images of another size?" if how == "points" else ""
        return f"only {share:.0%} of its vessels fit within {limits.max_residual_px:g} px at 512{size}"
    return None
