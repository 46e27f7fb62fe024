"""Fit the distribution of warps to the geometry of the raw pairs from which a folder was prepared."""

from collections.abc import Sequence
from pathlib import Path
from typing import Literal

import numpy as np

from retipair.data.manifest import PreparedPair, read_manifest
from retipair.matching.warps import NARROW, TYPICAL, WIDE, WarpRanges, centred, decompose
from retipair.runtime.errors import FileError

RangesName = Literal["auto", "fitted", "typical", "narrow", "wide"]
_PRESETS = {"typical": TYPICAL, "narrow": NARROW, "wide": WIDE}
_MIN_PAIRS = 5
_QUANTILES = 11  # the deciles, with minimum and maximum


def choose_ranges(name: RangesName, pairs: Path) -> WarpRanges:
    """Return the ranges for a value of --ranges, and print the result of "auto" or "fitted".

    "auto" is "fitted" if the ranges can be fitted to `pairs`, else "typical".

    pairs: the folder of the pairs to which the ranges are fitted.
    Raises the same errors as `fit_ranges` if the name is "fitted". With "auto", raises UserError if the manifest of
    `pairs` cannot be read.
    """
    if name in _PRESETS:
        return _PRESETS[name]
    if name == "auto" and not _can_fit(pairs):
        few = f"{pairs} has fewer than {_MIN_PAIRS} pairs with a transform between their raw views"
        print(f"geometry of the warps: --ranges typical, because {few}")
        return TYPICAL
    ranges = fit_ranges(pairs)
    print(f"geometry of the warps: fitted to the raw pairs of {pairs}: {_described(ranges)}")
    return ranges


def _described(ranges: WarpRanges) -> str:
    (scale_low, scale_high), perspective = (ranges.scale[0], ranges.scale[-1]), ranges.perspective[-1]
    return (
        f"rotation up to {ranges.rotation[-1]:.1f} degrees, scale {scale_low:.2f} to {scale_high:.2f}, shift up to "
        f"{ranges.shift[-1]:.0%} of the width, perspective up to {perspective:.0e} per px at 512 px"
    )


def fit_ranges(folder: Path) -> WarpRanges:
    """Return the quantiles of rotation, scale, shift and perspective of the transforms of the raw pairs of a folder.

    The transform of a pair maps its raw CF to its raw FA. The coordinates in each view are in units of the width of
    this view, so the transform does not change if a view is resized. Mirrored pairs are left out.

    Raises UserError, naming the folder, if fewer than five of its pairs have a transform between raw views. The pairs
    of `phantom`, of `generate` and of earlier versions of `prepare` have none.
    """
    transforms = [transform for record in read_manifest(folder) if (transform := _raw_transform(record)) is not None]
    if len(transforms) < _MIN_PAIRS:
        problem = (
            f"{len(transforms)} pairs have a transform between their raw views, but at least {_MIN_PAIRS} are needed"
        )
        raise FileError(folder, f"{problem}; give a folder of `retipair prepare`, or --ranges typical")
    angles, scales, shifts, tilts = zip(*map(decompose, transforms), strict=True)
    return WarpRanges(
        rotation=_quantiles(np.abs(np.degrees(angles))),
        scale=_quantiles(np.array(scales)),
        shift=_quantiles(np.linalg.norm(shifts, axis=1)),
        perspective=_quantiles(np.linalg.norm(tilts, axis=1) / 512),
    )


def _can_fit(folder: Path) -> bool:
    transforms = (_raw_transform(record) for record in read_manifest(folder))
    return sum(transform is not None for transform in transforms) >= _MIN_PAIRS


def _raw_transform(record: object) -> np.ndarray | None:
    """Return the transform (3, 3) from the raw CF to the raw FA in centred coordinates (see `centred`).

    Returns None if the transform is not known, or if it mirrors the view.
    """
    if not isinstance(record, PreparedPair) or record.raw_sizes is None or record.raw_cf_to_cf is None:
        return None
    cf_to_fa = np.linalg.inv(np.array(record.fa_to_cf)) @ np.array(record.raw_cf_to_cf)
    if np.linalg.det(cf_to_fa) * cf_to_fa[2, 2] <= 0:
        return None
    (cf_width, cf_height), (fa_width, fa_height) = record.raw_sizes
    return centred(fa_width, fa_height) @ cf_to_fa @ np.linalg.inv(centred(cf_width, cf_height))


def _quantiles(values: Sequence[float] | np.ndarray) -> tuple[float, ...]:
    return tuple(float(value) for value in np.quantile(values, np.linspace(0, 1, _QUANTILES)))
