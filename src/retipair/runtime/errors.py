"""Exceptions that end a command early. Each message is one line, which names the file or flag and the remedy."""

from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

Result = TypeVar("Result")


class UserError(ValueError):
    """The input is invalid, or something else stops the command that the user can change, such as too little memory.

    A command prints only the message, without a traceback, and exits with status 2.
    """


class FileError(UserError):
    """A file or folder cannot be used; the message is "PATH: PROBLEM" or "PATH, line LINE: PROBLEM".

    problem: what is wrong, and what the user can do.
    line: the number of the line in a text file, from 1.
    """

    def __init__(self, path: str | Path, problem: str, line: int | None = None) -> None:
        super().__init__(path, problem, line)  # pickle creates the error again from these arguments
        self.path, self.problem, self.line = Path(path), problem, line

    def __str__(self) -> str:
        path, problem, line = self.args
        return f"{path}: {problem}" if line is None else f"{path}, line {line}: {problem}"


class MissingError(FileError):
    """A file or folder does not exist, or contains nothing that can be used."""


class DamagedError(FileError):
    """A file is truncated, was edited, or is not in the format that its name implies."""


class OccupiedError(FileError):
    """An output path is in use, is of the wrong type (file or folder), or contains other files or results."""


class SettingError(UserError):
    """A setting has a value that cannot be used; the message is "--SETTING VALUE: PROBLEM".

    setting: the name of the setting, which is the same for the flag, the keyword argument and the config's field.
    value: the value that the user gave; None leaves it out of the message.
    problem: what is wrong, or which values are allowed.
    """

    def __init__(self, setting: str, value: object, problem: str) -> None:
        super().__init__(setting, value, problem)
        self.setting, self.value, self.problem = setting, value, problem

    def __str__(self) -> str:
        given = "" if self.value is None else f" {self.value}"
        return f"--{self.setting}{given}: {self.problem}"


class Stopped(Exception):  # noqa: N818 - not an error
    """A signal stopped the command early. The message states what was saved.

    number: the number of the signal.
    """

    def __init__(self, message: str, number: int) -> None:
        super().__init__(message)
        self.number = number


def printable(text: str) -> str:
    """Return `text` with line breaks and control characters escaped, since it may contain names from any source."""
    return "".join(char if char.isprintable() else char.encode("unicode_escape").decode() for char in text)


def unless_out_of_memory(work: Callable[[], Result]) -> Result | None:
    """Return the result of `work()`, or None if `work` ran out of memory.

    The memory that `work` used can be freed then, because the exception, which refers to it, has been discarded.
    """
    try:
        return work()
    except (RuntimeError, MemoryError) as error:
        if not is_out_of_memory(error):
            raise
    return None


def is_out_of_memory(error: BaseException) -> bool:
    """Return whether `error` is an out-of-memory error of Python, numpy or torch (a RuntimeError on the CPU)."""
    kinds = {kind.__name__ for kind in type(error).__mro__}
    return bool(kinds & {"OutOfMemoryError", "MemoryError"}) or "can't allocate memory" in str(error)
