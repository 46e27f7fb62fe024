"""Estimate the initial transform from the moving FA to the fixed CF, from landmarks or features.

Transforms are homographies (3, 3) between coordinates in which pixel centres are integers: the centre of the top-left
pixel is (0, 0), so resizing by the factor s maps x to (x + 0.5) s - 0.5. The *work frame* of a view is the square
around its field of view, resized to 512 px. Coordinates in it are called work px. The thresholds in this module hold
for this scale.
"""

from dataclasses import dataclass

import cv2
import numpy as np

from retipair.registration.landmarks import Landmarks
from retipair.registration.warp import (
    DETAIL_RATIO,
    WORK_CORNERS,
    View,
    reprojection_errors,
    transform_points,
    vessel_map,
)

LANDMARK_INLIER_PX = 8.0  # work px: about three times the scatter of hand-placed points, 2.5 px
_FEATURE_INLIER_PX = 6.0  # work px: features scatter less than hand-placed points
_MIN_HOMOGRAPHY_INLIERS = 8  # with fewer inliers, a similarity transform is tried too
_LOWE_RATIO = 0.85  # for Lowe's ratio test; high, as vessels look alike and RANSAC rejects false matches


@dataclass(frozen=True)
class Registration:
    """An initial estimate of the transform between the views of a pair.

    fa_to_cf: the transform (3, 3) from raw FA px to raw CF px.
    inliers: the number of landmarks or features that agree with it.
    """

    fa_to_cf: np.ndarray
    inliers: int


# --- Initial estimate


def register_points(cf: View, fa: View, landmarks: Landmarks) -> Registration:
    """Estimate the transform from landmarks by RANSAC.

    The transform is a homography if 8 or more landmarks agree with it. Otherwise a similarity transform (a partial
    affine transform in OpenCV) is estimated too, and returned unless fewer landmarks agree with it than with the
    homography. The returned transform neither mirrors nor folds the field of view. The number of inliers is 0 if the
    estimate fails.

    If one view shows a magnified part of the other view, errors are measured in px of the magnified view. If the scales
    of the views differ by a factor of 3 or more, landmarks must agree in both directions, because a homography that
    shrinks the field of view to a point would fit any landmarks in one direction.
    """
    fa_points, cf_points = transform_points(fa.to_work, landmarks.fa), transform_points(cf.to_work, landmarks.cf)
    if _median_radius(fa_points) > DETAIL_RATIO * _median_radius(cf_points):
        cf_to_fa, inliers = _estimate_ransac(cf_points, fa_points, LANDMARK_INLIER_PX)
        return Registration(to_raw(cf, fa, np.linalg.inv(cf_to_fa)), inliers)
    work, inliers = _estimate_ransac(fa_points, cf_points, LANDMARK_INLIER_PX)
    return Registration(to_raw(cf, fa, work), inliers)


def register_features(cf: View, fa: View, features: Landmarks) -> Registration:
    """Estimate the transform from matched features by RANSAC. The number of inliers is 0 if the estimate fails.

    Many of the matches may be false.
    """
    work, inliers = _estimate_ransac(
        transform_points(fa.to_work, features.fa), transform_points(cf.to_work, features.cf), _FEATURE_INLIER_PX
    )
    return Registration(to_raw(cf, fa, work), inliers)


def match_features(cf: View, fa: View) -> Landmarks:
    """Match SIFT features of the vesselness maps of both views by Lowe's ratio test. Many matches are false.

    The positions in the result are given in px of the views as loaded (raw px).
    """
    on_fa, on_cf = _matches(vessel_map(fa, fa.to_work), vessel_map(cf, cf.to_work))
    return Landmarks(
        transform_points(np.linalg.inv(cf.to_work), on_cf), transform_points(np.linalg.inv(fa.to_work), on_fa)
    )


def count_inliers(cf: View, fa_to_cf: np.ndarray, features: Landmarks) -> int:
    """Count the matched features that agree with the transform `fa_to_cf` (3, 3), from raw FA px to raw CF px."""
    return len(select_inliers(cf, fa_to_cf, features).cf)


def select_inliers(cf: View, fa_to_cf: np.ndarray, features: Landmarks) -> Landmarks:
    """Return the matched features that agree with the transform `fa_to_cf` (3, 3), from raw FA px to raw CF px."""
    agree = reprojection_errors(fa_to_cf, features) * cf.to_work[0, 0] <= _FEATURE_INLIER_PX
    return Landmarks(features.cf[agree], features.fa[agree])


def median_displacement(cf: View, fa: View, a: np.ndarray, b: np.ndarray) -> float:
    """Return how far apart two transforms move the same points of the FA.

    Points of a grid in the field of view of the FA are transformed by `a` and by `b`. The result is the median distance
    of the two transformed positions, in px of the work frame of the CF (512 px wide).

    a, b: the transforms (3, 3), from raw FA px to raw CF px.
    """
    rows, columns = np.nonzero(fa.field[::16, ::16])
    points = 16.0 * np.column_stack([columns, rows])
    distances = np.linalg.norm(transform_points(a, points) - transform_points(b, points), axis=1)
    return float(np.median(distances) * cf.to_work[0, 0])


def to_raw(cf: View, fa: View, work: np.ndarray) -> np.ndarray:
    """Convert `work`, a transform (3, 3) from FA work px to CF work px, to a transform from raw FA px to raw CF px."""
    fa_to_cf = np.linalg.inv(cf.to_work) @ work @ fa.to_work
    return np.asarray(fa_to_cf / fa_to_cf[2, 2])


