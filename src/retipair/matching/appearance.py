"""Change the appearance of one view at random, so that a registration network does not rely on brightness or contrast.

The changes are drawn and applied in the order of `_CHANGES`, each with the probability given there. The ranges of their
parameters are similar to those in published trainers of retinal registration networks.
"""

from collections.abc import Callable

import numpy as np

from retipair.matching.resampling import blur

Change = Callable[[np.ndarray, np.random.Generator], np.ndarray]
"""A function that changes a view, (S, S) or (S, S, 3) float32 in [0, 1]; the result may leave this range."""


def randomise(image: np.ndarray, mask: np.ndarray, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Change the appearance of a view at random, and sometimes reduce its field of view. Return (image, mask).

    image: a CF (S, S, 3) or FA (S, S), uint8.
    mask: its valid pixels, (S, S) bool. The image becomes black outside the mask that is returned.
    """
    values = image.astype(np.float32) / 255
    for probability, change in _CHANGES:
        if rng.random() < probability:
            values = change(values, rng).clip(0, 1)
    if rng.random() < _CUT_PROBABILITY:
        mask = mask & _field(len(mask), rng)
    return np.rint(values * _over_channels(mask, values) * 255).astype(np.uint8), mask


def _gamma(values: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    exponent = np.float32(np.exp(rng.uniform(np.log(0.5), np.log(2.0))))
    return np.asarray(values**exponent)


def _contrast(values: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    factor, brightness = np.float32(rng.uniform(0.6, 1.5)), np.float32(rng.uniform(-0.1, 0.1))
    return np.asarray((values - np.float32(0.5)) * factor + np.float32(0.5) + brightness)


def _inversion(values: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    return 1 - values


def _defocus(values: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    return blur(values, rng.uniform(0.5, 2.5) * len(values) / 512)


def _noise(values: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    return values + np.float32(rng.uniform(0.01, 0.06)) * rng.standard_normal(values.shape, dtype=np.float32)


def _stripes(values: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Add horizontal or vertical stripes, as interlaced video and line sensors do."""
    cycles, phase = rng.uniform(8, 80), rng.uniform(0, 2 * np.pi)
    wave = rng.uniform(0.02, 0.08) * np.sin(2 * np.pi * cycles * np.arange(len(values)) / len(values) + phase)
    stripes = wave[:, None] if rng.random() < 0.5 else wave[None, :]
    return values + _over_channels(stripes.astype(np.float32), values)


def _patches(values: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Add one to four dark or bright patches with soft edges."""
    size = len(values)
    patches = np.zeros((size, size), dtype=np.float32)
    for _ in range(rng.integers(1, 5)):
        patches += np.outer(_bump(size, rng), _bump(size, rng)) * np.float32(rng.uniform(-0.4, 0.4))
    return values + _over_channels(patches, values)


def _bump(size: int, rng: np.random.Generator) -> np.ndarray:
    centre, sigma = rng.uniform(0, size), rng.uniform(0.02, 0.12) * size
    return np.asarray(np.exp(-0.5 * ((np.arange(size) - centre) / sigma) ** 2), dtype=np.float32)


def _vignette(values: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Darken the view with the distance from a point near the image centre.

    At half the image width from this point and beyond, the view becomes 20 to 70 % darker.
    """
    squared = _squared_distance(len(values), rng.uniform(0.35, 0.65, 2))
    darkening = np.float32(rng.uniform(0.2, 0.7)) * np.minimum(4 * squared, 1)
    return values * _over_channels(1 - darkening, values)


def _field(size: int, rng: np.random.Generator) -> np.ndarray:
    """Return a random field of view, (size, size) bool: a disc, often clipped at top and bottom as cameras do."""
    field = _squared_distance(size, rng.uniform(0.4, 0.6, 2)) <= rng.uniform(0.38, 0.6) ** 2
    if rng.random() < 0.5:
        field[: round(rng.uniform(0, 0.15) * size)] = False
        field[size - round(rng.uniform(0, 0.15) * size) :] = False
    return field


def _squared_distance(size: int, centre: np.ndarray) -> np.ndarray:
    """Return the squared distance of each pixel from `centre`, (size, size) float32.

    Distances and `centre` (x, y) are in units of the image width.
    """
    x, y = ((np.arange(size) / size - position) ** 2 for position in centre)
    return (y[:, None] + x[None, :]).astype(np.float32)


def _over_channels(values: np.ndarray, image: np.ndarray) -> np.ndarray:
    """Return `values` (S, S), with a last axis of length 1 if `image` has colour channels, to apply to all of them."""
    return values[..., None] if image.ndim == 3 else values


_CHANGES: tuple[tuple[float, Change], ...] = (
    (0.5, _gamma),
    (0.5, _contrast),
    (0.25, _inversion),
    (0.3, _defocus),
    (0.5, _noise),
    (0.2, _stripes),
    (0.4, _patches),
    (0.4, _vignette),
)
"""The probability of each change, in the order in which the changes are applied."""
_CUT_PROBABILITY = 0.4
