"""Decide where the messages of a command go when Python code calls it."""

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext

from retipair.runtime.console import log_output
from retipair.runtime.library_logging import quiet_libraries


@contextmanager
def command_output(verbose: bool) -> Iterator[None]:
    """Print the output of a command if `verbose`, else send it to the logger; silence the messages of libraries."""
    with quiet_libraries(), nullcontext() if verbose else log_output():
        yield
