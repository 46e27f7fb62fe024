"""On SIGINT or SIGTERM, finish and save the current step or pair; a second signal stops immediately."""

import math
import os
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1, signal.SIGXCPU)
"""Ctrl-C sends SIGINT; cluster schedulers send the others at or before the time limit."""
_DUPLICATE_SIGTERM_S = 5.0
"""Seconds within which a second SIGTERM is ignored, because the cluster and the launcher both send one."""
_early_signals: list[int] = []
"""Signals received before `graceful_shutdown` was entered."""


class SigtermReceived(KeyboardInterrupt):
    """Raised on SIGTERM from a cluster scheduler, or from the launcher after another process ended."""


def end_on_signals() -> None:
    """Install handlers that end the command on a signal, except for signals ignored at the start (`nohup`)."""
    _early_signals.clear()
    if threading.current_thread() is threading.main_thread():
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1):
            if signal.getsignal(number) != signal.SIG_IGN:
                signal.signal(number, _end)


def ignore_signals() -> None:
    """Ignore further signals while the process exits: the cluster and the launcher may both send one."""
    for number in SIGNALS:
        signal.signal(number, signal.SIG_IGN)


def _end(number: int, frame: FrameType | None) -> None:
    _early_signals.append(number)
    raise KeyboardInterrupt if number == signal.SIGINT else SigtermReceived


class Stop:
    """A request to stop. number: the signal that requested it, 0 if there was none."""

    number = 0

    @property
    def requested(self) -> bool:
        return self.number > 0


@contextmanager
def graceful_shutdown(finishing: str) -> Iterator[Stop]:
    """Yield a Stop, which the first signal sets and the block must check; a second signal stops immediately.

    A SIGTERM within 5 s after another is ignored, also after the block, so that it does not interrupt the exit.
    finishing: what is completed before the command stops, printed on the first signal.
    """
    stop = Stop()
    if _early_signals:  # a signal arrived inside a __del__, where Python ignores the exception that `_end` raises
        _end(_early_signals[0], None)
    if threading.current_thread() is not threading.main_thread():  # only the main thread may set handlers
        yield stop
        return
    before = {number: signal.getsignal(number) for number in SIGNALS}
    requested_at = -math.inf

    def restore() -> None:
        for number, handler in before.items():
            signal.signal(number, handler)

    def request_stop(number: int, frame: FrameType | None) -> None:
        nonlocal requested_at
        if stop.requested:
            if number == stop.number == signal.SIGTERM and time.monotonic() - requested_at < _DUPLICATE_SIGTERM_S:
                return
            restore()
            signal.raise_signal(number)
            return
        stop.number, requested_at = number, time.monotonic()
        # Unlike print, os.write takes no lock.
        os.write(2, f"\nStopping: {finishing} first; a second signal stops at once\n".encode())

    for number in SIGNALS:
        signal.signal(number, request_stop)
    try:
        yield stop
    finally:
        if stop.number != signal.SIGTERM:
            restore()
