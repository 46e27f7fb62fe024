"""Simulate the pose of the camera of the FA: slightly shifted, rotated, zoomed and tilted relative to that of the CF.

_ROTATION, _ZOOM, _SHIFT and _TILT are the maximum deviations in either direction.
"""

import numpy as np
import torch
from torch.nn import functional as F

_ROTATION = 0.1  # rad
_ZOOM = 0.07  # relative change of the scale
_SHIFT = 0.05  # fraction of the image side
_TILT = 0.03  # perspective: relative difference in depth between opposite edges of the view
MARGIN = 1 / 6
"""Width of the margin around the view of the CF that the FA may show, as a fraction of the image side."""


def draw_pose(rng: np.random.Generator, size: int) -> np.ndarray:
    """Sample a random pose. Return the homography (3, 3) from FA px to CF px, for views of `size` px."""
    angle, scale = rng.uniform(-_ROTATION, _ROTATION), 1 + rng.uniform(-_ZOOM, _ZOOM)
    similarity = np.eye(3)
    similarity[:2, :2] = scale * np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
    similarity[:2, 2] = rng.uniform(-_SHIFT, _SHIFT, 2) * size
    tilt = np.eye(3)
    tilt[2, :2] = rng.uniform(-_TILT, _TILT, 2) / size
    centred = np.eye(3)
    centred[:2, 2] = -(size - 1) / 2
    homography = np.linalg.inv(centred) @ similarity @ tilt @ centred
    return np.asarray(homography / homography[2, 2])


def seen_by_cf_camera(wide: torch.Tensor, size: int) -> torch.Tensor:
    """Crop maps to the view of the CF camera, (C, size, size).

    wide: the maps (C, W, W), of the view of the CF camera and a margin around it.
    """
    margin = (wide.shape[-1] - size) // 2
    return wide[:, margin : margin + size, margin : margin + size]


def seen_by_fa_camera(wide: torch.Tensor, size: int, fa_to_cf: np.ndarray) -> torch.Tensor:
    """Resample maps to the view of the FA camera, (C, size, size).

    wide: the maps (C, W, W), of the view of the CF camera and a margin around it.
    fa_to_cf: the homography (3, 3) from FA px to CF px.
    """
    side = wide.shape[-1]
    x, y = np.meshgrid(np.arange(size), np.arange(size))
    x, y, depth = np.tensordot(fa_to_cf, np.stack([x, y, np.ones_like(x)]), axes=1)
    places = np.stack([x / depth, y / depth], axis=-1) + (side - size) // 2
    assert (places >= 0).all(), places.min()
    assert (places <= side - 1).all(), places.max()
    grid = torch.from_numpy(2 * places / (side - 1) - 1).float()
    # Bicubic interpolation keeps thin vessels as sharp as in the CF. The clamp removes its overshoot.
    return F.grid_sample(wide[None], grid[None], mode="bicubic", align_corners=True)[0].clamp(0, 1)
