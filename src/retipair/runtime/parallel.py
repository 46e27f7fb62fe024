"""Apply a function to items in several threads or processes; results come in the order of the items."""

import os
import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor, ThreadPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from functools import partial
from multiprocessing import get_context, parent_process
from typing import TypeVar

from retipair.runtime.console import console
from retipair.runtime.pillow import configure_pillow
from retipair.runtime.threads import available_cores

Item = TypeVar("Item")
Result = TypeVar("Result")


def parallel_map(function: Callable[[Item], Result], items: Iterable[Item], workers: int = 0) -> Iterator[Result]:
    """Yield function(item) for each item in order, computed in several threads.

    This is useful for functions that release the GIL.
    workers: the number of threads, or 0 for one per core. It also limits the number of results that wait to be yielded.
    If `function` raises an exception for an item, the exception is raised in place of the result of this item, after
    all running calls have finished.
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


def process_map(
    function: Callable[[Item], Result], items: Sequence[Item], workers: int, initialize: Callable[[], None]
) -> Iterator[Result]:
    """Yield function(item) for each item in order, computed in several processes.

    With one worker, or at most one item, `function` is called in this process. Otherwise, processes are spawned, not
    forked, because a fork of a process in which OpenCV runs threads may hang. A worker process ends when this process
    ends, even if SIGKILL ends this process.

    function, items: must be picklable.
    workers: the number of processes, or 0 for one per core.
    initialize: a function that each worker process calls first.
    Raises ChildProcessError if a worker process is killed.
    """
    count = worker_count(workers, len(items))
    if count == 1:
        yield from map(function, items)
        return
    start = partial(_start_worker, initialize)
    with ProcessPoolExecutor(count, mp_context=get_context("spawn"), initializer=start) as pool:
        try:
            yield from pool.map(function, items)
        except KeyboardInterrupt:
            console.print("Stopping: finishing the current pairs first; interrupt again to stop at once")
            raise
        except BrokenProcessPool:
            raise ChildProcessError(
                "a worker process was killed, perhaps for lack of memory; try --workers 1"
            ) from None
        finally:
            pool.shutdown(cancel_futures=True)


def worker_count(requested: int, tasks: int) -> int:
    return max(1, min(requested or available_cores(), tasks))


def _start_worker(initialize: Callable[[], None]) -> None:
    configure_pillow()
    initialize()
    parent = parent_process()
    assert parent is not None

    def exit_with_parent() -> None:
        parent.join()
        os._exit(1)

    threading.Thread(target=exit_with_parent, daemon=True).start()
