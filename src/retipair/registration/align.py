"""Align one raw pair, measure the alignment, and accept or refuse it."""

from dataclasses import dataclass, replace
from typing import Literal

import numpy as np

from retipair.data.pair import Pair, px_at_512
from retipair.registration.estimate import (
    count_inliers,
    match_features,
    median_displacement,
    register_features,
    register_points,
    select_inliers,
)
from retipair.registration.landmarks import Landmarks
from retipair.registration.patches import patch_shifts
from retipair.registration.pose_search import search_pose
from retipair.registration.refine import refine
from retipair.registration.warp import WORK_SIZE, View, common_square, render, scale_of, transform_points
from retipair.vision.modality import CF_FA

Method = Literal["points", "features", "matches", "none"]

_MIN_INLIER_FRACTION = 0.4  # least fraction of the landmarks that must agree, for example 8 of 20
# With fewer inliers, a pair registered by matches is refused, and one registered by features is doubtful. Seven real
# pairs had 7 to 59 features, views of different eyes had 0.
_MIN_FEATURES = 4
# If a smaller fraction of the matches that agree before the refinement still agrees after it, the refinement is
# repeated with these matches as landmarks. The fraction was .78 or more in seven real pairs, even if all matches had a
# common error of 2.8 px, and .53 if the vessels misled the refinement.
_MIN_KEPT_FRACTION = 0.75
_MIN_PATCHES = 8  # least number of vessel patches to judge a pair by; a pair with complete fields of view has about 50
# Least fraction of the vessel patches that must fit within `max_residual_px`. At 5 px, the fraction was .78 or more in
# real pairs, .49 in a pair with an error of 18 px, and at most .27 with views of different eyes.
_MIN_PATCH_FRACTION = 0.6
_DOUBT_BELOW = 0.7  # the user should inspect an accepted pair with a smaller fraction of patches that fit
# Two initial estimates that differ by less are refined to the same result. Unit: px of the square around the field of
# view, resized to 512 px.
_SAME_PX = 10.0
# Least consistency at 512 px after refinement, by method. The consistency of 30 pairs with views of different eyes was
# at most .16, and that of seven real pairs .47 or more. A pair whose CF was also used as its FA had only
# .21, because bright vessels are searched for in an FA, and those of a CF are dark.
_MIN_CONSISTENCY: dict[Method, float] = {"points": 0.25, "features": 0.2, "matches": 0.2, "none": 0.15}
_REMEDY: dict[Method, str] = {
    "points": "check that both views and the points are of one eye, and that dye fills the FA's veins",
    "features": "use an FA in which dye fills the veins, or place points (without points, one field of view may be at "
    "most twice as wide as the other)",
    "matches": "check that the matches are in px of the image files, and that dye fills the FA's veins",
    "none": "register the views, and check that they are of one eye",
}
_MIN_OVERLAP = 0.1  # of the frame
_MIRRORED = "the FA is mirrored left to right: flip it, or add --allow_mirror"
_FLIPPED = "its FA was mirrored left to right and has been flipped: check that the CF is not mirrored"


@dataclass(frozen=True)
class Limits:
    """The limits for the acceptance of an alignment.

    max_residual_px: the largest accepted median distance between corresponding landmarks, px in a view 512 px wide. For
        the methods "features" and "matches", also the distance within which 60 % of the vessel patches must fit.
    min_consistency: the smallest accepted consistency, [-1, 1]. None means the default of the method.
    allow_mirror: True to flip an FA that is mirrored left to right, False to refuse the pair.
    """

    max_residual_px: float = 5.0
    min_consistency: float | None = None
    allow_mirror: bool = False


