"""Exceptions that end a command early; their messages are one line with the file or flag and the remedy."""

from collections.abc import Callable
from typing import TypeVar

Result = TypeVar("Result")


class UserError(ValueError):
    """Invalid input. The command line prints only the message and exits with status 2."""


class Stopped(Exception):  # noqa: N818 - not an error
    """The command stopped early on a signal, `number`; the message says what was saved."""

    def __init__(self, message: str, number: int) -> None:
        super().__init__(message)
        self.number = number


def printable(text: str) -> str:
    """Return `text` on one line with control characters escaped, since it may contain names from any source."""
    return "".join(char if char.isprintable() else char.encode("unicode_escape").decode() for char in text)


def unless_out_of_memory(work: Callable[[], Result]) -> Result | None:
    """Return work(), or None if memory ran out; the frames that held the memory are then released."""
    try:
        return work()
    except (RuntimeError, MemoryError) as error:
        if not is_out_of_memory(error):
            raise
    return None


def is_out_of_memory(error: BaseException) -> bool:
    """Return True for an out-of-memory error of Python, numpy or torch, which has no class for it on the CPU."""
    kinds = {kind.__name__ for kind in type(error).__mro__}
    return bool(kinds & {"OutOfMemoryError", "MemoryError"}) or "can't allocate memory" in str(error)
