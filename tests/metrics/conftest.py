"""Pairs to measure: views of synthetic eyes, drawn and measured once."""

import numpy as np
import pytest

from eyes import draw_pair
from retipair.data.pair import Pair
from retipair.metrics.measured import Measured, measure
from retipair.vision.field_of_view import field_of_view


def drawn(seed: int, size: int = 512) -> Pair:
    cf, fa = draw_pair(seed, size)
    return Pair(cf, fa, field_of_view(cf) & field_of_view(fa))


@pytest.fixture(scope="session")
def pairs() -> list[Pair]:
    return [drawn(seed) for seed in range(8)]


@pytest.fixture(scope="session")
def measured(pairs: list[Pair]) -> list[Measured]:
    return [measure(pair) for pair in pairs]


@pytest.fixture(scope="session")
def black() -> Pair:
    """What a broken model may draw."""
    return Pair(np.zeros((64, 64, 3), np.uint8), np.zeros((64, 64), np.uint8), np.zeros((64, 64), bool))
