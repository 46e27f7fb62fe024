"""Transform images and points by homographies (3, 3) between coordinates in which pixel centres are integers."""

from dataclasses import dataclass
from functools import cached_property

import cv2
import numpy as np

from retipair.data.pair import Pair
from retipair.registration.landmarks import Landmarks
from retipair.vision.field_of_view import erode, field_of_view
from retipair.vision.ridges import vesselness

WORK_SIZE = 512
DETAIL_RATIO = 2.0  # a view whose scale is more than twice that of the other view counts as a magnified part of it
_RIM = 10.0  # work px: width of the excluded rim of the field of view, whose edge looks like a vessel
WORK_CORNERS = np.array([[0, 0], [1, 0], [0, 1], [1, 1]], dtype=np.float32) * (WORK_SIZE - 1)


@dataclass(frozen=True)
class View:
    """A raw CF (H, W, 3) or FA (H, W), uint8.

    dark: whether vessels are darker than their surroundings; None: yes in a CF, no in an FA.
    """

    image: np.ndarray
    dark: bool | None = None

    @property
    def has_dark_vessels(self) -> bool:
        return self.image.ndim == 3 if self.dark is None else self.dark

    @cached_property
    def field(self) -> np.ndarray:
        """The field of view, (H, W) bool. It is the whole image if no edge is found."""
        field = field_of_view(self.image)
        return field if field.any() else np.ones_like(field)

    @cached_property
    def to_work(self) -> np.ndarray:
        """The transform (3, 3) from raw px to work px: to the square around the field of view, resized to 512 px."""
        return to_square(self.field, WORK_SIZE)


def transform_points(homography: np.ndarray, points: np.ndarray) -> np.ndarray:
    """Apply a homography (3, 3) to points (N, 2)."""
    moved = np.column_stack([points, np.ones(len(points))]) @ homography.T
    return np.asarray(moved[:, :2] / moved[:, 2:])


def reprojection_errors(homography: np.ndarray, landmarks: Landmarks) -> np.ndarray:
    """Return the distances between CF landmarks and transformed FA landmarks, (N,), in px of the CF landmarks."""
    return np.asarray(np.linalg.norm(transform_points(homography, landmarks.fa) - landmarks.cf, axis=1))


def single_threaded() -> None:
    """Limit OpenCV to one thread. Worker processes call this, because each of them uses one core."""
    cv2.setNumThreads(1)


def inside_field(view: View, to_frame: np.ndarray) -> np.ndarray:
    """Return the field of view without its rim, (512, 512) bool, in the frame that `to_frame` (3, 3) maps raw px to."""
    return erode(resample(view.field, to_frame, WORK_SIZE), _RIM)


def vessel_map(view: View, to_frame: np.ndarray) -> np.ndarray:
    """Return the vesselness of a view, (512, 512) float32, in the frame that `to_frame` (3, 3) maps raw px to.

    It is 0 outside the field of view and at its rim.
    """
    field = resample(view.field, to_frame, WORK_SIZE)
    ridges = vesselness(resample(view.image, to_frame, WORK_SIZE), field, view.dark)
    return ridges * erode(field, _RIM).astype(np.float32)


def common_square(cf: View, fa: View, fa_to_cf: np.ndarray, size: int) -> np.ndarray:
    """Return the transform (3, 3) from raw CF px to a square of `size` px around the common field of view.

    If the fields of CF and FA do not overlap, it is the square around the field of the CF.

    fa_to_cf: the transform (3, 3) from raw FA px to raw CF px.
    """
    height, width = cf.field.shape
    moved = cv2.warpPerspective(fa.field.astype(np.uint8), fa_to_cf, (width, height), flags=cv2.INTER_NEAREST)
    both = cf.field & (moved > 0)
    return to_square(both if both.any() else cf.field, size)


def render(cf: View, fa: View, cf_to_frame: np.ndarray, fa_to_frame: np.ndarray, size: int) -> Pair:
    """Resample both views into one frame of `size` px. Both are black where one of them is outside its field of view.

    cf_to_frame, fa_to_frame: the transforms (3, 3) from raw px of each view to frame px.
    """
    mask = resample(cf.field, cf_to_frame, size) & resample(fa.field, fa_to_frame, size)
    moved_cf, moved_fa = resample(cf.image, cf_to_frame, size), resample(fa.image, fa_to_frame, size)
    dark = cf.has_dark_vessels, fa.has_dark_vessels
    return Pair(moved_cf * mask[..., None], moved_fa * mask, mask, dark_vessels=dark)


def to_square(field: np.ndarray, size: int) -> np.ndarray:
    """Return the transform (3, 3) from the smallest square around `field` (H, W) bool to a square of `size` px."""
    rows, columns = (np.flatnonzero(field.any(axis=axis)) for axis in (1, 0))
    first, last = np.array([columns[0], rows[0]]), np.array([columns[-1], rows[-1]])
    side = float((last - first).max() + 1)
    # The edge of the square maps to -0.5, because it lies half a pixel before the first pixel centre.
    edge = (first + last - side) / 2
    scale = size / side
    x, y = -edge * scale - 0.5
    return np.array([[scale, 0, x], [0, scale, y], [0, 0, 1]])


def resample(image: np.ndarray, homography: np.ndarray, size: int | tuple[int, int]) -> np.ndarray:
    """Resample an image or a mask into a frame. The frame is black outside the image.

    Images are resampled bicubically, bool masks linearly with a threshold of 0.5. If `homography` shrinks the image or
    mask by more than 5 %, the image or mask is blurred first, against aliasing.

    image: (H, W) or (H, W, 3), uint8, float32 or bool.
    homography: the transform (3, 3) from px of the image to px of the frame.
    size: the side of a square frame in px, or the (height, width) of a frame.
    """
    height, width = (size, size) if isinstance(size, int) else size
    interpolation = cv2.INTER_LINEAR if image.dtype == bool else cv2.INTER_CUBIC
    values = image.astype(np.float32) if image.dtype == bool else image
    if (shrink := 1 / scale_of(homography, image.shape)) > 1.05:
        values = cv2.GaussianBlur(values, (0, 0), (shrink - 1) / 2)
    moved = cv2.warpPerspective(values, homography, (width, height), flags=interpolation)
    return np.asarray(moved > 0.5 if image.dtype == bool else moved)


def scale_of(homography: np.ndarray, shape: tuple[int, ...]) -> float:
    """Return the factor by which `homography` (3, 3) enlarges an image of shape (H, W, ...) at its centre."""
    x, y = shape[1] / 2, shape[0] / 2
    origin, right, below = transform_points(homography, np.array([[x, y], [x + 1, y], [x, y + 1]]))
    return float(np.sqrt(abs(np.linalg.det(np.stack([right - origin, below - origin])))))
