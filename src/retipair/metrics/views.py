"""Prepare views for the metrics: resize them to 512 px, and compute vessel maps on first access."""

from dataclasses import dataclass
from functools import cached_property

import numpy as np

from retipair.data.pair import Pair
from retipair.vision.field_of_view import field_of_view
from retipair.vision.ridges import inside_rim, resize_to_reference, vesselness_by_scale
from retipair.vision.segmentation import vessels


@dataclass(frozen=True)
class PreparedView:
    """One view 512 px wide, with maps that are computed on first access.

    pixels: the image, (512, 512, 3) uint8 for a CF, (512, 512) uint8 for an FA.
    mask: the region in which both views of the pair are valid, (512, 512) bool.
    inside: the mask without the pixels near its edge, where the edge itself would be detected as a vessel.
    dark: whether vessels are darker than their surroundings; None: yes in a CF, no in an FA.
    """

    pixels: np.ndarray
    mask: np.ndarray
    inside: np.ndarray
    dark: bool | None = None

    @property
    def grey(self) -> np.ndarray:
        """(512, 512) uint8: the FA, or the green channel of the CF, which has the highest contrast of vessels."""
        return self.pixels[..., 1] if self.pixels.ndim == 3 else self.pixels

    @cached_property
    def field(self) -> np.ndarray:
        """(512, 512) bool: the field of view of this view, segmented in this view alone."""
        return field_of_view(self.pixels)

    @property
    def alone(self) -> "PreparedView":
        """The same view with `field` as its mask, instead of the mask of the pair."""
        return PreparedView(self.pixels, self.field, inside_rim(self.field), self.dark)

    @cached_property
    def ridges(self) -> np.ndarray:
        """(4, 512, 512) float32, >= 0: vesselness at each of the scales `ridges.SIGMAS`."""
        return vesselness_by_scale(self.pixels, self.mask, self.dark)

    @cached_property
    def vesselness(self) -> np.ndarray:
        """(512, 512) float32, >= 0: maximum of `ridges` over the scales."""
        return np.asarray(self.ridges.max(axis=0))

    @cached_property
    def vessels(self) -> np.ndarray:
        """(512, 512) bool: segmented vessels, without the finest vessels, which only an FA shows."""
        return vessels(self.pixels, self.mask, self.dark) & self.inside


@dataclass(frozen=True)
class PairViews:
    """Both views of a pair, prepared for the metrics.

    mask, inside: as in `PreparedView`, the same for both views.
    """

    cf: PreparedView
    fa: PreparedView
    mask: np.ndarray
    inside: np.ndarray


def prepare_views(pair: Pair) -> PairViews:
    """Resize a pair to 512 px and prepare its views for the metrics."""
    cf, fa, mask = (resize_to_reference(array) for array in (pair.cf, pair.fa, pair.mask))
    inside = inside_rim(mask)
    first, second = pair.dark_vessels
    return PairViews(PreparedView(cf, mask, inside, first), PreparedView(fa, mask, inside, second), mask, inside)
