"""Told to stop, a command finishes the step or pair in hand and keeps it; told again, it ends at once."""

import math
import os
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1, signal.SIGXCPU)
"""A user's Ctrl-C, a cluster's end of time: SIGTERM, and what schedulers send some time before."""


_DUPLICATE_SIGTERM_S = 5.0
"""Seconds."""
_seen: list[int] = []
"""Signals that came before there was work to finish."""


class SigtermReceived(KeyboardInterrupt):
    """SIGTERM: a cluster's scheduler, or the launcher when another process has ended."""


def end_on_signals() -> None:
    """From here on signals end the command, but for those that it was started to ignore (`nohup`)."""
    _seen.clear()
    if threading.current_thread() is threading.main_thread():
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1):
            if signal.getsignal(number) != signal.SIG_IGN:
                signal.signal(number, _end)


def ignore_signals() -> None:
    """For a process that has nothing left to do but exit: a cluster and a launcher may both still send one."""
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1):
        if signal.getsignal(number) == _end:
            signal.signal(number, signal.SIG_IGN)


def _end(number: int, frame: FrameType | None) -> None:
    _seen.append(number)
    raise KeyboardInterrupt if number == signal.SIGINT else SigtermReceived


class Stop:
    """number: the signal that asked to stop; 0 while none has."""

    number = 0

    @property
    def requested(self) -> bool:
        return self.number > 0


@contextmanager
def graceful_shutdown(finishing: str) -> Iterator[Stop]:
    """Inside, the first signal sets a mark for the work to see; the second does what it would have done without this,
    but for a SIGTERM soon after another: a cluster and the launcher both send one.

    finishing: what is still finished, as the user is told.
    """
    stop = Stop()
    if _seen:  # raised where Python swallows it, in a __del__ of what was being loaded
        _end(_seen[0], None)
    if threading.current_thread() is not threading.main_thread():  # no other may set handlers
        yield stop
        return
    before = {number: signal.getsignal(number) for number in SIGNALS}
    asked = -math.inf

    def restore() -> None:
        for number, handler in before.items():
            signal.signal(number, handler)

    def ask(number: int, frame: FrameType | None) -> None:
        nonlocal asked
        if stop.requested:
            if number == stop.number == signal.SIGTERM and time.monotonic() - asked < _DUPLICATE_SIGTERM_S:
                return
            restore()
            signal.raise_signal(number)
            return
        stop.number, asked = number, time.monotonic()
        os.write(2, f"\nStopping: {finishing} first; once more to end at once\n".encode())  # no lock to wait for

    for number in SIGNALS:
        signal.signal(number, ask)
    try:
        yield stop
    finally:
        restore()
