"""Scale grey and colour images with 9 to 16 bits per sample to 8 bits."""

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager

import numpy as np
from PIL import Image

_PNG_PASSES = {
    "I;16B": ("I;16B",),
    "LA;16B": ("RGBA",),  # reads the four bytes of a pixel (two of grey, two of alpha) as four 8-bit samples
    "RGB;16B": ("RGB;16B", "RGB;16L"),  # the first pass reads the upper bytes, the second the lower bytes
    "RGBA;16B": ("RGBA;16B", "RGBA;16L"),
}
"""The raw modes of the decoding passes of a 16-bit PNG, by the raw mode that Pillow would use.

Colour needs two passes, because Pillow keeps only one byte of each sample in a pass.
"""


def to_eight_bits(values: np.ndarray, bits: int) -> np.ndarray:
    """Scale unsigned integers from [0, 2**bits - 1] to [0, 255], and round them to uint8."""
    highest = 2**bits - 1
    if bits > 16:
        return np.rint(values * 255.0 / highest).astype(np.uint8)
    return np.rint(np.arange(highest + 1) * 255.0 / highest).astype(np.uint8)[values]


def used_bits(values: np.ndarray) -> int:
    """Return the number of bits that the highest value needs, at least 8.

    It may be smaller than the depth of the file, because 16-bit files often hold values of 10, 12 or 14 bits.
    """
    return max(8, int(values.max(initial=0)).bit_length())


def compose(samples: np.ndarray, mode: str, bits: int, inverted: bool = False) -> Image.Image:
    """Scale samples (H, W, S) uint16 to an 8-bit Pillow image.

    mode: the colour mode, L, RGB or CMYK. If the samples have one channel more than the mode, the last one is alpha.
    bits: the bits per sample that the file states. If it is 16, the samples are scaled by `used_bits` instead,
    which is determined for all colour channels together and for alpha separately.
    inverted: whether the colour value 0 is white.
    """
    channels = Image.getmodebands(mode)
    parts = [samples[..., :channels], samples[..., channels:]]
    colour, alpha = (to_eight_bits(part, used_bits(part) if bits == 16 else bits) for part in parts)
    pixels = np.concatenate([255 - colour if inverted else colour, alpha], axis=-1)
    if pixels.shape[-1] == 1:
        return Image.fromarray(pixels[..., 0])
    return Image.fromarray(pixels, f"{mode}A" if alpha.shape[-1] else mode)


def is_deep_png(image: Image.Image) -> bool:
    """Return whether an image is a 16-bit PNG that Pillow has opened but not decoded."""
    return image.format == "PNG" and _raw_mode(image) in _PNG_PASSES


def read_deep_png(open_again: Callable[[], AbstractContextManager[Image.Image]]) -> Image.Image:
    """Read a 16-bit PNG as an 8-bit image with its metadata.

    open_again: a function that opens the file; it is called for each decoding pass (`_PNG_PASSES`).
    """
    with open_again() as header:
        raw_mode = _raw_mode(header)
    passes = [_decoded(open_again, mode) for mode in _PNG_PASSES[raw_mode]]
    info = passes[0].info
    samples = _samples([np.asarray(image) for image in passes], raw_mode)
    if (key := info.pop("transparency", None)) is not None:  # the one colour whose pixels are transparent
        opaque = (samples != key).any(axis=-1, keepdims=True)
        samples = np.concatenate([samples, opaque * np.uint16(2**16 - 1)], axis=-1)
    image = compose(samples, "RGB" if raw_mode.startswith("RGB") else "L", 16)
    image.info = info
    return image


def _samples(passes: Sequence[np.ndarray], raw_mode: str) -> np.ndarray:
    """Combine the upper and lower bytes from the decoding passes into samples (H, W, S) uint16."""
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