@dataclass(frozen=True)
class Aligned:
    """The aligned views, and the quality of their alignment.

    The *frame* is the square around the common field of view of CF and FA to which both views are resampled. The
    *consistency* is the correlation of the vesselness of both views, [-1, 1]. It is measured at 512 px for any
    size of `pair`, because smaller views show fewer vessels, and the default limits of the consistency for accepting an
    alignment were chosen for 512 px.

    pair: CF, FA and mask in the frame.
    native_size: the side of the frame in px of the raw CF and in px of the raw FA.
    cf_to_frame: the transform (3, 3) from raw CF px to frame px, which crops and scales.
    fa_to_frame: the homography (3, 3) from raw FA px to frame px. Its determinant is negative if the FA was flipped.
    points: the landmarks in frame px, (N, 4) with the columns cf_x, cf_y, fa_x, fa_y; N is 0 without landmarks
        and for the method "matches".
    inliers: the number of landmarks, features or matches that agree with the transform before refinement (landmarks) or
        after it; None for method "none".
    residual_px: the median distance between corresponding landmarks, frame px. Without landmarks, it is the median
        shift of vessel patches for the methods "features" and "matches", else None.
    consistency_before: the consistency before refinement.
    consistency: the consistency after refinement.
    refused: the reason why the pair must not be used, or None.
    doubt: the reason why the user should inspect the pair if it is not refused, or None.
    """

    pair: Pair
    native_size: tuple[int, int]
    cf_to_frame: np.ndarray
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
    """A registration of one pair.

    initial: the transform (3, 3) from raw FA px to raw CF px, before refinement.
    refined: the same transform after refinement.
    inliers: the number of landmarks that agree with `initial`, or of features or matches that agree with `refined`;
        None for method "none".
    """

    initial: np.ndarray
    refined: np.ndarray
    inliers: int | None


def align(
    cf_image: np.ndarray,
    fa_image: np.ndarray,
    landmarks: Landmarks | None,
    method: Method,
    size: int,
    limits: Limits,
    dark: tuple[bool, bool] = CF_FA.dark_vessels,
) -> Aligned:
    """Align CF and FA in a square of `size` px around their common field of view, and accept or refuse the pair.

    A pair that fits only if the FA is flipped left to right is refused with that reason. With `limits.allow_mirror`,
    the FA is flipped instead. With the method "none", flipping is not tried.

    cf_image: the raw CF, (H, W, 3) uint8.
    fa_image: the raw FA, (H, W) uint8. The two images may differ in size.
    landmarks: the points placed by hand, or None. With any method but "matches", the residual is measured at them.
        With the method "matches", they are the matches of a network, of which many may be false.
    method: "points" computes the transform from the landmarks, or from the vessels if there are none; "features" from
        the vessels; "matches" from the matches, by RANSAC. "none" assumes that the raw views are aligned.
    size: the side of the aligned views, px.
    limits: the limits for the acceptance of the alignment.
    dark: for each view, whether vessels are darker than their surroundings.
    """
    cf, fa = View(cf_image, dark[0]), View(fa_image, dark[1])
    aligned = _align(cf, fa, landmarks, method, size, limits)
    if not aligned.refused or method == "none":
        return aligned
    mirror = np.array([[-1.0, 0, fa_image.shape[1] - 1], [0, 1, 0], [0, 0, 1]])
    flipped = landmarks and Landmarks(landmarks.cf, transform_points(mirror, landmarks.fa))
    mirrored = _align(cf, View(np.ascontiguousarray(fa_image[:, ::-1]), dark[1]), flipped, method, size, limits)
    if mirrored.refused:
        return aligned
    if not limits.allow_mirror:
        return replace(aligned, refused=_MIRRORED)
    return replace(mirrored, fa_to_frame=mirrored.fa_to_frame @ mirror, doubt=_FLIPPED)


def _align(cf: View, fa: View, landmarks: Landmarks | None, method: Method, size: int, limits: Limits) -> Aligned:
    registered = _register(cf, fa, landmarks, method)
    refined = registered.refined
    frame = common_square(cf, fa, refined, size)
    rendered = _render_for_metrics(cf, fa, refined, refined, size)
    consistency_before = consistency = rendered.consistency()
    if refined is not registered.initial:
        before = _render_for_metrics(cf, fa, refined, registered.initial, size)
        consistency_before = before.consistency()
        # Refinement maximises its score in another frame, so it can lower the consistency here. If so, undo it.
        if consistency <= consistency_before:
            refined, rendered, consistency = registered.initial, before, consistency_before
    shifts = patch_shifts(rendered.cf, rendered.fa, rendered.mask, rendered.dark_vessels)
    feature_shifts = shifts if method in ("features", "matches") else None
    points = _transform_landmarks(None if method == "matches" else landmarks, frame, frame @ refined)
    aligned = Aligned(
        pair=rendered if size >= WORK_SIZE else render(cf, fa, frame, frame @ refined, size),
        native_size=(_native_size(cf, frame, size), _native_size(fa, frame @ refined, size)),
        cf_to_frame=frame,
        fa_to_frame=frame @ refined,
        points=points,
        inliers=registered.inliers,
        residual_px=_median_residual(points, feature_shifts, size),
        consistency_before=consistency_before,
        consistency=consistency,
        refused=None,
        doubt=None,
    )
    refused = _refusal(aligned, method, size, limits) or _patch_refusal(feature_shifts, method, limits.max_residual_px)
    return replace(aligned, refused=refused, doubt=_doubt(registered, method, shifts, limits))


