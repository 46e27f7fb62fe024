"""A second camera before the same eye: it moved, turned and tilted a little since the CF was taken."""

import numpy as np
import torch
from torch.nn import functional as F

_TURN = 0.1  # rad, at most, either way
_ZOOM = 0.07
_SHIFT = 0.05  # of the view's side
_TILT = 0.03  # how much nearer one side of the field is than its middle, twice over
MARGIN = 1 / 6
"""Of the view's side, on every side of it: what another camera may see beyond the first one's view."""


def draw_pose(rng: np.random.Generator, size: int) -> np.ndarray:
    """`fa_to_cf` (3, 3): pixel centres of one camera's view of `size` px to those of another's."""
    angle, scale = rng.uniform(-_TURN, _TURN), 1 + rng.uniform(-_ZOOM, _ZOOM)
    turn = np.eye(3)
    turn[:2, :2] = scale * np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
    turn[:2, 2] = rng.uniform(-_SHIFT, _SHIFT, 2) * size
    tilt = np.eye(3)
    tilt[2, :2] = rng.uniform(-_TILT, _TILT, 2) / size
    centred = np.eye(3)
    centred[:2, 2] = -(size - 1) / 2
    homography = np.linalg.inv(centred) @ turn @ tilt @ centred
    return np.asarray(homography / homography[2, 2])


def seen_by_first(wide: torch.Tensor, size: int) -> torch.Tensor:
    """The middle `size` px of wide maps (C, W, W)."""
    margin = (wide.shape[-1] - size) // 2
    return wide[:, margin : margin + size, margin : margin + size]


def seen_by_second(wide: torch.Tensor, size: int, fa_to_cf: np.ndarray) -> torch.Tensor:
    """Wide maps (C, W, W) around the CF's view as the other camera sees them, (C, size, size)."""
    side = wide.shape[-1]
    x, y = np.meshgrid(np.arange(size), np.arange(size))
    x, y, depth = np.tensordot(fa_to_cf, np.stack([x, y, np.ones_like(x)]), axes=1)
    places = np.stack([x / depth, y / depth], axis=-1) + (side - size) // 2
    assert (places >= 0).all(), places.min()
    assert (places <= side - 1).all(), places.max()
    grid = torch.from_numpy(2 * places / (side - 1) - 1).float()
    # Bicubic: thin vessels stay as sharp as in the CF. It may overshoot, maps may not.
    return F.grid_sample(wide[None], grid[None], mode="bicubic", align_corners=True)[0].clamp(0, 1)
