"""Many pairs measured at once are what they are one by one, in order, and few of them are held."""

import os
from collections.abc import Iterator

import numpy as np

from eyes import draw_pair
from retipair.data.pair import Pair
from retipair.metrics.measured import measure, measure_all


def eye(seed: int, size: int) -> Pair:
    return Pair(*draw_pair(seed, size), np.ones((size, size), dtype=bool))


def test_many_are_measured_as_one_by_one() -> None:
    pairs = [eye(seed, 128) for seed in range(3)]
    for pair, seen in zip(pairs, measure_all(pairs), strict=True):
        alone = measure(pair)
        assert np.array_equal(seen.cf_ridges, alone.cf_ridges)
        assert np.array_equal(seen.fa_ridges, alone.fa_ridges)


def test_no_more_than_the_cores_are_held() -> None:
    taken = []

    def endless() -> Iterator[Pair]:
        while True:
            taken.append(eye(len(taken), 64))
            yield taken[-1]

    seen = measure_all(endless())
    next(seen)
    assert len(taken) <= (os.cpu_count() or 1) + 1
    seen.close()
