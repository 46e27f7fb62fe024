"""Check the settings of warps that `retipair export matches` and `WarpedPairs` have in common."""

import math

from retipair.matching.warps import WarpRanges
from retipair.runtime.errors import SettingError

LIMITS = {"rotation": (0.0, 180.0), "scale": (0.2, 5.0), "shift": (0.0, 1.0), "perspective": (0.0, 1e-3)}
"""The smallest and largest allowed value of each parameter of a homography.

Up to the limit of the perspective, no point of the image is mapped to infinity.
"""
_MAX_ELASTIC = 20.0


def check_variation(elastic: float, seed: int, size: int | None) -> None:
    """Raise SettingError if a setting of the warps cannot be used."""
    if not 0 <= elastic <= _MAX_ELASTIC:
        raise SettingError("elastic", f"{elastic:g}", f"must be from 0 to {_MAX_ELASTIC:g} px")
    if size is not None and (size % 32 or not 64 <= size <= 4096):
        raise SettingError("size", size, "must be a multiple of 32 px, from 64 to 4096")
    if not 0 <= seed < 2**32:
        raise SettingError("seed", seed, "must be at least 0 and below 2^32")


def check_ranges(ranges: WarpRanges) -> None:
    """Raise SettingError unless each range has ascending quantiles within its limits."""
    for name, (low, high) in LIMITS.items():
        values = [*getattr(ranges, name)]
        if not values or not all(map(math.isfinite, values)) or [low, *values, high] != sorted([low, *values, high]):
            raise SettingError("ranges", None, f"{name} must be one or more ascending numbers from {low:g} to {high:g}")
