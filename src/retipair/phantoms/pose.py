"""Simulate the pose of the FA's camera: shifted, rotated and tilted slightly relative to that of the CF."""

import numpy as np
import torch
from torch.nn import functional as F

_ROTATION = 0.1  # rad; maximum in either direction, as for the others
_ZOOM = 0.07
_SHIFT = 0.05  # of the view's side
_TILT = 0.03  # perspective: relative depth difference between opposite edges of the view
MARGIN = 1 / 6
"""Width of the margin around the CF's view that the FA's camera may see, as a fraction of the view's width."""


def draw_pose(rng: np.random.Generator, size: int) -> np.ndarray:
    """Sample `fa_to_cf` (3, 3), which maps pixel centres of the FA of `size` px to those of the CF."""
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


def seen_by_first(wide: torch.Tensor, size: int) -> torch.Tensor:
    """Return the central `size` px of wide maps (C, W, W)."""
    margin = (wide.shape[-1] - size) // 2
    return wide[:, margin : margin + size, margin : margin + size]


def seen_by_second(wide: torch.Tensor, size: int, fa_to_cf: np.ndarray) -> torch.Tensor:
    """Resample wide maps (C, W, W) around the CF's view to the view of the other camera, (C, size, size)."""
    side = wide.shape[-1]
    x, y = np.meshgrid(np.arange(size), np.arange(size))
    x, y, depth = np.tensordot(fa_to_cf, np.stack([x, y, np.ones_like(x)]), axes=1)
    places = np.stack([x / depth, y / depth], axis=-1) + (side - size) // 2
    assert (places >= 0).all(), places.min()
    assert (places <= side - 1).all(), places.max()
    grid = torch.from_numpy(2 * places / (side - 1) - 1).float()
    # Bicubic keeps thin vessels as sharp as in the CF; the clamp removes its overshoot.
    return F.grid_sample(wide[None], grid[None], mode="bicubic", align_corners=True)[0].clamp(0, 1)
