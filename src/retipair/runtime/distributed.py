"""The processes that share one command's work, as `accelerate launch` starts them; without it there is one."""

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import TypeVar

import torch
from torch.nn.utils import parameters_to_vector, vector_to_parameters

from retipair.runtime.console import console
from retipair.runtime.errors import UserError

Item = TypeVar("Item")
_PATIENCE = timedelta(days=2)
"""How long the others wait for the first, which may have very many pairs to encode."""


@dataclass(frozen=True)
class Processes:
    """Which of them this is, from 0, and how many there are."""

    rank: int = 0
    count: int = 1

    @property
    def first(self) -> bool:
        """The one that writes what there is one of, and speaks."""
        return self.rank == 0

    def share(self, items: Sequence[Item]) -> Sequence[Item]:
        """Every count-th of the items, from the rank on: those of all processes are all of them, each once."""
        return items[self.rank :: self.count]

    def wait(self) -> None:
        """Until all have come here."""
        if self.count > 1:
            with _peers_may_end():
                _state().wait_for_everyone()

    @contextmanager
    def first_alone(self) -> Iterator[None]:
        """The first goes through before the others begin."""
        if not self.first:
            self.wait()
        yield
        if self.first:
            self.wait()

    def total(self, tensor: torch.Tensor) -> torch.Tensor:
        """The sum over all processes, the same in each."""
        if self.count == 1:
            return tensor
        from accelerate.utils import reduce

        with _peers_may_end():
            return reduce(tensor, "sum")

    def any_now_and_then(self, flag: bool, step: int) -> bool:
        """Whether any process has the flag; several ask one another at each tenth step, for a GPU waits for that."""
        if self.count == 1:
            return flag
        if step % 10:
            return False
        return bool(self.total(torch.tensor(float(flag), device=_state().device)))

    def average(self, tensors: Sequence[torch.Tensor]) -> None:
        """Put the mean over all processes in place of each tensor: one message for all of them."""
        if self.count > 1:
            vector = self.total(parameters_to_vector(tensors)) / self.count
            vector_to_parameters(vector, tensors)


ALONE = Processes()


def processes(device: str) -> Processes:
    """Those that were launched together with this one; they meet here. All but the first are quiet from here on."""
    if int(os.environ.get("WORLD_SIZE", "1")) == 1:
        return ALONE
    with _peers_may_end():
        state = _state(device)
    console.quiet = not state.is_main_process
    return Processes(state.process_index, state.num_processes)


def _state(device: str = "cpu"):  # type: ignore[no-untyped-def] # accelerate's, a singleton
    from accelerate import PartialState

    return PartialState(cpu=device == "cpu", timeout=_PATIENCE)


@contextmanager
def _peers_may_end() -> Iterator[None]:
    """What the library raises when another process is gone, in one line."""
    try:
        yield
    except RuntimeError as error:
        if isinstance(error, torch.OutOfMemoryError):
            raise
        raise UserError(
            "another process of this command has ended (killed, or stopped by an error of its own); "
            "the same command goes on where it stopped (train: with --resume)"
        ) from error
