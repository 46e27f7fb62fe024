"""The same for many items on every core, in order, holding no more of them than are in work."""

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

from retipair.runtime.threads import available_cores

Item = TypeVar("Item")
Result = TypeVar("Result")


def parallel_map(function: Callable[[Item], Result], items: Iterable[Item], workers: int = 0) -> Iterator[Result]:
    """function(item) of each item, in as many threads as `workers` says (0: the cores).

    For work that lets go of Python's lock. Items are taken and results held only as they are asked for; what
    `function` raises comes at its item's turn, after those already begun have ended.
    """
    count = workers or available_cores()
    running: deque[Future[Result]] = deque()
    with ThreadPoolExecutor(count) as pool:
        for item in items:
            if len(running) == count:
                yield running.popleft().result()
            running.append(pool.submit(function, item))
        while running:
            yield running.popleft().result()
