"""Map a function over items in threads, in order and with bounded memory."""

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

from retipair.runtime.threads import available_cores

Item = TypeVar("Item")
Result = TypeVar("Result")


def parallel_map(function: Callable[[Item], Result], items: Iterable[Item], workers: int = 0) -> Iterator[Result]:
    """Yield function(item) for each item, in order, with `workers` threads (0: one per core).

    Useful for functions that release the GIL. At most `workers` items are in progress or waiting to be yielded. An
    exception of `function` is raised at the position of its item, after the calls in progress have ended.
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
