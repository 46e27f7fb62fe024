"""Count training steps with a NaN or infinite gradient without synchronising the device, and find the cause."""

from collections.abc import Sequence

import torch

from retipair.diffusion.halves import find_nonfinite_half
from retipair.training.batches import Batch


class NonFiniteCounter:
    """Counts skipped (non-finite) steps on the device; reading the count is the only synchronisation."""

    def __init__(self, device: str) -> None:
        self.count = torch.zeros((), dtype=torch.int64, device=device)
        self.first = torch.full((), -1, dtype=torch.int64, device=device)
        self.sync_is_free = device == "cpu"
        """Whether `read` needs no synchronisation."""
        self.since_last_log = 0
        """Number of skipped steps since the last log line."""

    def add(self, finite: torch.Tensor, step: int) -> None:
        """Count a step. finite: () bool on the device, whether its gradient is finite."""
        skipped = ~finite
        self.first = torch.where(skipped & (self.first < 0), step, self.first)
        self.count += skipped

    def read(self) -> tuple[int, int]:
        """Return (number of skipped steps since the last call, the first of them)."""
        count, first = int(self.count), int(self.first)
        if count:
            self.since_last_log += count
            self.count.zero_()
            self.first.fill_(-1)
        return count, first


def find_nonfinite(batch: Batch, names: Sequence[str], prediction: torch.Tensor) -> str | None:
    """Name the pair and half whose latents or prediction contain NaN or infinity; None if all are finite."""
    for label, values in (("the latents", batch.latents), ("the prediction", prediction)):
        for name, row in zip(names, values, strict=True):
            if half := find_nonfinite_half(row):
                return f"{label} of pair {name}, {half}"
    return None
