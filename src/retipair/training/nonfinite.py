"""Training steps whose gradient is no number: found without waiting for the device, and named."""

from collections.abc import Sequence

import torch

from retipair.diffusion.losses import find_nonfinite_half
from retipair.training.batches import Batch


class NonFiniteCounter:
    """Steps whose update was left out, counted on the device; looked at where that waits for nobody."""

    def __init__(self, device: str) -> None:
        self.count = torch.zeros((), dtype=torch.int64, device=device)
        self.first = torch.full((), -1, dtype=torch.int64, device=device)
        self.free = device == "cpu"
        """Whether looking costs nothing."""
        self.lately = 0
        """How many were found since the last line of the log."""

    def add(self, finite: torch.Tensor, step: int) -> None:
        """finite: () bool, whether the gradient of this step was one."""
        lost = ~finite
        self.first = torch.where(lost & (self.first < 0), step, self.first)
        self.count += lost

    def read(self) -> tuple[int, int]:
        """(how many since the last call, the first of them)."""
        count, first = int(self.count), int(self.first)
        if count:
            self.lately += count
            self.count.zero_()
            self.first.fill_(-1)
        return count, first


def find_nonfinite(batch: Batch, names: Sequence[str], prediction: torch.Tensor) -> str | None:
    """What in a batch is no number: the latents of a pair's half or what is predicted of them; None: neither."""
    for what, values in (("the latents", batch.latents), ("the prediction", prediction)):
        for name, row in zip(names, values, strict=True):
            if half := find_nonfinite_half(row):
                return f"{what} of pair {name}, {half}"
    return None
