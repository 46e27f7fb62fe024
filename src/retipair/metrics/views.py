"""Views prepared for the metrics: resized to 512 px; expensive maps are computed on first access and cached."""

from dataclasses import dataclass
from functools import cached_property

import numpy as np

from retipair.data.pair import Pair
from retipair.vision.field_of_view import field_of_view
from retipair.vision.ridges import inside_rim, resize_to_reference, vesselness_by_scale
from retipair.vision.segmentation import vessels


@dataclass(frozen=True)
class PreparedView:
    """One view, 512 px wide, with lazily computed maps.

    pixels: (512, 512, 3) uint8 of a CF, (512, 512) of an FA. mask (512, 512) bool: where the pair is valid. inside: the
    mask without its rim, because the field's edge would be detected as a vessel there.
    """

    pixels: np.ndarray
    mask: np.ndarray
    inside: np.ndarray

    @property
    def grey(self) -> np.ndarray:
        """(512, 512) uint8: the FA, or the CF's green channel, in which vessels have the highest contrast."""
        return self.pixels[..., 1] if self.pixels.ndim == 3 else self.pixels

    @cached_property
    def field(self) -> np.ndarray:
        """(512, 512) bool: the field of view, found in this view alone."""
        return field_of_view(self.pixels)

    @property
    def alone(self) -> "PreparedView":
        """The same view with its own field of view as the mask."""
        return PreparedView(self.pixels, self.field, inside_rim(self.field))

    @cached_property
    def ridges(self) -> np.ndarray:
        """(scales, 512, 512) float32, >= 0: vesselness at each of SIGMAS."""
        return vesselness_by_scale(self.pixels, self.mask)

    @cached_property
    def vesselness(self) -> np.ndarray:
        """(512, 512) float32, >= 0: maximum of `ridges` over the scales."""
        return np.asarray(self.ridges.max(axis=0))

    @cached_property
    def vessels(self) -> np.ndarray:
        """(512, 512) bool: segmented vessels of a calibre that both views show."""
        return vessels(self.pixels, self.mask) & self.inside


@dataclass(frozen=True)
class PairViews:
    """Both views of a pair; mask (512, 512) bool: where both are valid; inside: the mask without its rim."""

    cf: PreparedView
    fa: PreparedView
    mask: np.ndarray
    inside: np.ndarray


def prepare_views(pair: Pair) -> PairViews:
    """Resize a pair of any size to 512 px."""
    cf, fa, mask = (resize_to_reference(array) for array in (pair.cf, pair.fa, pair.mask))
    inside = inside_rim(mask)
    return PairViews(PreparedView(cf, mask, inside), PreparedView(fa, mask, inside), mask, inside)
