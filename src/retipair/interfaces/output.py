"""Decide where the messages of a command go when Python code calls it, and whether it may use the network."""

import os
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext

from retipair.runtime.console import log_output
from retipair.runtime.library_logging import quiet_libraries


@contextmanager
def command_output(verbose: bool, offline: bool = False) -> Iterator[None]:
    """Print the output of a command if `verbose`, else send it to the logger; silence the messages of libraries.

    offline: whether no base is downloaded from the hub.
    """
    with (
        quiet_libraries(),
        nullcontext() if verbose else log_output(),
        _without_network() if offline else nullcontext(),
    ):
        yield


@contextmanager
def _without_network() -> Iterator[None]:
    """Set HF_HUB_OFFLINE, as --offline does, and restore it."""
    before = os.environ.get("HF_HUB_OFFLINE")
    os.environ["HF_HUB_OFFLINE"] = "1"
    try:
        yield
    finally:
        del os.environ["HF_HUB_OFFLINE"]
        if before is not None:
            os.environ["HF_HUB_OFFLINE"] = before
