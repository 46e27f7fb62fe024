"""Segment the field of view, the region inside the round aperture of the camera, from the border around it."""

import numpy as np
from PIL import Image, ImageDraw
from scipy import ndimage
from scipy.spatial import ConvexHull

from retipair.vision.distance import is_farther

_WORK_SIDE = 512  # px: larger views are reduced to this side, which suffices for an aperture that is large and smooth
_SIDES = np.array([(-0.5, 0.0), (0.5, 0.0), (0.0, -0.5), (0.0, 0.5)])
_MAX_BLACK_BORDER = 32  # highest grey level of a border that counts as black


def field_of_view(image: np.ndarray) -> np.ndarray:
    """Return the field of view of a CF (H, W, 3) or FA (H, W) uint8 as a mask (H, W) bool.

    The mask has no holes, for example at a dark fovea or haemorrhage. It excludes a border that is black or of uniform
    brightness, and notches and letters at the edge of the aperture. It is True everywhere if the view has no border,
    and False everywhere if the view is black.
    """
    grey = np.maximum.reduce([image[..., channel] for channel in range(3)]) if image.ndim == 3 else image
    small = _shrink(grey)
    border = _border(small)
    if not border.any():
        return np.ones(grey.shape, dtype=bool)
    return _resize_mask(_fill(~border), grey.shape)


def erode(mask: np.ndarray, radius: float) -> np.ndarray:
    """Return the pixels of a mask (H, W) bool that are more than `radius` px from its edge and the image edge."""
    inside = np.pad(mask, 1)
    return is_farther(inside, radius)[1:-1, 1:-1]


def contains(mask: np.ndarray, points: np.ndarray, margin: int = 0) -> np.ndarray:
    """Return for each point whether its nearest pixel lies in a mask (H, W) bool, (N,) bool.

    points: the (x, y) of each point in px, (N, 2).
    margin: px; if it is not 0, the pixel must lie more than `margin` px from the edge of the mask and of the image, as
        the pixels that `erode` returns do.
    """
    down, right = np.mgrid[-margin : margin + 1, -margin : margin + 1]
    near = down**2 + right**2 <= margin**2
    padded = np.pad(mask, margin + 1)
    columns, rows = (np.rint(points).astype(int).clip(-1, mask.shape[::-1]) + margin + 1).T
    return np.asarray(padded[rows[:, None] + down[near], columns[:, None] + right[near]].all(axis=1))


def _shrink(grey: np.ndarray) -> np.ndarray:
    scale = min(1.0, _WORK_SIDE / max(grey.shape))
    height, width = (max(1, round(n * scale)) for n in grey.shape)
    resized = Image.fromarray(grey).resize((width, height), Image.Resampling.BOX)
    return np.asarray(resized, dtype=np.float32)


def _border(grey: np.ndarray) -> np.ndarray:
    """Return the border around the field of view, (H, W) bool.

    The border consists of the pixels that are about as bright as the darkest corner of the image and connected to the
    image edge. The border is empty if no corner is black and not all corners are uniform.
    """
    level = min(float(np.median(corner)) for corner in _corners(grey))
    flat = all(np.ptp(corner) <= 2 for corner in _corners(grey))
    if level <= _MAX_BLACK_BORDER:
        # Glare brightens a black border by up to a tenth of the brightness of the field of view.
        contrast = float(np.percentile(grey, 95)) - level
        similar = ndimage.gaussian_filter(grey, 1) <= level + max(8.0, 0.12 * contrast)
    elif flat:
        # Some borders are as bright as the field of view; only their uniform grey level distinguishes them.
        similar = ndimage.binary_dilation(ndimage.maximum_filter(abs(grey - level), 5) <= 4, iterations=2)
    else:
        return np.zeros(grey.shape, dtype=bool)
    return _connected_to_frame(similar)


def _corners(grey: np.ndarray) -> list[np.ndarray]:
    n = max(1, min(grey.shape) // 50)
    return [grey[rows, columns] for rows in (slice(n), slice(-n, None)) for columns in (slice(n), slice(-n, None))]


def _connected_to_frame(region: np.ndarray) -> np.ndarray:
    seed = np.zeros_like(region)
    seed[[0, -1], :] = seed[:, [0, -1]] = True
    return np.asarray(ndimage.binary_propagation(seed & region, mask=region))


def _fill(field: np.ndarray) -> np.ndarray:
    """Return the convex hull of the largest connected part of a field of view, (H, W) bool.

    Notches and letters at the edge are removed first. The convex hull is taken because apertures are convex.
    """
    radius = max(1, round(0.05 * min(field.shape)))
    # Extend the field of view beyond the image. Otherwise the opening would round it where the image clips the circle.
    padded = np.pad(field, radius, mode="edge")
    opened = ~is_farther(~is_farther(padded, radius), radius)
    labels, count = ndimage.label(opened[radius:-radius, radius:-radius])
    if not count:
        return np.zeros_like(field)
    largest = labels == 1 + int(np.argmax(np.bincount(labels.ravel())[1:]))
    return _convex_hull(largest)


def _convex_hull(mask: np.ndarray) -> np.ndarray:
    """Return the convex hull of a non-empty mask, (H, W) bool -> (H, W) bool.

    It differs from skimage.morphology.convex_hull_image in single pixels at the edge, and is twenty times as fast.
    """
    rows = np.flatnonzero(mask.any(axis=1))
    first, last = mask[rows].argmax(axis=1), mask.shape[1] - 1 - mask[rows, ::-1].argmax(axis=1)
    rim = np.column_stack([np.tile(rows, 2), np.concatenate([first, last])])
    # The midpoints of the pixel sides are used, because ConvexHull fails for the centres of a single row of pixels.
    sides = (rim[:, None] + _SIDES).reshape(-1, 2)
    corners = rim[ConvexHull(sides).vertices // len(_SIDES)]
    hull = Image.new("1", mask.shape[::-1])
    ImageDraw.Draw(hull).polygon([(x, y) for y, x in corners.tolist()], fill=1)
    return np.asarray(hull)


def _resize_mask(mask: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    height, width = shape
    resized = Image.fromarray(mask.astype(np.float32)).resize((width, height), Image.Resampling.BILINEAR)
    return np.asarray(resized) > 0.5
