"""Coordinate the processes of one command: several under `accelerate launch`, otherwise one."""

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
_BARRIER_TIMEOUT = timedelta(days=2)
"""The timeout is long because the main process may encode many pairs while the others wait."""


@dataclass(frozen=True)
class DistributedState:
    """Rank of this process, from 0, and number of processes."""

    process_index: int = 0
    num_processes: int = 1

    @property
    def is_main_process(self) -> bool:
        """Return True if this process writes the shared files and prints."""
        return self.process_index == 0

    def split_between_processes(self, items: Sequence[Item]) -> Sequence[Item]:
        """Return the items for this process: every `num_processes`-th one, from `process_index` on."""
        return items[self.process_index :: self.num_processes]

    def wait_for_everyone(self) -> None:
        """Block until every process has called this."""
        if self.num_processes > 1:
            with _explain_lost_peers():
                _state().wait_for_everyone()

    @contextmanager
    def main_process_first(self) -> Iterator[None]:
        """Run the block on the main process before the others run it."""
        if not self.is_main_process:
            self.wait_for_everyone()
        yield
        if self.is_main_process:
            self.wait_for_everyone()

    def reduce_sum(self, tensor: torch.Tensor) -> torch.Tensor:
        """Return the sum of `tensor` over all processes, on each of them."""
        if self.num_processes == 1:
            return tensor
        from accelerate.utils import reduce

        with _explain_lost_peers():
            return reduce(tensor, "sum")

    def any_process(self, flag: bool, step: int) -> bool:
        """Return True if any process set `flag`.

        With several processes, this is False except at every 10th step, because the all-reduce synchronises the GPU.
        """
        if self.num_processes == 1:
            return flag
        if step % 10:
            return False
        return bool(self.reduce_sum(torch.tensor(float(flag), device=_state().device)))

    def reduce_mean_(self, tensors: Sequence[torch.Tensor]) -> None:
        """Replace each tensor by its mean over all processes, in one all-reduce."""
        if self.num_processes > 1:
            vector = self.reduce_sum(parameters_to_vector(tensors)) / self.num_processes
            vector_to_parameters(vector, tensors)


SINGLE_PROCESS = DistributedState()


def distributed_state(device: str) -> DistributedState:
    """Return rank and number of processes; from this call on, only the main process prints."""
    if int(os.environ.get("WORLD_SIZE", "1")) == 1:
        return SINGLE_PROCESS
    with _explain_lost_peers():
        state = _state(device)
    console.quiet = not state.is_main_process
    return DistributedState(state.process_index, state.num_processes)


def _state(device: str = "cpu"):  # type: ignore[no-untyped-def] # accelerate's singleton
    from accelerate import PartialState

    return PartialState(cpu=device == "cpu", timeout=_BARRIER_TIMEOUT)


@contextmanager
def _explain_lost_peers() -> Iterator[None]:
    """Raise UserError in place of the library's error about a lost process."""
    try:
        yield
    except RuntimeError as error:
        if isinstance(error, torch.OutOfMemoryError):
            raise
        raise UserError(
            "another process of this command has ended (killed, or stopped by an error); "
            "run the same command again to continue (train: with --resume)"
        ) from error
