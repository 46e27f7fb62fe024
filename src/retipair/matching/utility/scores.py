"""Test a descriptor: find the landmarks of real pairs in FAs that were warped by known transforms."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch

from retipair.data.dataset import PairRecord, load_pair
from retipair.data.pair import Pair
from retipair.matching.utility.keypoints import describe, find_keypoints, view_maps
from retipair.matching.warped_pair import SegmentedPair, Variation
from retipair.matching.warps import WarpRanges
from retipair.registration.descriptors import homography_of_matches
from retipair.registration.estimate import LANDMARK_INLIER_PX
from retipair.registration.warp import transform_points
from retipair.vision.field_of_view import contains
from retipair.vision.ridges import MEASURED_AT

TOLERANCE = LANDMARK_INLIER_PX
"""px at 512: a landmark counts as found if the matched point is at most this far from its true partner.

It is about three times the scatter of hand-placed landmarks, 2.5 px. Landmarks whose positions in CF and FA of the
aligned pair differ by more than this are left out of the test, as errors of the person who placed them.
"""
KEYPOINTS = 300
DISTANCE = 6
"""px at 512: the least distance between the keypoints of a view."""
RANSAC_PX = 3.0
SUCCESS_PX = 20.0


@dataclass(frozen=True)
class Level:
    """How the FAs of a test are warped.

    ranges: the distributions of the homographies.
    appearance: whether brightness, contrast and field of view of both views are changed too.
    """

    name: str
    ranges: WarpRanges
    appearance: bool


# With the raw descriptors, recall@1 on seven real pairs of four eyes is .35 (hard) and .13 (extreme).
HARD = Level("hard", WarpRanges((0.0, 45.0), (0.75, 1.3), (0.0, 0.2), (0.0, 2e-4)), appearance=False)
EXTREME = Level("extreme", WarpRanges((0.0, 90.0), (0.6, 1.6), (0.0, 0.25), (0.0, 5e-4)), appearance=True)
LEVELS = (HARD, EXTREME)


@dataclass(frozen=True)
class LandmarkPair:
    """An aligned pair with the landmarks of both views, (N, 2) px at 512."""

    id: str
    eye: str
    pair: Pair
    cf_points: np.ndarray
    fa_points: np.ndarray


@dataclass(frozen=True)
class TestImage:
    """A CF and a warped FA with their keypoints and the raw descriptors of these, px at 512.

    In both views, the first `landmarks` keypoints are the landmarks, in the same order.
    """

    id: str
    eye: str
    level: str
    landmarks: int
    cf_points: np.ndarray
    fa_points: np.ndarray
    cf_descriptors: np.ndarray
    fa_descriptors: np.ndarray
    __test__ = False


@dataclass(frozen=True)
class ImageScore:
    """How well one test image was matched.

    found: the number of landmarks whose partner was found.
    landmarks: the number of landmarks that are visible in both views.
    error_px: the mean error of the estimated homography at the landmarks, px at 512; infinite if the estimate failed.
    """

    id: str
    eye: str
    level: str
    found: int
    landmarks: int
    error_px: float


def load_landmark_pair(record: PairRecord, points: Sequence[Sequence[float]]) -> LandmarkPair:
    """Load a pair at a width of 512 px, with the landmarks whose positions in CF and FA agree.

    points: the landmarks of the prepared pair, rows (cf_x, cf_y, fa_x, fa_y) in px of the prepared views.
    """
    pair = load_pair(record)
    scale = MEASURED_AT / len(pair.mask)
    placed = (np.array(points, dtype=float).reshape(-1, 4) + 0.5) * scale - 0.5
    agree = np.linalg.norm(placed[:, :2] - placed[:, 2:], axis=1) <= TOLERANCE
    return LandmarkPair(record.id, record.group, pair.at_reference_size(), placed[agree, :2], placed[agree, 2:])


def make_test_image(source: LandmarkPair, level: Level, number: int, seed: int) -> TestImage:
    """Warp the FA of a pair by transform `number`, and describe landmarks and keypoints in both views."""
    segmented = SegmentedPair(source.pair, source.pair.mask, source.fa_points)
    warped = Variation(level.ranges, seed=seed).make(segmented, source.id, number, level.appearance)
    on_fa = warped.warp.transform(source.fa_points)
    seen = contains(warped.valid_cf, source.cf_points) & contains(warped.valid_fa, on_fa)
    sides = []
    for image, mask, points in (
        (warped.cf, warped.valid_cf, source.cf_points),
        (warped.fa, warped.valid_fa, on_fa),
    ):
        maps = view_maps(image, mask)
        keypoints = np.vstack([points[seen], find_keypoints(maps.ridges, KEYPOINTS, DISTANCE)])
        sides.append((keypoints, describe(maps, keypoints)))
    (cf_points, cf_descriptors), (fa_points, fa_descriptors) = sides
    return TestImage(
        source.id, source.eye, level.name, int(seen.sum()), cf_points, fa_points, cf_descriptors, fa_descriptors
    )


def score_image(image: TestImage, model: Callable[[torch.Tensor], torch.Tensor]) -> ImageScore:
    """Match the descriptors of a test image after `model` has changed them.

    model: maps raw descriptors (N, D) to descriptors of norm 1.
    """
    with torch.no_grad():
        cf, fa = (model(torch.from_numpy(values)) for values in (image.cf_descriptors, image.fa_descriptors))
        similarity = (cf @ fa.T).numpy()
    n = image.landmarks
    distances = np.linalg.norm(image.fa_points[similarity[:n].argmax(axis=1)] - image.fa_points[:n], axis=1)
    found = int((distances <= TOLERANCE).sum())
    return ImageScore(image.id, image.eye, image.level, found, n, _registration_error(image, similarity))


def _registration_error(image: TestImage, similarity: np.ndarray) -> float:
    """Return the mean error, at the landmarks, of the homography that RANSAC finds from the other keypoints."""
    n = image.landmarks
    if not n or min(similarity.shape) <= n:
        return float("inf")
    others = similarity[n:, n:]
    forward, backward = others.argmax(axis=1), others.argmax(axis=0)
    mutual = np.flatnonzero(backward[forward] == np.arange(len(forward)))
    on_cf, on_fa = image.cf_points[n:][mutual], image.fa_points[n:][forward[mutual]]
    homography = homography_of_matches(on_cf, on_fa, RANSAC_PX)
    if homography is None:
        return float("inf")
    errors = np.linalg.norm(transform_points(homography, image.cf_points[:n]) - image.fa_points[:n], axis=1)
    return float(errors.mean()) if np.isfinite(errors).all() else float("inf")
