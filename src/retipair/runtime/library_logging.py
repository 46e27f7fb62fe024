"""Silence diffusers and transformers while retipair runs, without changing their settings for the calling program."""

import logging
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager

LEVELS = {"diffusers": "critical", "transformers": "error"}
"""Both warn about components that are omitted on purpose; diffusers also logs errors before it raises them."""


def quiet_from_import() -> None:
    """Set the variables from which the libraries read their log level on import, here and in child processes."""
    for name, level in LEVELS.items():
        os.environ.setdefault(f"{name.upper()}_VERBOSITY", level)


@contextmanager
def quiet_libraries() -> Iterator[None]:
    """Silence messages and progress bars of the libraries inside the context, if they are already imported.

    A log level that is set by an environment variable takes precedence.
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
    """Suppress warnings logged while libraries are imported, such as that of transformers about torchvision."""
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        yield
    finally:
        logging.disable(before)
