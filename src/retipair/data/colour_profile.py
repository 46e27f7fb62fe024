"""Convert images with a colour profile (ICC.1) to sRGB, which images without a profile are assumed to use."""

import io
from functools import lru_cache

import numpy as np
from PIL import Image, ImageCms

_MODES = {"GRAY": "L", "RGB ": "RGB", "CMYK": "CMYK"}
"""Colour space of a profile (ICC.1, 7.2.6) -> Pillow's mode of the pixels that it describes."""
_IMAGE_MODES = {"L": ("1", "L"), "RGB": ("1", "L", "P", "RGB", "RGBA"), "CMYK": ("CMYK",)}
"""Mode of a profile -> modes of images that it may describe; an RGB profile may describe grey pixels."""
_SRGB_TOLERANCE = 2
"""Grey levels. A profile that changes no colour by more counts as sRGB, because versions of sRGB profiles differ."""


def to_srgb(image: Image.Image, profile: bytes | None) -> Image.Image:
    """Convert an 8-bit image from its embedded profile to sRGB; return it unchanged if its profile is sRGB or missing.

    Raises ValueError if the profile is damaged or does not match the image, such as a grey profile in a colour image.
    """
    if not profile:
        return image
    transform, is_srgb = _transform(profile)
    if image.mode not in _IMAGE_MODES[transform.input_mode]:
        raise ValueError(f"its colour profile is for {transform.input_mode}, not {image.mode}: save it as sRGB")
    return image if is_srgb else transform.apply(image.convert(transform.input_mode))


@lru_cache(maxsize=8)
def _transform(profile: bytes) -> tuple[ImageCms.ImageCmsTransform, bool]:
    """Return the transform to sRGB, and whether it changes nothing."""
    try:
        source = ImageCms.ImageCmsProfile(io.BytesIO(profile))
        mode = _MODES[source.profile.xcolor_space]
        # Optimisation changes dark linear greys by up to 10 levels; without it, colour takes ten times as long.
        flags = ImageCms.Flags.NOOPTIMIZE if mode == "L" else ImageCms.Flags.NONE
        transform = ImageCms.buildTransform(source, ImageCms.createProfile("sRGB"), mode, "RGB", flags=flags)
    except (ImageCms.PyCMSError, KeyError, OSError) as error:
        raise ValueError(f"its colour profile is damaged ({error}): save it as sRGB, or without a profile") from None
    return transform, mode != "CMYK" and _keeps_colours(transform)


def _keeps_colours(transform: ImageCms.ImageCmsTransform) -> bool:
    """Return whether an RGB profile keeps 5,832 colours, or a grey profile all greys, within the tolerance."""
    if transform.input_mode == "RGB":
        levels = np.arange(0, 256, 15, dtype=np.uint8)
        colours = np.stack(np.meshgrid(levels, levels, levels), axis=-1).reshape(1, -1, 3)
    else:
        colours = np.repeat(np.arange(256, dtype=np.uint8)[None, :, None], 3, axis=2)
    converted = transform.apply(Image.fromarray(colours).convert(transform.input_mode))
    return bool(abs(np.asarray(converted).astype(int) - colours).max() <= _SRGB_TOLERANCE)
