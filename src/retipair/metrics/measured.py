"""A pair as the metrics see it: at one size, with what takes long computed once."""

from dataclasses import dataclass
from functools import cached_property

import numpy as np

from retipair.data.pair import Pair
from retipair.vision.field_of_view import field_of_view
from retipair.vision.ridges import at_measured, inside_rim, segment, vesselness_by_scale


@dataclass(frozen=True)
class MeasuredView:
    """One view, 512 px wide.

    pixels (512, 512, 3) uint8 of a CF, (512, 512) of an FA; field (512, 512) bool, what this view alone shows of the
    eye; inside (512, 512) bool, where vesselness is not that of the pair's edge; ridges (scales, 512, 512) float32,
    vesselness at each of SIGMAS.
    """

    pixels: np.ndarray
    field: np.ndarray
    inside: np.ndarray
    ridges: np.ndarray

    @property
    def grey(self) -> np.ndarray:
        """(512, 512) uint8: the CF's green channel, which shows its vessels best, or the FA."""
        return self.pixels[..., 1] if self.pixels.ndim == 3 else self.pixels

    @cached_property
    def vesselness(self) -> np.ndarray:
        """(512, 512) float32, >= 0."""
        return np.asarray(self.ridges.max(axis=0))

    @cached_property
    def vessels(self) -> np.ndarray:
        """(512, 512) bool."""
        return segment(self.vesselness, self.inside)


@dataclass(frozen=True)
class Measured:
    """Both views of a pair; mask (512, 512) bool, where both are valid, and inside, the same without its rim."""

    cf: MeasuredView
    fa: MeasuredView
    mask: np.ndarray
    inside: np.ndarray


def measure(pair: Pair) -> Measured:
    """A pair of any size at 512 px; half a second, nearly all of it in filters that let go of Python's lock."""
    cf, fa, mask = (at_measured(array) for array in (pair.cf, pair.fa, pair.mask))
    inside = inside_rim(mask)
    seen = [MeasuredView(view, field_of_view(view), inside, vesselness_by_scale(view, mask)) for view in (cf, fa)]
    return Measured(seen[0], seen[1], mask, inside)
