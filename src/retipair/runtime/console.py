"""What a command says while it works: on standard error, so that standard output stays for results."""

import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, redirect_stdout
from io import StringIO
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

console = Console(stderr=True, highlight=False, soft_wrap=True, markup=False, emoji=False)

Advance = Callable[..., None]
"""advance(steps=1, note=""): that many steps further, with a word on how it goes."""
Item = TypeVar("Item")

LINE_EVERY = 30.0
"""Seconds between lines where there is no terminal to draw a bar on, as in a cluster's log."""


@contextmanager
def progress(title: str, total: int, done: int = 0) -> Iterator[Advance]:
    """A progress bar with steps a second and time left; yields the function that moves it."""
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
        began = told = time.monotonic()
        begun = done

        def advance(steps: int = 1, note: str = "") -> None:
            nonlocal told
            bar.update(task, advance=steps)
            rate = (bar.tasks[0].completed - begun) / max(time.monotonic() - began, 1e-6)
            bar.update(task, rate=f"{rate:.2f}/s" if rate >= 1 else f"{1 / max(rate, 1e-6):.1f} s each")
            if note:
                bar.update(task, note=note)
            if not console.is_terminal and time.monotonic() - told > LINE_EVERY:
                told = time.monotonic()
                console.print(f"{title}: {bar.tasks[0].completed:.0f} of {total}")

        yield advance


@contextmanager
def quiet() -> Iterator[None]:
    """Inside, what commands say of their work is left out: it is but a part of another's."""
    before, console.quiet = console.quiet, True
    try:
        with redirect_stdout(StringIO()):
            yield
    finally:
        console.quiet = before


def track(title: str, items: Iterable[Item], total: int) -> Iterator[Item]:
    """The items as they come, with a bar that counts them."""
    with progress(title, total) as advance:
        for item in items:
            yield item
            advance()
