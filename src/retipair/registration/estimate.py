"""Estimate the initial transform from the moving FA to the fixed CF, from landmarks or features.

Transforms are (3, 3) homographies between pixel centres: the centre of the top-left pixel is (0, 0), so
resizing by s maps x to (x + 0.5) s - 0.5. A view's *work frame* is the square around its field of view at
512 px, the scale at which vessel widths and all thresholds here were measured.
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

LANDMARK_INLIER_PX = 8.0  # points placed by hand scatter by about 2.5 px; three times that is an outlier
_FEATURE_INLIER_PX = 6.0  # features scatter less than hand-placed points, but many are false matches
_MIN_HOMOGRAPHY_INLIERS = 8  # a homography through fewer landmarks extrapolates their jitter
_LOWE_RATIO = 0.85  # of Lowe's ratio test; lenient, because vessels look alike: RANSAC rejects false matches


@dataclass(frozen=True)
class Registration:
    """`fa_to_cf` (3, 3) maps raw FA px to raw CF px; `inliers`: number of landmarks or features that agree with it."""

    fa_to_cf: np.ndarray
    inliers: int


# --- Initial estimate


def register_points(cf: View, fa: View, landmarks: Landmarks) -> Registration:
    """Estimate the homography by RANSAC from landmarks, or a partial affine transform if too few agree.

    The transform neither mirrors nor folds the field. If one view shows a magnified part of the other, errors are
    measured in px of the magnified view. If the scale changes by a factor of 3 or more, the points must agree in both
    directions of the transform, because a homography that shrinks a field to a point fits any points.
    """
    fa_points, cf_points = transform_points(fa.to_work, landmarks.fa), transform_points(cf.to_work, landmarks.cf)
    if _median_radius(fa_points) > DETAIL_RATIO * _median_radius(cf_points):
        cf_to_fa, inliers = _estimate_ransac(cf_points, fa_points, LANDMARK_INLIER_PX)
        return Registration(to_raw(cf, fa, np.linalg.inv(cf_to_fa)), inliers)
    work, inliers = _estimate_ransac(fa_points, cf_points, LANDMARK_INLIER_PX)
    return Registration(to_raw(cf, fa, work), inliers)


def register_features(cf: View, fa: View, features: Landmarks) -> Registration:
    """Estimate the homography by RANSAC from matched `features`; 0 inliers without features."""
    work, inliers = _estimate_ransac(
        transform_points(fa.to_work, features.fa), transform_points(cf.to_work, features.cf), _FEATURE_INLIER_PX
    )
    return Registration(to_raw(cf, fa, work), inliers)


def match_features(cf: View, fa: View) -> Landmarks:
    """Match SIFT features of both vesselness maps by Lowe's ratio test, raw px; many matches are false."""
    on_fa, on_cf = _matches(vessel_map(fa, fa.to_work), vessel_map(cf, cf.to_work))
    return Landmarks(
        transform_points(np.linalg.inv(cf.to_work), on_cf), transform_points(np.linalg.inv(fa.to_work), on_fa)
    )


def count_inliers(cf: View, fa_to_cf: np.ndarray, features: Landmarks) -> int:
    """Count the matched `features` that agree with a transform (3, 3), raw FA px -> raw CF px."""
    return int((reprojection_errors(fa_to_cf, features) * cf.to_work[0, 0] <= _FEATURE_INLIER_PX).sum())


def median_displacement(cf: View, fa: View, a: np.ndarray, b: np.ndarray) -> float:
    """Return the median distance between the FA's field moved by `a` and moved by `b`, px at 512.

    a, b: transforms (3, 3), raw FA px -> raw CF px.
    """
    rows, columns = np.nonzero(fa.field[::16, ::16])
    points = 16.0 * np.column_stack([columns, rows])
    distances = np.linalg.norm(transform_points(a, points) - transform_points(b, points), axis=1)
    return float(np.median(distances) * cf.to_work[0, 0])


def to_raw(cf: View, fa: View, work: np.ndarray) -> np.ndarray:
    """Convert a transform FA work px -> CF work px to raw FA px -> raw CF px, (3, 3) each."""
    fa_to_cf = np.linalg.inv(cf.to_work) @ work @ fa.to_work
    return np.asarray(fa_to_cf / fa_to_cf[2, 2])


def _median_radius(points: np.ndarray) -> float:
    """Return the median distance of points (N, 2) from their median, which is robust to outliers."""
    return float(np.median(np.linalg.norm(points - np.median(points, axis=0), axis=1)))


def _estimate_ransac(moving: np.ndarray, fixed: np.ndarray, threshold: float) -> tuple[np.ndarray, int]:
    """Return the RANSAC transform (3, 3) of matches (N, 2), and the number of matches within `threshold` px of it."""
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
    """Count the matches (N, 2) that agree with a RANSAC transform; 0 if the transform is implausible.

    A large change of scale is accepted only if the matches agree in both directions: a transform that shrinks a field
    to a point fits any matches.
    """
    if transform is None or is_plausible(transform):
        return 0 if transform is None else int(is_inlier.sum())
    depth, area = _depth_and_area(transform, moving[is_inlier.ravel() > 0])
    if 1 / 9 < np.median(area) < 9 or (area <= 0).any() or (depth / depth[0] <= 0).any():
        return 0
    forward, backward = (
        transform_points(transform, moving) - fixed,
        transform_points(np.linalg.inv(transform), fixed) - moving,
    )
    return int((np.maximum(np.linalg.norm(forward, axis=1), np.linalg.norm(backward, axis=1)) <= threshold).sum())


def is_plausible(homography: np.ndarray) -> bool:
    """Return True if a homography of a work frame does not mirror, fold, or scale by a factor of 3 at any corner."""
    depth, area = _depth_and_area(homography, WORK_CORNERS)
    return bool((area > 1 / 9).all() and (area < 9).all() and (depth / depth[0] > 0).all())


def _depth_and_area(homography: np.ndarray, points: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return the homogeneous coordinate and the determinant of the Jacobian at points (N, 2), (N,) each."""
    depth = homography[2, :2] @ points.T + homography[2, 2]
    return depth, np.linalg.det(homography) / depth**3


def _matches(fa_ridges: np.ndarray, cf_ridges: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return the positions of features that match by Lowe's ratio test, (N, 2) each."""
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
