"""A pair as the metrics see it: at one size, with the vesselness of each view computed once."""

from dataclasses import dataclass

import numpy as np

from retipair.data.pair import Pair
from retipair.vision.ridges import at_measured, inside_rim, vesselness_by_scale


@dataclass(frozen=True)
class Measured:
    """A pair 512 px wide, and its vessels.

    cf (512, 512, 3) uint8, fa (512, 512) uint8; mask and inside (512, 512) bool, `inside` without the field's rim;
    cf_ridges and fa_ridges (scales, 512, 512) float32, vesselness at each of SIGMAS.
    """

    cf: np.ndarray
    fa: np.ndarray
    mask: np.ndarray
    inside: np.ndarray
    cf_ridges: np.ndarray
    fa_ridges: np.ndarray

    @property
    def cf_vesselness(self) -> np.ndarray:
        """(512, 512) float32, >= 0."""
        return np.asarray(self.cf_ridges.max(axis=0))

    @property
    def fa_vesselness(self) -> np.ndarray:
        """(512, 512) float32, >= 0."""
        return np.asarray(self.fa_ridges.max(axis=0))


def measure(pair: Pair) -> Measured:
    """A pair of any size at 512 px; half a second, nearly all of it in filters that let go of Python's lock."""
    cf, fa, mask = (at_measured(array) for array in (pair.cf, pair.fa, pair.mask))
    ridges = (vesselness_by_scale(view, mask) for view in (cf, fa))
    return Measured(cf, fa, mask, inside_rim(mask), *ridges)
