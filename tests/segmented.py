"""Pairs with vessels, to warp."""

from functools import cache

import numpy as np

from eyes import draw_pair
from retipair.data.pair import Pair
from retipair.matching.warped_pair import SegmentedPair, segment_pair
from retipair.vision.field_of_view import field_of_view


@cache
def draw_segmented(seed: int, size: int) -> SegmentedPair:
    cf, fa = draw_pair(seed, size)
    mask = np.asarray(field_of_view(cf) & field_of_view(fa))
    return segment_pair(Pair(cf * mask[..., None], fa * mask, mask))
