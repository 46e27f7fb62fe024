"""What a command says while it works: on standard error, so that standard output stays for results."""

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
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

console = Console(stderr=True, highlight=False, soft_wrap=True)

Advance = Callable[..., None]
"""advance(steps=1, note=""): that many steps further, with a word on how it goes."""


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
    with Progress(*columns, console=console) as bar:
        task = bar.add_task(title, total=total, completed=done, note="", rate="")

        def advance(steps: int = 1, note: str = "") -> None:
            speed = bar.tasks[0].speed
            bar.update(task, advance=steps, rate=f"{speed:.2f}/s" if speed else "")
            if note:
                bar.update(task, note=note)

        yield advance


Item = TypeVar("Item")


def watched(title: str, items: Iterable[Item], total: int) -> Iterator[Item]:
    """The items as they come, with a bar that counts them."""
    with progress(title, total) as advance:
        for item in items:
            yield item
            advance()
