"""Count training steps whose gradient contains NaN or infinity, and find the cause.

Counting does not synchronise the device.
"""

from collections.abc import Sequence

import torch

from retipair.diffusion.halves import find_nonfinite_half
from retipair.training.batches import Batch


class NonFiniteCounter:
    """Count the steps that were skipped because of NaN or infinity. Only `read` synchronises the device."""

    def __init__(self, device: str) -> None:
        self.count = torch.zeros((), dtype=torch.int64, device=device)
        self.first = torch.full((), -1, dtype=torch.int64, device=device)
        self.sync_is_free = device == "cpu"
        """True on the CPU, where `read` does not wait for another device."""
        self.since_last_log = 0
        """Number of steps that were skipped since the last log line, as far as `read` has counted them."""

    def add(self, finite: torch.Tensor, step: int) -> None:
        """Count step number `step` as skipped if its gradient is not finite.

        finite: () bool on the device, True if the gradient is finite.
        """
        skipped = ~finite
        self.first = torch.where(skipped & (self.first < 0), step, self.first)
        self.count += skipped

    def read(self) -> tuple[int, int]:
        """Return (count, first) for the steps that were skipped since the last call of `read`.

        count: how many steps were skipped.
        first: the step number of the first skipped step, or -1 if no step was skipped.
        """
        count, first = int(self.count), int(self.first)
        if count:
            self.since_last_log += count
            self.count.zero_()
            self.first.fill_(-1)
        return count, first


def find_nonfinite(batch: Batch, names: Sequence[str], prediction: torch.Tensor) -> str | None:
    """Describe the first NaN or infinity in a batch: in latents or prediction, in which pair and in which half.

    names: the ids of the pairs in the batch.
    prediction: the prediction of the network, (B, C, h, w).

    Returns None if all values are finite.
    """
    for label, values in (("the latents", batch.latents), ("the prediction", prediction)):
        for name, row in zip(names, values, strict=True):
            if half := find_nonfinite_half(row):
                return f"{label} of pair {name}, {half}"
    return None