def _native_size(view: View, to_frame: np.ndarray, size: int) -> int:
    """Return the side of the frame in px of a raw view, at the scale of `to_frame` at the centre of the view.

    to_frame: the transform (3, 3) from px of the raw view to px of the frame.
    size: the side of the frame in its own px.
    """
    return round(size / scale_of(to_frame, view.image.shape))


def _render_for_metrics(cf: View, fa: View, frame_fa_to_cf: np.ndarray, fa_to_cf: np.ndarray, size: int) -> Pair:
    """Render both views in a frame of at least 512 px, to measure their consistency.

    frame_fa_to_cf: the transform (3, 3) that determines the common field of view, and so the frame. To compare
        two transforms in one frame, call this function once for each, with the same `frame_fa_to_cf`.
    fa_to_cf: the transform (3, 3) that aligns the FA.
    size: the side of the aligned views, px.
    """
    side = max(size, WORK_SIZE)
    frame = common_square(cf, fa, frame_fa_to_cf, side)
    return render(cf, fa, frame, frame @ fa_to_cf, side)


def _register(cf: View, fa: View, landmarks: Landmarks | None, method: Method) -> _Registered:
    if method == "none":
        return _Registered(np.eye(3), np.eye(3), None)
    if method == "features" or landmarks is None:
        return _register_by_vessels(cf, fa)
    if method == "matches":
        return _register_by_matches(cf, fa, landmarks)
    initial = register_points(cf, fa, landmarks)
    enough = initial.inliers >= _min_inliers(len(landmarks.cf))
    refined = refine(cf, fa, initial.fa_to_cf, landmarks) if enough else initial.fa_to_cf
    return _Registered(initial.fa_to_cf, refined, initial.inliers)


def _register_by_vessels(cf: View, fa: View) -> _Registered:
    """Register the views without landmarks.

    There are two independent initial estimates: from a search over poses, and from matched features. If they differ
    by more than 10 work px, both are refined, and the one with the higher consistency is returned. If they differ by
    less, or if no features agree, only the estimate of the search is refined.
    """
    features = match_features(cf, fa)
    searched, matched = search_pose(cf, fa), register_features(cf, fa, features)
    estimates = [searched]
    if matched.inliers and median_displacement(cf, fa, searched, matched.fa_to_cf) > _SAME_PX:
        estimates.append(matched.fa_to_cf)
    candidates = [(initial, refine(cf, fa, initial, None)) for initial in estimates]
    best = (
        max(
            candidates,
            key=lambda candidate: _render_for_metrics(cf, fa, candidate[1], candidate[1], WORK_SIZE).consistency(),
        )
        if len(candidates) > 1
        else candidates[0]
    )
    return _Registered(*best, count_inliers(cf, best[1], features))


def _register_by_matches(cf: View, fa: View, matches: Landmarks) -> _Registered:
    """Register the views by the matches of a network: by RANSAC, then on the vessels.

    Hundreds of matches may share one error, so they are not weighed against the vessels as landmarks are. But if more
    than a quarter of the matches that agree with the initial transform no longer agree after the refinement, the
    vessels may have misled it, for example because the dye fills few vessels. The refinement is then repeated with the
    matches that agree with the initial transform as landmarks.
    """
    found = register_features(cf, fa, matches)
    initial, inliers = found.fa_to_cf, select_inliers(cf, found.fa_to_cf, matches)
    if found.inliers < _MIN_FEATURES:
        return _Registered(initial, initial, found.inliers)
    refined = refine(cf, fa, initial, None)
    if count_inliers(cf, refined, inliers) < _MIN_KEPT_FRACTION * len(inliers.cf):
        refined = refine(cf, fa, initial, inliers)
    return _Registered(initial, refined, count_inliers(cf, refined, matches))


