"""Scale grey and colour images with 9 to 16 bits per sample to 8 bits."""

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager

import numpy as np
from PIL import Image

_PNG_PASSES = {
    "I;16B": ("I;16B",),
    "LA;16B": ("RGBA",),  # the upper and lower bytes of grey and alpha, as if they were four samples
    "RGB;16B": ("RGB;16B", "RGB;16L"),  # the upper bytes, the lower bytes
    "RGBA;16B": ("RGBA;16B", "RGBA;16L"),
}
"""Pillow's raw mode of a 16-bit PNG -> the raw modes in which it is decoded, one after another, to get all bytes. By
default, Pillow drops the lower bytes of colour."""


def to_eight_bits(values: np.ndarray, bits: int) -> np.ndarray:
    """Scale unsigned integers in [0, 2**bits - 1] to uint8 in [0, 255], rounded."""
    highest = 2**bits - 1
    if bits > 16:
        return np.rint(values * 255.0 / highest).astype(np.uint8)
    return np.rint(np.arange(highest + 1) * 255.0 / highest).astype(np.uint8)[values]


def used_bits(values: np.ndarray) -> int:
    """Return the number of bits of the highest value, at least 8; 16-bit files often hold 10, 12 or 14 bits."""
    return max(8, int(values.max(initial=0)).bit_length())


def compose(samples: np.ndarray, mode: str, bits: int, inverted: bool = False) -> Image.Image:
    """Scale samples (H, W, S) uint16 to an 8-bit image in `mode` (L, RGB, CMYK); an extra channel is alpha.

    bits: the depth that the file states. If it is 16, `used_bits` is used instead, for all colour channels
    together and for alpha separately. inverted: 0 is white.
    """
    channels = Image.getmodebands(mode)
    parts = [samples[..., :channels], samples[..., channels:]]
    colour, alpha = (to_eight_bits(part, used_bits(part) if bits == 16 else bits) for part in parts)
    pixels = np.concatenate([255 - colour if inverted else colour, alpha], axis=-1)
    if pixels.shape[-1] == 1:
        return Image.fromarray(pixels[..., 0])
    return Image.fromarray(pixels, f"{mode}A" if alpha.shape[-1] else mode)


def is_deep_png(image: Image.Image) -> bool:
    """Return whether this is a 16-bit PNG that is not decoded yet."""
    return image.format == "PNG" and _raw_mode(image) in _PNG_PASSES


def read_deep_png(open_again: Callable[[], AbstractContextManager[Image.Image]]) -> Image.Image:
    """Read a 16-bit PNG as an 8-bit image with its metadata; the file is opened again for each pass."""
    with open_again() as header:
        raw_mode = _raw_mode(header)
    passes = [_decoded(open_again, mode) for mode in _PNG_PASSES[raw_mode]]
    info = passes[0].info
    samples = _samples([np.asarray(image) for image in passes], raw_mode)
    if (key := info.pop("transparency", None)) is not None:  # the colour of transparent pixels
        opaque = (samples != key).any(axis=-1, keepdims=True)
        samples = np.concatenate([samples, opaque * np.uint16(2**16 - 1)], axis=-1)
    image = compose(samples, "RGB" if raw_mode.startswith("RGB") else "L", 16)
    image.info = info
    return image


def _samples(passes: Sequence[np.ndarray], raw_mode: str) -> np.ndarray:
    """Combine the bytes of each sample, (H, W, S) uint16."""
    first = passes[0].reshape(*passes[0].shape[:2], -1).astype(np.uint16)
    if raw_mode == "LA;16B":
        return first[..., ::2] << 8 | first[..., 1::2]
    return first << 8 | passes[1] if len(passes) == 2 else first


def _raw_mode(image: Image.Image) -> str:
    tiles = getattr(image, "tile", [])
    return str(tiles[0].args) if tiles else ""


def _decoded(open_again: Callable[[], AbstractContextManager[Image.Image]], raw_mode: str) -> Image.Image:
    with open_again() as image:
        image.tile = [tile._replace(args=raw_mode) for tile in image.tile]  # type: ignore[attr-defined]
        image.load()
        return image
