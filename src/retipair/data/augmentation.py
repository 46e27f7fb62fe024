"""Augment pairs for training. CF and FA get the same geometric transform, so that their vessels stay aligned."""

from dataclasses import dataclass

import numpy as np
from PIL import Image

MAX_TURN_DEGREES = 8.0
MAX_SHIFT = 0.03
"""The maximum shift along each axis, as a fraction of the view's side."""
SCALES = (0.95, 1.05)
GAINS = (0.9, 1.1)


@dataclass(frozen=True)
class Variant:
    """Parameters of one augmented variant of a pair: one geometric transform, and a brightness gain for each view."""

    flip_horizontal: bool = False
    flip_vertical: bool = False
    turn_degrees: float = 0.0
    scale: float = 1.0
    shift: tuple[float, float] = (0.0, 0.0)
    cf_gain: float = 1.0
    fa_gain: float = 1.0


def draw_variant(number: int, seed: int, pair: int) -> Variant:
    """Draw the random parameters of a variant of a pair; equal arguments give equal parameters.

    number: the number of the variant; variant 0 is the unchanged pair.
    pair: the index of the pair.
    """
    if number == 0:
        return Variant()
    random = np.random.default_rng([seed, pair, number])
    flips = random.integers(0, 2, 2)
    return Variant(
        flip_horizontal=bool(flips[0]),
        flip_vertical=bool(flips[1]),
        turn_degrees=float(random.uniform(-MAX_TURN_DEGREES, MAX_TURN_DEGREES)),
        scale=float(random.uniform(*SCALES)),
        shift=(float(random.uniform(-MAX_SHIFT, MAX_SHIFT)), float(random.uniform(-MAX_SHIFT, MAX_SHIFT))),
        cf_gain=float(random.uniform(*GAINS)),
        fa_gain=float(random.uniform(*GAINS)),
    )


def apply_variant(cf: np.ndarray, fa: np.ndarray, variant: Variant) -> tuple[np.ndarray, np.ndarray]:
    """Apply a variant to CF (S, S, 3) and FA (S, S), uint8; areas that the moved view does not cover become black."""
    return _apply(cf, variant, variant.cf_gain), _apply(fa, variant, variant.fa_gain)


def _apply(view: np.ndarray, variant: Variant, gain: float) -> np.ndarray:
    if variant.flip_horizontal:
        view = view[:, ::-1]
    if variant.flip_vertical:
        view = view[::-1]
    moved = _move(np.ascontiguousarray(view), variant)
    return moved if gain == 1.0 else np.clip(np.rint(moved * gain), 0, 255).astype(np.uint8)


def _move(view: np.ndarray, variant: Variant) -> np.ndarray:
    """Rotate and scale a view about its centre, then shift it, in one bicubic resampling.

    A variant without rotation, scaling and shift returns the view unchanged.
    """
    if (variant.turn_degrees, variant.scale, variant.shift) == (0.0, 1.0, (0.0, 0.0)):
        return view
    height, width = view.shape[:2]
    angle = np.deg2rad(variant.turn_degrees)
    cos, sin = np.cos(angle) / variant.scale, np.sin(angle) / variant.scale
    centre_x, centre_y = (
        width / 2,
        height / 2,
    )  # Pillow's origin is the outer corner of the top-left pixel, not its centre
    to_x, to_y = centre_x + variant.shift[0] * width, centre_y + variant.shift[1] * height
    inverse = (cos, sin, centre_x - cos * to_x - sin * to_y, -sin, cos, centre_y + sin * to_x - cos * to_y)
    image = Image.fromarray(view)
    return np.asarray(image.transform(image.size, Image.Transform.AFFINE, inverse, Image.Resampling.BICUBIC))
