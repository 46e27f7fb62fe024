"""Silence the messages of diffusers and transformers while retipair runs.

A program that uses retipair keeps its own log settings for these libraries.
"""

import logging
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager

LEVELS = {"diffusers": "critical", "transformers": "error"}
"""The lowest log level that each library may print.

Both libraries warn about model components that retipair omits on purpose. diffusers also logs the errors that it
raises, so that they would be printed twice.
"""


def quiet_from_import() -> None:
    """Set the environment variables from which the libraries read their log level when they are imported.

    The variables also apply to child processes. Variables that the user has set are not changed.
    """
    for name, level in LEVELS.items():
        os.environ.setdefault(f"{name.upper()}_VERBOSITY", level)


@contextmanager
def quiet_libraries() -> Iterator[None]:
    """Silence the messages and progress bars of the libraries inside the context, if they are already imported.

    A log level that the user has set by an environment variable, such as DIFFUSERS_VERBOSITY, is used instead.
    """
    libraries = {
        name: sys.modules[f"{name}.utils.logging"] for name in LEVELS if f"{name}.utils.logging" in sys.modules
    }
    before = {name: (library.get_verbosity(), library.is_progress_bar_enabled()) for name, library in libraries.items()}
    for name, library in libraries.items():
        library.disable_progress_bar()
        chosen = os.environ.get(f"{name.upper()}_VERBOSITY", LEVELS[name])
        library.set_verbosity(library.log_levels.get(chosen, before[name][0]))
    try:
        yield
    finally:
        for name, library in libraries.items():
            level, bars = before[name]
            library.set_verbosity(level)
            if bars:
                library.enable_progress_bar()


@contextmanager
def quiet_import() -> Iterator[None]:
    """Suppress all log messages up to level WARNING inside the context, which imports libraries.

    For example, transformers logs a warning if torchvision is missing.
    """
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        yield
    finally:
        logging.disable(before)
