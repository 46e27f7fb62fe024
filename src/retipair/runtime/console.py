"""Show the progress and the messages of a command on standard error; standard output is for results."""

import logging
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, redirect_stdout
from io import StringIO, TextIOBase
from typing import TypeVar

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from rich.table import Table

console = Console(
    stderr=True, highlight=False, soft_wrap=True, markup=False, emoji=False, force_jupyter=False
)  # without force_jupyter=False, rich would ignore redirection of the output in Jupyter

Advance = Callable[..., None]
"""A function advance(steps=1, note="") that moves the progress bar by `steps` and shows the text `note` beside it."""
Item = TypeVar("Item")

LINE_EVERY = 30.0
"""Seconds between the lines that replace the bar if standard error is not a terminal but, for example, a log file."""


@contextmanager
def progress(title: str, total: int, done: int = 0) -> Iterator[Advance]:
    """Show a progress bar with the speed and the remaining time; yield the function that advances it.

    total: the number of steps of the whole task.
    done: the number of steps that an earlier run has completed.
    """
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("{task.fields[rate]}"),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
        TextColumn("{task.fields[note]}"),
    )
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as bar:
        task = bar.add_task(title, total=total, completed=done, note="", rate="")
        started = last_line = time.monotonic()

        def advance(steps: int = 1, note: str = "") -> None:
            nonlocal last_line
            bar.update(task, advance=steps)
            rate = (bar.tasks[0].completed - done) / max(time.monotonic() - started, 1e-6)
            bar.update(task, rate=f"{rate:.2f}/s" if rate >= 1 else f"{1 / max(rate, 1e-6):.1f} s each")
            if note:
                bar.update(task, note=note)
            if not console.is_terminal and time.monotonic() - last_line > LINE_EVERY:
                last_line = time.monotonic()
                console.print(f"{title}: {bar.tasks[0].completed:.0f} of {total}")

        yield advance


def show_table(table: Table, width: int = 160) -> None:
    """Print a table on standard output. `width` is its width in characters if standard output is not a terminal."""
    screen = Console(force_jupyter=False)
    (screen if screen.is_terminal else Console(width=width, force_jupyter=False)).print(table)


@contextmanager
def quiet() -> Iterator[None]:
    """Suppress all output inside the context. A command uses it to run another command silently."""
    before, console.quiet = console.quiet, True
    try:
        with redirect_stdout(StringIO()):
            yield
    finally:
        console.quiet = before


@contextmanager
def log_output() -> Iterator[None]:
    """Send the output of a command to the logger "retipair": warnings at level WARNING, all other lines at INFO."""
    console.file = _LogLines()  # type: ignore[assignment]
    try:
        with redirect_stdout(console.file):
            yield
    finally:
        console.file = None  # type: ignore[assignment]  # None is standard error


class _LogLines(TextIOBase):
    def write(self, text: str) -> int:
        for line in filter(str.strip, text.splitlines()):
            level = logging.WARNING if line.startswith("warning: ") else logging.INFO
            logging.getLogger("retipair").log(level, line.removeprefix("warning: "))
        return len(text)


def track(title: str, items: Iterable[Item], total: int) -> Iterator[Item]:
    """Yield the items and show a progress bar that counts them."""
    with progress(title, total) as advance:
        for item in items:
            yield item
            advance()
