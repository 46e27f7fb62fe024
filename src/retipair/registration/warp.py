"""Views, frames and points through homographies between pixel centres."""

from dataclasses import dataclass
from functools import cached_property

import cv2
import numpy as np

from retipair.data.pair import Pair
from retipair.registration.landmarks import Landmarks
from retipair.vision.field_of_view import erode, field_of_view
from retipair.vision.ridges import vesselness

WORK_SIZE = 512


DETAIL_RATIO = 2.0  # times the scale: one view shows a detail of the other


_RIM = 10.0  # px: the field's edge is a ridge too


WORK_CORNERS = np.array([[0, 0], [1, 0], [0, 1], [1, 1]], dtype=np.float32) * (WORK_SIZE - 1)


@dataclass(frozen=True)
class View:
    """A raw view (H, W, 3) or (H, W) uint8."""

    image: np.ndarray

    @cached_property
    def field(self) -> np.ndarray:
        """Where it shows the eye, (H, W) bool; everywhere if that cannot be seen."""
        field = field_of_view(self.image)
        return field if field.any() else np.ones_like(field)

    @cached_property
    def to_work(self) -> np.ndarray:
        """Raw px -> work px, (3, 3)."""
        return to_square(self.field, WORK_SIZE)


def transform_points(homography: np.ndarray, points: np.ndarray) -> np.ndarray:
    """Points (N, 2) through a homography (3, 3) -> (N, 2)."""
    moved = np.column_stack([points, np.ones(len(points))]) @ homography.T
    return np.asarray(moved[:, :2] / moved[:, 2:])


def reprojection_errors(homography: np.ndarray, landmarks: Landmarks) -> np.ndarray:
    """How far each FA landmark, moved, lies from the CF's, (N,) raw CF px."""
    return np.asarray(np.linalg.norm(transform_points(homography, landmarks.fa) - landmarks.cf, axis=1))


def single_threaded() -> None:
    """Keep OpenCV to one thread: for processes that share the machine."""
    cv2.setNumThreads(1)


def inside_field(view: View, to_work: np.ndarray) -> np.ndarray:
    """Where a view shows the eye in a work frame, but for the field's rim, (512, 512) bool."""
    return erode(resample(view.field, to_work, WORK_SIZE), _RIM)


def vessel_map(view: View, to_work: np.ndarray) -> np.ndarray:
    """Vesselness in a work frame, (512, 512) float32, 0 at the field's rim and beyond."""
    field = resample(view.field, to_work, WORK_SIZE)
    return vesselness(resample(view.image, to_work, WORK_SIZE), field) * erode(field, _RIM).astype(np.float32)


def common_square(cf: View, fa: View, fa_to_cf: np.ndarray, size: int) -> np.ndarray:
    """Raw CF px -> the frame of `size` px around what both views show (the CF, if nothing), (3, 3)."""
    height, width = cf.field.shape
    moved = cv2.warpPerspective(fa.field.astype(np.uint8), fa_to_cf, (width, height), flags=cv2.INTER_NEAREST)
    both = cf.field & (moved > 0)
    return to_square(both if both.any() else cf.field, size)


def render(cf: View, fa: View, cf_to_frame: np.ndarray, fa_to_frame: np.ndarray, size: int) -> Pair:
    """Both views in one frame of `size` px, each resampled once, black where either is not valid."""
    mask = resample(cf.field, cf_to_frame, size) & resample(fa.field, fa_to_frame, size)
    moved_cf, moved_fa = resample(cf.image, cf_to_frame, size), resample(fa.image, fa_to_frame, size)
    return Pair(moved_cf * mask[..., None], moved_fa * mask, mask)


def to_square(field: np.ndarray, size: int) -> np.ndarray:
    """The map from the smallest square around `field`, (H, W) bool, to one of `size` px, (3, 3)."""
    rows, columns = (np.flatnonzero(field.any(axis=axis)) for axis in (1, 0))
    first, last = np.array([columns[0], rows[0]]), np.array([columns[-1], rows[-1]])
    side = float((last - first).max() + 1)
    # The square's edge, half a pixel before its first pixel's centre, becomes -0.5.
    edge = (first + last - side) / 2
    scale = size / side
    x, y = -edge * scale - 0.5
    return np.array([[scale, 0, x], [0, scale, y], [0, 0, 1]])


def resample(image: np.ndarray, homography: np.ndarray, size: int) -> np.ndarray:
    """A view or mask (H, W) or (H, W, 3) through `homography` into a frame of `size` px, black outside.

    Bicubic, blurred first where it shrinks, so that nothing aliases; masks are linear and cut at one half.
    """
    how = cv2.INTER_LINEAR if image.dtype == bool else cv2.INTER_CUBIC
    values = image.astype(np.float32) if image.dtype == bool else image
    if (shrink := 1 / _scale_of(homography, image.shape)) > 1.05:
        values = cv2.GaussianBlur(values, (0, 0), (shrink - 1) / 2)
    moved = cv2.warpPerspective(values, homography, (size, size), flags=how)
    return np.asarray(moved > 0.5 if image.dtype == bool else moved)


def _scale_of(homography: np.ndarray, shape: tuple[int, ...]) -> float:
    """How much `homography` enlarges at the centre of an image of this shape."""
    x, y = shape[1] / 2, shape[0] / 2
    origin, right, below = transform_points(homography, np.array([[x, y], [x + 1, y], [x, y + 1]]))
    return float(np.sqrt(abs(np.linalg.det(np.stack([right - origin, below - origin])))))
