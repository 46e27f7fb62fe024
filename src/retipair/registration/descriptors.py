"""Describe points of an image map by upright SIFT descriptors, and estimate a homography from matched points."""

import cv2
import numpy as np

OCTAVES = (0, 1, 2)
"""Octaves of the scale space. The descriptor covers a square of 24 px in octave 0, of 48 px in 1, and of 96 px in 2."""
LENGTH = 128 * len(OCTAVES)
"""Number of values that describe a point of one map."""
_DIAMETER = 4.0  # px of the octave: a spatial bin is 1.5 times this wide, and there are 4 x 4 bins
_ITERATIONS = 5000


def root_sift(image: np.ndarray, points: np.ndarray) -> np.ndarray:
    """Return the upright RootSIFT descriptors of points at the scales OCTAVES, (N, LENGTH) float32, >= 0.

    Upright: the orientation of all points is that of the image. RootSIFT (Arandjelovic and Zisserman 2012, doi
    10.1109/CVPR.2012.6248018) is the square root of a SIFT descriptor that is scaled to the sum 1. The descriptors of
    the scales are concatenated, so the squared norm of the result is len(OCTAVES), or less where the map is constant.

    image: a map, for example of the vesselness, (H, W) uint8.
    points: (N, 2) px.
    """
    if not len(points):
        return np.empty((0, LENGTH), dtype=np.float32)
    keys = [
        cv2.KeyPoint(float(x), float(y), _DIAMETER * 2**octave, 0.0, 0.0, octave)
        for octave in OCTAVES
        for x, y in points
    ]
    described, values = cv2.SIFT.create().compute(image, keys)
    assert len(described) == len(keys), "OpenCV left out points"
    values = np.sqrt(values / np.maximum(values.sum(axis=1, keepdims=True), 1e-6))
    return np.hstack(np.split(values, len(OCTAVES)))


def homography_of_matches(moving: np.ndarray, fixed: np.ndarray, threshold: float) -> np.ndarray | None:
    """Return the homography (3, 3) from `moving` to `fixed` that RANSAC finds, or None if it finds none.

    moving, fixed: matched points, (N, 2) px each; many may be wrong.
    threshold: the largest error of a match that counts as an inlier, px.
    """
    if len(moving) < 4:
        return None
    homography, _ = cv2.findHomography(moving, fixed, cv2.RANSAC, threshold, maxIters=_ITERATIONS)
    return None if homography is None else np.asarray(homography)
