"""Many at once are what they are one by one, in order, and few of them are held."""

import math
import os
import threading
import time
from collections.abc import Iterator

import numpy as np
import pytest

from eyes import draw_pair
from retipair.data.pair import Pair
from retipair.metrics.views import prepare_views
from retipair.runtime.parallel import parallel_map, process_map
from retipair.runtime.threads import available_cores


def test_many_are_measured_as_one_by_one() -> None:
    pairs = [Pair(*draw_pair(seed, 128), np.ones((128, 128), dtype=bool)) for seed in range(3)]
    for pair, ridges in zip(pairs, parallel_map(lambda pair: prepare_views(pair).fa.ridges, pairs), strict=True):
        assert np.array_equal(ridges, prepare_views(pair).fa.ridges)


def test_the_order_is_that_of_the_items_however_long_each_takes() -> None:
    def slow_at_first(number: int) -> int:
        time.sleep(0.02 if number < 3 else 0)
        return number

    assert list(parallel_map(slow_at_first, range(12), workers=4)) == list(range(12))


def test_as_many_work_at_once_as_asked() -> None:
    together = threading.Barrier(3, timeout=30)
    list(parallel_map(lambda _: together.wait(), range(6), workers=3))  # fewer would wait in vain


def test_no_more_than_the_cores_are_held() -> None:
    taken = []

    def endless() -> Iterator[int]:
        while True:
            taken.append(len(taken))
            yield taken[-1]

    results = parallel_map(str, endless())
    assert next(results) == "0"
    assert len(taken) <= available_cores() + 1
    results.close()


def test_a_failure_comes_at_its_turn_and_nothing_after_it_begins() -> None:
    begun = []

    def work(number: int) -> int:
        begun.append(number)
        if number == 2:
            raise ValueError("the third")
        return number

    results = parallel_map(work, range(100), workers=2)
    assert [next(results), next(results)] == [0, 1]
    with pytest.raises(ValueError, match="the third"):
        next(results)
    assert max(begun) <= 4


@pytest.mark.parametrize("workers", [1, 2])
def test_processes_give_results_in_order_and_raise_what_was_raised(workers: int) -> None:
    assert list(process_map(math.sqrt, [4, 9, 16], workers, os.getpid)) == [2, 3, 4]
    results = process_map(math.sqrt, [4, -1], workers, os.getpid)
    assert next(results) == 2
    with pytest.raises(ValueError, match="math domain|nonnegative"):
        next(results)


def test_a_killed_process_is_reported() -> None:
    with pytest.raises(ChildProcessError, match="--workers 1"):
        list(process_map(os._exit, [1, 1], 2, os.getpid))
