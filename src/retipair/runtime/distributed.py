"""Coordinate the processes of one command. `accelerate launch` starts several processes; otherwise, there is one."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import TypeVar

import torch
from torch.nn.utils import parameters_to_vector, vector_to_parameters

from retipair.runtime.console import console
from retipair.runtime.errors import UserError
from retipair.runtime.threads import process_count

Item = TypeVar("Item")
_BARRIER_TIMEOUT = timedelta(days=2)
"""How long a process waits for another one, at most. The main process may encode pairs for many hours meanwhile."""


@dataclass(frozen=True)
class DistributedState:
    """Place of this process among the processes of the command, with the operations that they do together.

    process_index: the rank of this process, from 0.
    num_processes: the number of processes.
    """

    process_index: int = 0
    num_processes: int = 1

    @property
    def is_main_process(self) -> bool:
        """Whether this is the main process (rank 0), the only one that writes the shared files and prints."""
        return self.process_index == 0

    def split_between_processes(self, items: Sequence[Item]) -> Sequence[Item]:
        """Return the items that this process must handle: every `num_processes`-th item, from `process_index` on."""
        return items[self.process_index :: self.num_processes]

    def wait_for_everyone(self) -> None:
        """Wait until every process has called this method."""
        if self.num_processes > 1:
            with _explain_lost_peers():
                _state().wait_for_everyone()

    @contextmanager
    def main_process_first(self) -> Iterator[None]:
        """Let the main process run the `with` block first; all other processes wait until it has finished."""
        if not self.is_main_process:
            self.wait_for_everyone()
        yield
        if self.is_main_process:
            self.wait_for_everyone()

    def reduce_sum(self, tensor: torch.Tensor) -> torch.Tensor:
        """Return the sum of the tensors that all processes pass; each process gets the result."""
        if self.num_processes == 1:
            return tensor
        from accelerate.utils import reduce

        with _explain_lost_peers():
            return reduce(tensor, "sum")

    def any_process(self, flag: bool, step: int) -> bool:
        """Return whether any process passes a true `flag`; each process gets the same result.

        step: the number of the training step. An exchange delays the GPU, so several processes exchange the flags only
        in every 10th step; in other steps, the result is False.
        """
        if self.num_processes == 1:
            return flag
        if step % 10:
            return False
        return bool(self.reduce_sum(torch.tensor(float(flag), device=_state().device)))

    def reduce_mean_(self, tensors: Sequence[torch.Tensor]) -> None:
        """Replace each tensor in place by its mean over all processes, with a single all-reduce for all tensors."""
        if self.num_processes > 1:
            vector = self.reduce_sum(parameters_to_vector(tensors)) / self.num_processes
            vector_to_parameters(vector, tensors)


SINGLE_PROCESS = DistributedState()


def distributed_state(device: str) -> DistributedState:
    """Return the state of this process, and connect it with the other processes of the command.

    After this call, only the main process prints.
    """
    if process_count() == 1:
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
    """Convert a RuntimeError to a UserError with advice. Torch raises it if another process has ended."""
    try:
        yield
    except RuntimeError as error:
        if isinstance(error, torch.OutOfMemoryError):
            raise
        raise UserError(
            "another process of this command has ended (killed, or stopped by an error); "
            "run the same command again to continue (train: with --resume)"
        ) from error
