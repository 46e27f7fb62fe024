"""Apply a function to items in several threads; results come in the order of the items, with bounded memory."""

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

from retipair.runtime.threads import available_cores

Item = TypeVar("Item")
Result = TypeVar("Result")


def parallel_map(function: Callable[[Item], Result], items: Iterable[Item], workers: int = 0) -> Iterator[Result]:
    """Yield function(item) for each item in order, computed in several threads.

    This is useful for functions that release the GIL.
    workers: the number of threads, or 0 for one per core. It also limits the number of results that wait to be yielded.
    If `function` raises an exception for an item, it is raised in place of the result of this item. All running calls
    are finished first.
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
