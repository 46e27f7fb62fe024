"""Why a command ends early: what cannot work, said in one line with the file or flag and the remedy."""

from collections.abc import Callable
from typing import TypeVar

Result = TypeVar("Result")


class UserError(ValueError):
    """Bad input. The command line prints the message alone and ends with status 2."""


class Stopped(Exception):  # noqa: N818 - nothing went wrong
    """The work ended early, kept as its message says. number: the signal that asked for it."""

    def __init__(self, message: str, number: int) -> None:
        super().__init__(message)
        self.number = number


def printable(text: str) -> str:
    """In one line, and without what would move a terminal's cursor: names in it may come from anywhere."""
    return "".join(one if one.isprintable() else one.encode("unicode_escape").decode() for one in text)


def unless_out_of_memory(work: Callable[[], Result]) -> Result | None:
    """What `work` returns; None where memory has run out, by when the frames that held it are gone."""
    try:
        return work()
    except (RuntimeError, MemoryError) as error:
        if not is_out_of_memory(error):
            raise
    return None


def is_out_of_memory(error: BaseException) -> bool:
    """Whether Python, numpy or torch says that memory has run out; on the CPU torch has no class for it."""
    kinds = {kind.__name__ for kind in type(error).__mro__}
    return bool(kinds & {"OutOfMemoryError", "MemoryError"}) or "can't allocate memory" in str(error)
