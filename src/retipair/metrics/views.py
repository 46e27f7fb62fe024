"""Prepare views for the metrics: resize them to 512 px, and compute vessel maps on first access."""

from dataclasses import dataclass
from functools import cached_property

import numpy as np
from skimage.morphology import skeletonize

from retipair.data.pair import Pair
from retipair.metrics.spectrum import power_spectrum, radial_power
from retipair.vision.distance import distance_to_edge
from retipair.vision.field_of_view import field_of_view
from retipair.vision.ridges import flattened, inside_rim, resize_to_reference, ridges_by_scale
from retipair.vision.segmentation import vessels_of_flattened


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
    def power(self) -> np.ndarray:
        """(256, 256) float64: power spectrum of the centre of `grey`, see `spectrum.power_spectrum`."""
        return power_spectrum(self.grey / 255.0)

    @cached_property
    def rings(self) -> np.ndarray:
        """(16,) float64, > 0: mean of `power` in each frequency ring, see `spectrum.radial_power`."""
        return radial_power(self.power)

    @cached_property
    def field(self) -> np.ndarray:
        """(512, 512) bool: the field of view of this view, segmented in this view alone."""
        return field_of_view(self.pixels)

    @property
    def alone(self) -> "PreparedView":
        """The same view with `field` as its mask, instead of the mask of the pair."""
        return PreparedView(self.pixels, self.field, inside_rim(self.field), self.dark)

    @cached_property
    def flat(self) -> np.ndarray:
        """(512, 512) float32: locally normalised brightness, see `ridges.flattened`."""
        return flattened(self.pixels, self.mask, self.dark)

    @cached_property
    def ridges(self) -> np.ndarray:
        """(4, 512, 512) float32, >= 0: vesselness at each of the scales `ridges.SIGMAS`."""
        return ridges_by_scale(self.flat)

    @cached_property
    def vesselness(self) -> np.ndarray:
        """(512, 512) float32, >= 0: maximum of `ridges` over the scales."""
        return np.asarray(self.ridges.max(axis=0))

    @cached_property
    def vessels(self) -> np.ndarray:
        """(512, 512) bool: segmented vessels, without the finest vessels, which only an FA shows."""
        return vessels_of_flattened(self.flat, self.mask) & self.inside

    @cached_property
    def lines(self) -> np.ndarray:
        """(512, 512) bool: centre lines of `vessels`."""
        return np.asarray(skeletonize(self.vessels))

    @cached_property
    def half_widths(self) -> np.ndarray:
        """(n,) float64: distance in px of each pixel of `lines` to the edge of its vessel."""
        return distance_to_edge(self.vessels)[self.lines]


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
