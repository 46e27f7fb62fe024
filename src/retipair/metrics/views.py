"""A pair as the metrics see it: at one size, with what takes long computed once, when it is asked for."""

from dataclasses import dataclass
from functools import cached_property

import numpy as np

from retipair.data.pair import Pair
from retipair.vision.field_of_view import field_of_view
from retipair.vision.ridges import inside_rim, resize_to_reference, vesselness_by_scale
from retipair.vision.segmentation import vessels


@dataclass(frozen=True)
class PreparedView:
    """One view, 512 px wide; what is not asked for is not computed.

    pixels (512, 512, 3) uint8 of a CF, (512, 512) of an FA; mask (512, 512) bool, where the pair is valid, and inside,
    the same without its rim, where a vessel is not the field's edge.
    """

    pixels: np.ndarray
    mask: np.ndarray
    inside: np.ndarray

    @property
    def grey(self) -> np.ndarray:
        """(512, 512) uint8: the CF's green channel, which shows its vessels best, or the FA."""
        return self.pixels[..., 1] if self.pixels.ndim == 3 else self.pixels

    @cached_property
    def field(self) -> np.ndarray:
        """(512, 512) bool: what this view alone shows of the eye."""
        return field_of_view(self.pixels)

    @property
    def alone(self) -> "PreparedView":
        """The same view, valid wherever it shows the eye, whatever the other view shows."""
        return PreparedView(self.pixels, self.field, inside_rim(self.field))

    @cached_property
    def ridges(self) -> np.ndarray:
        """(scales, 512, 512) float32, >= 0: vesselness at each of SIGMAS."""
        return vesselness_by_scale(self.pixels, self.mask)

    @cached_property
    def vesselness(self) -> np.ndarray:
        """(512, 512) float32, >= 0."""
        return np.asarray(self.ridges.max(axis=0))

    @cached_property
    def vessels(self) -> np.ndarray:
        """(512, 512) bool: those of a calibre that both views show."""
        return vessels(self.pixels, self.mask) & self.inside


@dataclass(frozen=True)
class PairViews:
    """Both views of a pair; mask (512, 512) bool, where both are valid, and inside, the same without its rim."""

    cf: PreparedView
    fa: PreparedView
    mask: np.ndarray
    inside: np.ndarray


def prepare_views(pair: Pair) -> PairViews:
    """A pair of any size at 512 px."""
    cf, fa, mask = (resize_to_reference(array) for array in (pair.cf, pair.fa, pair.mask))
    inside = inside_rim(mask)
    return PairViews(PreparedView(cf, mask, inside), PreparedView(fa, mask, inside), mask, inside)
