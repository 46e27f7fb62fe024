"""Estimate the error of a registration without landmarks, by matching patches of vessels."""

import numpy as np
from skimage.feature import match_template

from retipair.vision.ridges import inside_rim, resize_to_reference, vesselness

_PATCH = 64  # px at 512: large enough to contain a fork or crossing
_SEARCH_RADIUS = 16  # px at 512
_STEP = 32  # px at 512 from one patch to the next
_MIN_VALID = 0.95  # minimum valid fraction of a patch and its search window


def patch_shifts(cf: np.ndarray, fa: np.ndarray, mask: np.ndarray) -> np.ndarray:
    """Return, for each patch of vessels in the FA, the length of the shift that best fits the CF, (N,) px at 512.

    CF (H, W, 3) uint8, FA (H, W) uint8, mask (H, W) bool; views are resized to 512 px. Patches of 64 px on a grid of
    32 px are matched by normalised cross-correlation within 16 px in each direction. Only the half of the patches with
    the most vessels in both views is used. In seven real pairs 78 % or more of the patches lie within 5 px, in
    mispaired ones 27 % at most.
    """
    cf, fa, mask = (resize_to_reference(array) for array in (cf, fa, mask))
    inside = inside_rim(mask)
    fixed, moving = (_contrast(vesselness(view, mask), inside) for view in (cf, fa))
    windows = [window for window in _windows(mask.shape) if inside[window].mean() >= _MIN_VALID]
    vessels = np.array([min(_middle(fixed[window]).std(), _middle(moving[window]).std()) for window in windows])
    min_vessels = max(float(np.median(vessels)), 1e-6) if windows else 0.0
    selected = [window for window, amount in zip(windows, vessels, strict=True) if amount >= min_vessels]
    return np.array([_shift(fixed[window], moving[window]) for window in selected])


def _contrast(ridges: np.ndarray, inside: np.ndarray) -> np.ndarray:
    """Divide vesselness (H, W) by its standard deviation within the field; 0 outside."""
    return ridges * inside / (ridges[inside].std() + 1e-6) if inside.any() else np.zeros_like(ridges)


def _windows(shape: tuple[int, ...]) -> list[tuple[slice, slice]]:
    """Return the search windows on a grid: squares of a patch and its surroundings."""
    side = _PATCH + 2 * _SEARCH_RADIUS
    rows, columns = (range(0, length - side + 1, _STEP) for length in shape)
    return [(slice(row, row + side), slice(column, column + side)) for row in rows for column in columns]


def _middle(window: np.ndarray) -> np.ndarray:
    return window[_SEARCH_RADIUS:-_SEARCH_RADIUS, _SEARCH_RADIUS:-_SEARCH_RADIUS]


def _shift(fixed: np.ndarray, moving: np.ndarray) -> float:
    """Return the shift of the central patch of `moving`, px, with subpixel precision."""
    fit = match_template(fixed, _middle(moving))
    row, column = (int(index) for index in np.unravel_index(int(fit.argmax()), fit.shape))
    return float(np.hypot(_peak(fit[:, column], row), _peak(fit[row], column)))


def _peak(fit: np.ndarray, highest: int) -> float:
    """Return the peak of a parabola through the highest value and its neighbours, px from the middle."""
    if not 0 < highest < len(fit) - 1:
        return float(highest - _SEARCH_RADIUS)
    before, peak, after = fit[highest - 1 : highest + 2]
    curvature = before - 2 * peak + after
    return float(highest - _SEARCH_RADIUS + (0.5 * (before - after) / curvature if curvature else 0.0))
