"""Measure the colours, shading and contrast of a view, and give them to another view.

A diffusion model that generates one view from the other was trained on views from certain cameras. A view from another
camera is first given the appearance of the training views, so that its vessels look like theirs.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy import ndimage

from retipair.vision.field_of_view import erode

_SIGMA = 1 / 32
"""Standard deviation, in view widths, of the Gaussian that separates shading from vessels and texture."""
_RIM = 1 / 64
"""Width, in view widths, of the rim of the field that is not measured, because its edge is dark."""
_GREEN = 1
_MIN_DEVIATION = 0.5
"""Smallest divisor, in grey levels, for views without shading or without vessels."""


@dataclass(frozen=True)
class Appearance:
    """Statistics of a view inside its field, in grey levels: three values for a CF (R, G, B), one for an FA.

    mean: the mean.
    shading: the standard deviation of the blurred view, which shows shading, disc, macula and large lesions.
    contrast: the standard deviation of the view minus the blurred view; this difference shows vessels and texture.
    """

    mean: list[float]
    shading: list[float]
    contrast: list[float]


def appearance(view: np.ndarray, mask: np.ndarray) -> Appearance:
    """Return the appearance of a CF (H, W, 3) or FA (H, W), uint8, inside a mask (H, W) bool that is not empty."""
    blurred, detail = _separated(view, mask)
    inner = erode(mask, _RIM * mask.shape[1])
    measured = inner if inner.any() else mask
    shading, vessels = blurred[measured], detail[measured]
    return Appearance(shading.mean(0).tolist(), shading.std(0).tolist(), vessels.std(0).tolist())


def mean_appearance(views: Sequence[Appearance]) -> Appearance:
    """Return the mean of each statistic over several views, rounded to a tenth of a grey level."""
    columns = ([getattr(view, name) for view in views] for name in ("mean", "shading", "contrast"))
    return Appearance(*(np.mean(column, axis=0).round(1).tolist() for column in columns))


def match_appearance(view: np.ndarray, mask: np.ndarray, wanted: Appearance) -> np.ndarray:
    """Return a CF (H, W, 3) or FA (H, W), uint8, with the wanted appearance; it is 0 outside the mask (H, W) bool.

    All channels of a CF get the detail of its green channel, in which vessels have the highest contrast. The red
    channel of many photographs shows the choroid more than the retinal vessels, and the blue channel shows noise.
    """
    own = appearance(view, mask)
    blurred, detail = _separated(view, mask)
    clearest = [_GREEN if view.ndim == 3 else 0]
    shading = (blurred - own.mean) * _ratio(wanted.shading, own.shading) + wanted.mean
    matched = shading + detail[..., clearest] * _ratio(wanted.contrast, np.take(own.contrast, clearest))
    matched = np.clip(matched.round(), 0, 255).astype(np.uint8) * mask[..., None]
    return np.asarray(matched.reshape(view.shape))


def _ratio(wanted: Sequence[float], own: Sequence[float] | np.ndarray) -> np.ndarray:
    return np.asarray(wanted) / np.maximum(own, _MIN_DEVIATION)


def _separated(view: np.ndarray, mask: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return (blurred view, view minus blurred view), (H, W, channels) float32 each.

    Pixels outside the mask do not take part in the blur.
    """
    channels = view.reshape(*mask.shape, -1).astype(np.float32)
    sigma = _SIGMA * mask.shape[1]
    weight = ndimage.gaussian_filter(mask.astype(np.float32), sigma)[..., None]
    summed = ndimage.gaussian_filter(channels * mask[..., None], (sigma, sigma, 0))
    blurred = summed / np.maximum(weight, np.float32(1e-6))
    return blurred, channels - blurred