def _transform_landmarks(landmarks: Landmarks | None, cf_to_frame: np.ndarray, fa_to_frame: np.ndarray) -> np.ndarray:
    """Return the landmarks in frame px, (N, 4) with the columns cf_x, cf_y, fa_x, fa_y; N is 0 without landmarks."""
    if landmarks is None:
        return np.empty((0, 4))
    return np.hstack([transform_points(cf_to_frame, landmarks.cf), transform_points(fa_to_frame, landmarks.fa)])


def _median_residual(points: np.ndarray, shifts: np.ndarray | None, size: int) -> float | None:
    """Return the residual of the alignment, frame px; None if neither landmarks nor shifts are given.

    It is the median distance between corresponding landmarks or, without landmarks, the median of `shifts`.

    points: the landmarks in frame px, (N, 4).
    shifts: the shifts of vessel patches, (M,) px in a view 512 px wide, or None.
    size: the side of the frame, px.
    """
    if len(points):
        return float(np.median(np.linalg.norm(points[:, :2] - points[:, 2:], axis=1)))
    return float(np.median(shifts)) * size / 512 if shifts is not None and len(shifts) else None


def _refusal(aligned: Aligned, method: Method, size: int, limits: Limits) -> str | None:
    """Return the reason why overlap, landmarks, matches or consistency exclude a pair from use, or None."""
    total, inliers = len(aligned.points), aligned.inliers
    min_consistency = _MIN_CONSISTENCY[method] if limits.min_consistency is None else limits.min_consistency
    if aligned.pair.mask.mean() < _MIN_OVERLAP:
        return f"the views overlap in only {aligned.pair.mask.mean():.0%} of the frame"
    if method == "points" and inliers is not None and inliers < _min_inliers(total):
        return f"only {inliers} of {total} points agree"
    if method == "matches" and inliers is not None and inliers < _MIN_FEATURES:
        advice = "check that they are in px of the image files, or register without matches"
        return f"only {inliers} matches agree with one homography: {advice}"
    residual = px_at_512(aligned.residual_px, size) if total and aligned.residual_px is not None else 0.0
    if residual > limits.max_residual_px:
        return f"median residual {residual:.2f} px at 512 > {limits.max_residual_px:.2f}"
    if aligned.consistency < min_consistency:
        return f"consistency {aligned.consistency:.3f} < {min_consistency:.3f}: {_REMEDY[method]}"
    return None


def _min_inliers(landmarks: int) -> float:
    return max(4, _MIN_INLIER_FRACTION * landmarks)


def _patch_refusal(shifts: np.ndarray | None, method: Method, max_residual_px: float) -> str | None:
    """Return the reason why the shifts of vessel patches exclude a pair from use, or None.

    shifts: the shift of each vessel patch, (M,) px in a view 512 px wide, or None to skip this check.
    """
    if shifts is None:
        return None
    if len(shifts) < _MIN_PATCHES:
        return f"only {len(shifts)} patches of vessels can be compared: {_REMEDY[method]}"
    if (fraction := (shifts <= max_residual_px).mean()) < _MIN_PATCH_FRACTION:
        return f"only {fraction:.0%} of the vessel patches fit within {max_residual_px:g} px at 512: {_REMEDY[method]}"
    return None


def _doubt(registered: _Registered, method: Method, shifts: np.ndarray, limits: Limits) -> str | None:
    """Return the reason why the user should inspect a pair that may be used, or None.

    The check of the vessel patches also finds landmarks that were placed on resized copies of the images: the landmarks
    agree with one another, but the vessels do not fit.

    shifts: the shift of each vessel patch, (M,) px in a view 512 px wide.
    """
    if method == "features" and registered.inliers is not None and registered.inliers < _MIN_FEATURES:
        return f"only {registered.inliers} features agree with the registration"
    if len(shifts) >= _MIN_PATCHES and (fraction := (shifts <= limits.max_residual_px).mean()) < _DOUBT_BELOW:
        hint = "; were its points placed on resized images?" if method == "points" else ""
        return f"only {fraction:.0%} of its vessel patches fit within {limits.max_residual_px:g} px at 512{hint}"
    return None
