"""Stop a command on a signal, such as Ctrl-C, after it has finished and saved the current step or pair.

A second signal stops the command immediately.
"""

import math
import os
import signal
import stat
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from types import FrameType

SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1, signal.SIGXCPU)
"""The signals that stop a command. Ctrl-C sends SIGINT. A terminal that is closed, or an ssh connection that is lost,
sends SIGHUP. Cluster schedulers send the others near the time limit."""
_REPEATED = (signal.SIGTERM, signal.SIGHUP)
"""Signals of which several may be sent for one request: SIGTERM by the cluster and by `accelerate launch`, SIGHUP by
the shell and by the operating system, and both by systemd."""
_DUPLICATE_S = 5.0
"""Seconds during which a duplicate of a signal in `_REPEATED` is ignored."""
_early_signals: list[int] = []
"""The signals that `_end` has handled, before `graceful_shutdown` was entered."""


class SignalReceived(KeyboardInterrupt):
    """The process received SIGTERM, SIGHUP or SIGUSR1.

    The sender is a cluster scheduler, a terminal that was closed, or `accelerate launch` after another process of the
    command has ended.

    number: the number of the signal.
    """

    def __init__(self, number: int) -> None:
        super().__init__()
        self.number = number


def end_on_signals() -> None:
    """From now on, end the command by an exception on SIGINT, SIGTERM, SIGHUP or SIGUSR1.

    Signals that the process has ignored since its start stay ignored, also in `graceful_shutdown`. For example, a
    command that a shell script starts with `&` ignores SIGINT, and a command that is started with `nohup` SIGHUP.
    """
    _early_signals.clear()
    if threading.current_thread() is threading.main_thread():
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1):
            if signal.getsignal(number) != signal.SIG_IGN:
                signal.signal(number, _end)


def ignore_signals() -> None:
    """Ignore all further signals, so that they do not interrupt the exit of the process."""
    for number in SIGNALS:
        signal.signal(number, signal.SIG_IGN)


def _end(number: int, frame: FrameType | None) -> None:
    _early_signals.append(number)
    if number == signal.SIGHUP:
        _leave_terminal()
    raise KeyboardInterrupt if number == signal.SIGINT else SignalReceived(number)


def _leave_terminal() -> None:
    """Discard all further output to the terminal. If it is closed, an error on writing to it would end the command."""
    discarding = os.open(os.devnull, os.O_WRONLY)
    for descriptor in (1, 2):
        with suppress(OSError):  # the descriptor is closed
            if stat.S_ISCHR(os.fstat(descriptor).st_mode):
                os.dup2(discarding, descriptor)
    os.close(discarding)


class Stop:
    """State of a request to stop.

    number: the number of the signal that requested the stop, or 0 as long as there was none.
    """

    number = 0

    @property
    def requested(self) -> bool:
        return self.number > 0


@contextmanager
def graceful_shutdown(finishing: str) -> Iterator[Stop]:
    """Yield a Stop that tells the `with` block to finish its work and end.

    The first signal sets `Stop.requested`, which the block must check regularly. A second signal stops the command
    immediately. After a SIGTERM or SIGHUP, another SIGTERM or SIGHUP within 5 s is ignored as a duplicate. The signal
    handlers then also stay in place after the block, because the duplicate may arrive during the exit.

    After a SIGHUP, nothing more is printed on the terminal.

    finishing: a phrase for what is completed before the command stops; it is printed on the first signal.
    """
    stop = Stop()
    # Python ignores an exception that `_end` raised inside a __del__. It is raised again here.
    if _early_signals:
        _end(_early_signals[0], None)
    if threading.current_thread() is not threading.main_thread():  # only the main thread may set signal handlers
        yield stop
        return
    handlers = {number: signal.getsignal(number) for number in SIGNALS}
    before = {number: handler for number, handler in handlers.items() if handler != signal.SIG_IGN}
    requested_at = -math.inf

    def restore() -> None:
        for number, handler in before.items():
            signal.signal(number, handler)

    def request_stop(number: int, frame: FrameType | None) -> None:
        nonlocal requested_at
        if stop.requested:
            is_repeated = number in _REPEATED and stop.number in _REPEATED
            if is_repeated and time.monotonic() - requested_at < _DUPLICATE_S:
                return
            restore()
            signal.raise_signal(number)
            return
        stop.number, requested_at = number, time.monotonic()
        # os.write is used because print takes a lock, which the interrupted code may hold.
        with suppress(OSError):  # the terminal is closed
            os.write(2, f"\nStopping: {finishing} first; a second signal stops at once\n".encode())
        if number == signal.SIGHUP:
            _leave_terminal()

    for number in before:
        signal.signal(number, request_stop)
    try:
        yield stop
    finally:
        if stop.number not in _REPEATED:
            restore()