def _median_radius(points: np.ndarray) -> float:
    """Return the radius of a set of points (N, 2): the median distance from their median."""
    return float(np.median(np.linalg.norm(points - np.median(points, axis=0), axis=1)))


def _estimate_ransac(moving: np.ndarray, fixed: np.ndarray, threshold: float) -> tuple[np.ndarray, int]:
    """Estimate a transform by RANSAC. Return (transform (3, 3), number of matches that agree with it).

    moving, fixed: the positions of the matches, (N, 2) px each. The transform maps `moving` to `fixed`.
    threshold: the largest error of a match that counts as an inlier, px.

    Returns (identity, 0) if no plausible transform is found.
    """
    if len(moving) < 4:
        return np.eye(3), 0
    homography, is_inlier = cv2.findHomography(moving, fixed, cv2.RANSAC, threshold, maxIters=5000)
    inliers = _count_ransac_inliers(homography, is_inlier, moving, fixed, threshold)
    if inliers >= _MIN_HOMOGRAPHY_INLIERS:
        return homography, inliers
    affine, is_inlier = cv2.estimateAffinePartial2D(moving, fixed, method=cv2.RANSAC, ransacReprojThreshold=threshold)
    affine = None if affine is None else np.vstack([affine, [0, 0, 1]])
    affine_inliers = _count_ransac_inliers(affine, is_inlier, moving, fixed, threshold)
    if affine is not None and affine_inliers and affine_inliers >= inliers:
        return affine, affine_inliers
    return (homography, inliers) if inliers and is_plausible(homography) else (np.eye(3), 0)


def _count_ransac_inliers(
    transform: np.ndarray | None, is_inlier: np.ndarray, moving: np.ndarray, fixed: np.ndarray, threshold: float
) -> int:
    """Count the matches that agree with a transform. Return 0 if the transform is implausible (see `is_plausible`).

    There is one exception, for a view that shows a magnified part of the other view: the matches are also counted if
    the transform changes the scale by a factor of 3 or more at its inliers, and neither mirrors nor folds there. A
    match must then agree in both directions, because a transform that shrinks the field of view to a point would fit
    any matches in one direction.

    transform: the transform (3, 3) that RANSAC found, or None.
    is_inlier: (N, 1), above 0 for matches that RANSAC counts as inliers.
    moving, fixed: the positions of the matches, (N, 2) px each.
    threshold: the largest error of a match that counts as an inlier, px.
    """
    if transform is None or not is_inlier.any():  # of a view without vessels, RANSAC may return a transform of no match
        return 0
    if is_plausible(transform):
        return int(is_inlier.sum())
    depth, area = _depth_and_area(transform, moving[is_inlier.ravel() > 0])
    if 1 / 9 < np.median(area) < 9 or (area <= 0).any() or (depth / depth[0] <= 0).any():
        return 0
    forward, backward = (
        transform_points(transform, moving) - fixed,
        transform_points(np.linalg.inv(transform), fixed) - moving,
    )
    return int((np.maximum(np.linalg.norm(forward, axis=1), np.linalg.norm(backward, axis=1)) <= threshold).sum())


def is_plausible(homography: np.ndarray) -> bool:
    """Return True if a homography (3, 3) of a work frame is plausible at all corners of the frame.

    A plausible homography does not mirror, does not fold, and changes the scale by less than a factor of 3.
    """
    depth, area = _depth_and_area(homography, WORK_CORNERS)
    return bool((area > 1 / 9).all() and (area < 9).all() and (depth / depth[0] > 0).all())


def _depth_and_area(homography: np.ndarray, points: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Compute, at N points, whether a homography folds or mirrors the plane.

    points: the positions, (N, 2).

    Returns two arrays (N,). The first contains the third homogeneous coordinate of the transformed points; if its sign
    changes between points, the homography folds. The second contains the determinant of the Jacobian; where it is
    negative, the homography mirrors.
    """
    depth = homography[2, :2] @ points.T + homography[2, 2]
    return depth, np.linalg.det(homography) / depth**3


def _matches(fa_ridges: np.ndarray, cf_ridges: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return (positions in the FA, positions in the CF) of SIFT features that match, (N, 2) each, work px.

    fa_ridges, cf_ridges: the vesselness of the views, each in its work frame.
    """
    sift = cv2.SIFT.create(nfeatures=2000, contrastThreshold=0.02)
    (fa_keys, fa_descriptors), (cf_keys, cf_descriptors) = (
        sift.detectAndCompute(_to_uint8(ridges), None) for ridges in (fa_ridges, cf_ridges)
    )
    if len(fa_keys) < 2 or len(cf_keys) < 2:
        return np.empty((0, 2)), np.empty((0, 2))
    nearest = cv2.BFMatcher(cv2.NORM_L2).knnMatch(fa_descriptors, cf_descriptors, k=2)
    good = [first for first, second in nearest if first.distance < _LOWE_RATIO * second.distance]
    on_fa = np.array([fa_keys[match.queryIdx].pt for match in good])
    on_cf = np.array([cf_keys[match.trainIdx].pt for match in good])
    return on_fa.reshape(-1, 2), on_cf.reshape(-1, 2)


def _to_uint8(ridges: np.ndarray) -> np.ndarray:
    return np.clip(255 * ridges / (np.percentile(ridges, 99.5) + 1e-6), 0, 255).astype(np.uint8)
