"""Segment the field of view: the camera's round aperture, filled, without the border around it."""

import numpy as np
from PIL import Image, ImageDraw
from scipy import ndimage
from scipy.spatial import ConvexHull

_WORK_SIDE = 512  # px: the aperture is large and smooth, so a higher resolution gains nothing
_SIDES = np.array([(-0.5, 0.0), (0.5, 0.0), (0.0, -0.5), (0.0, 0.5)])
_MAX_BLACK_BORDER = 32  # a corner brighter than this is not a black border


def field_of_view(image: np.ndarray) -> np.ndarray:
    """Return the filled field of view of a CF (H, W, 3) or FA (H, W), uint8 -> (H, W) bool.

    A dark fovea or haemorrhage leaves no hole. Notches and letters at the rim, and black or uniformly painted
    borders, are excluded. A view without a border is valid everywhere, an all-black one nowhere.
    """
    grey = image.max(axis=2) if image.ndim == 3 else image
    small = _shrink(grey)
    border = _border(small)
    if not border.any():
        return np.ones(grey.shape, dtype=bool)
    return _resize_mask(_fill(~border), grey.shape)


def erode(mask: np.ndarray, radius: float) -> np.ndarray:
    """Keep pixels further than `radius` px from the edges of mask and frame, (H, W) bool -> (H, W) bool."""
    inside = np.pad(mask, 1)
    return np.asarray(ndimage.distance_transform_edt(inside)[1:-1, 1:-1] > radius)


def _shrink(grey: np.ndarray) -> np.ndarray:
    scale = min(1.0, _WORK_SIDE / max(grey.shape))
    height, width = (max(1, round(n * scale)) for n in grey.shape)
    resized = Image.fromarray(grey).resize((width, height), Image.Resampling.BOX)
    return np.asarray(resized, dtype=np.float32)


def _border(grey: np.ndarray) -> np.ndarray:
    """Return the border: pixels similar to the corners and connected to the frame, (H, W) float -> (H, W) bool."""
    level = min(float(np.median(corner)) for corner in _corners(grey))
    flat = all(np.ptp(corner) <= 2 for corner in _corners(grey))
    if level <= _MAX_BLACK_BORDER:
        # Glare raises a black border by up to a tenth of the field's brightness.
        contrast = float(np.percentile(grey, 95)) - level
        similar = ndimage.gaussian_filter(grey, 1) <= level + max(8.0, 0.12 * contrast)
    elif flat:
        # Some borders are painted as bright as the field: only their uniform grey level distinguishes them.
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
    """Return the largest part of `field` without notches and letters, made convex as apertures are, (H, W) bool."""
    radius = max(1, round(0.05 * min(field.shape)))
    # Extend the field beyond the frame, or opening would round the corners of a clipped circle.
    padded = np.pad(ndimage.binary_fill_holes(field), radius, mode="edge")
    opened = ndimage.distance_transform_edt(padded) > radius
    opened = ndimage.distance_transform_edt(~opened) <= radius if opened.any() else opened
    labels, count = ndimage.label(opened[radius:-radius, radius:-radius])
    if not count:
        return np.zeros_like(field)
    largest = labels == 1 + int(np.argmax(np.bincount(labels.ravel())[1:]))
    return _convex_hull(largest)


def _convex_hull(mask: np.ndarray) -> np.ndarray:
    """Return the convex hull of a non-empty mask, (H, W) bool -> (H, W) bool.

    Equals skimage.morphology.convex_hull_image except for single pixels at the rim, in a twentieth of the time.
    """
    rim = np.argwhere(mask & ~ndimage.binary_erosion(mask))
    sides = (rim[:, None] + _SIDES).reshape(-1, 2)  # of each pixel, so that a single row of pixels has a hull
    corners = rim[ConvexHull(sides).vertices // len(_SIDES)]
    hull = Image.new("1", mask.shape[::-1])
    ImageDraw.Draw(hull).polygon([(x, y) for y, x in corners.tolist()], fill=1)
    return np.asarray(hull)


def _resize_mask(mask: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    height, width = shape
    resized = Image.fromarray(mask.astype(np.float32)).resize((width, height), Image.Resampling.BILINEAR)
    return np.asarray(resized) > 0.5
