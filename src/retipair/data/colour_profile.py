"""Convert images with an embedded colour profile (ICC.1) to sRGB.

Images without a profile are assumed to be in sRGB.
"""

import io
from functools import lru_cache

import numpy as np
from PIL import Image, ImageCms

_MODES = {"GRAY": "L", "RGB ": "RGB", "CMYK": "CMYK"}
"""Pillow's image mode for each colour space that a profile may be made for (ICC.1, 7.2.6)."""
_IMAGE_MODES = {"L": ("1", "L"), "RGB": ("1", "L", "P", "RGB", "RGBA"), "CMYK": ("CMYK",)}
"""The image modes that a profile may be embedded in, by the profile's own mode (`_MODES`).

Some programs embed an RGB profile in grey images.
"""
_SRGB_TOLERANCE = 2
"""Grey levels. A profile whose conversion to sRGB changes no channel by more than this counts as sRGB.

The tolerance is needed because several slightly different sRGB profiles are in use.
"""


def to_srgb(image: Image.Image, profile: bytes | None) -> Image.Image:
    """Convert an 8-bit image from the colour space of its embedded profile to sRGB.

    profile: the content of the ICC profile. If it is None or describes sRGB, the image is returned unchanged.
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
    """Return the transform from a profile to sRGB, and whether the profile counts as sRGB already."""
    try:
        source = ImageCms.ImageCmsProfile(io.BytesIO(profile))
        mode = _MODES[source.profile.xcolor_space]
        # LittleCMS's optimisation changes dark greys of linear profiles by up to 10 levels, so it is disabled for grey.
        # It is kept for colour, which takes ten times as long without it.
        flags = ImageCms.Flags.NOOPTIMIZE if mode == "L" else ImageCms.Flags.NONE
        transform = ImageCms.buildTransform(source, ImageCms.createProfile("sRGB"), mode, "RGB", flags=flags)
    except (ImageCms.PyCMSError, KeyError, OSError) as error:
        raise ValueError(f"its colour profile is damaged ({error}): save it as sRGB, or without a profile") from None
    return transform, mode != "CMYK" and _keeps_colours(transform)


def _keeps_colours(transform: ImageCms.ImageCmsTransform) -> bool:
    """Return whether a transform to sRGB changes no channel by more than `_SRGB_TOLERANCE`.

    The test uses a grid of 5,832 colours for an RGB profile, and all 256 greys for a grey profile.
    """
    if transform.input_mode == "RGB":
        levels = np.arange(0, 256, 15, dtype=np.uint8)
        colours = np.stack(np.meshgrid(levels, levels, levels), axis=-1).reshape(1, -1, 3)
    else:
        colours = np.repeat(np.arange(256, dtype=np.uint8)[None, :, None], 3, axis=2)
    converted = transform.apply(Image.fromarray(colours).convert(transform.input_mode))
    return bool(abs(np.asarray(converted).astype(int) - colours).max() <= _SRGB_TOLERANCE)
