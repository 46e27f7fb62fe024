"""Colour profiles in image files (ICC.1), converted to sRGB, the encoding of every image that has none."""

import io
from functools import lru_cache

import numpy as np
from PIL import Image, ImageCms

_MODES = {"GRAY": "L", "RGB ": "RGB", "CMYK": "CMYK"}
"""Colour space of a profile (ICC.1, 7.2.6) -> Pillow's mode of the pixels that it describes."""
_DESCRIBED = {"L": ("1", "L"), "RGB": ("1", "L", "P", "RGB", "RGBA"), "CMYK": ("CMYK",)}
"""Mode of a profile -> modes of images for which it may stand: the colours of grey pixels are neutral ones."""
_SAME = 2
"""Grey levels. A profile that moves no colour by more is sRGB, as one program or another writes it."""


def to_srgb(image: Image.Image, profile: bytes | None) -> Image.Image:
    """Convert an image of 8 bits from its embedded profile to sRGB; unchanged without one, or if that is sRGB.

    Raises ValueError if the profile is damaged or describes other pixels, grey ones in a colour image for example.
    """
    if not profile:
        return image
    transform, is_srgb = _transform(profile)
    if image.mode not in _DESCRIBED[transform.input_mode]:
        raise ValueError(f"its colour profile is for {transform.input_mode}, not {image.mode}: save it as sRGB")
    return image if is_srgb else transform.apply(image.convert(transform.input_mode))


@lru_cache(maxsize=8)
def _transform(profile: bytes) -> tuple[ImageCms.ImageCmsTransform, bool]:
    """The conversion to sRGB, and whether it changes nothing."""
    try:
        source = ImageCms.ImageCmsProfile(io.BytesIO(profile))
        mode = _MODES[source.profile.xcolor_space]
        # Optimised, linear grey is off by up to 10 levels where it is dark; otherwise, colour takes ten times as long.
        flags = ImageCms.Flags.NOOPTIMIZE if mode == "L" else ImageCms.Flags.NONE
        transform = ImageCms.buildTransform(source, ImageCms.createProfile("sRGB"), mode, "RGB", flags=flags)
    except (ImageCms.PyCMSError, KeyError, OSError) as error:
        raise ValueError(f"its colour profile is damaged ({error}): save it as sRGB, or without a profile") from None
    return transform, mode != "CMYK" and _keeps_colours(transform)


def _keeps_colours(transform: ImageCms.ImageCmsTransform) -> bool:
    """Try 4,913 colours, or all greys."""
    if transform.input_mode == "RGB":
        levels = np.arange(0, 256, 15, dtype=np.uint8)
        colours = np.stack(np.meshgrid(levels, levels, levels), axis=-1).reshape(1, -1, 3)
    else:
        colours = np.repeat(np.arange(256, dtype=np.uint8)[None, :, None], 3, axis=2)
    moved = transform.apply(Image.fromarray(colours).convert(transform.input_mode))
    return bool(abs(np.asarray(moved).astype(int) - colours).max() <= _SAME)
