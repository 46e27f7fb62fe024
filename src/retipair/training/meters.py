"""Means of the losses since the last log line, accumulated on the device."""

import math
from collections.abc import Sequence

import torch

from retipair.diffusion.losses import Losses
from retipair.runtime.distributed import DistributedState


class LossMeter:
    """Sums since the last log line, kept on the device to avoid a synchronisation at each step.

    names: the losses to sum, in the order of `Losses.values`. sums, (3 + 4 x number of losses,): the sum of the total
    loss, the sum of the timesteps, the number of samples, the sums of each loss for CF and FA, and the numbers of
    samples in these sums.
    """

    def __init__(self, names: Sequence[str], device: str) -> None:
        self.names = names
        self.sums = torch.zeros(3 + 4 * len(names), device=device)
        self.last = math.nan

    def add(self, losses: Losses, t: torch.Tensor) -> None:
        """Add the losses of a batch with timesteps t, (B,); a batch with NaN or infinity is left out."""
        scalars = torch.stack([losses.total.detach() * len(t), t.float().sum()])
        count = torch.full((1,), len(t), device=t.device)
        halves = torch.cat([*losses.values.values(), *losses.counts.values()], dim=1)  # (B, 4 x number of losses)
        sums = torch.cat([scalars, count, halves.sum(0)])
        self.sums += torch.where(sums.isfinite().all(), sums, 0.0)

    def read(self, dist: DistributedState) -> dict[str, float]:
        """Return the means since the last call, over all processes.

        The mean of a half is over the samples for which it counts.

        Keys: loss (the total), then {name}, {name}_cf and {name}_fa of each loss, then t.
        """
        sums = dist.reduce_sum(self.sums).cpu()
        total, t, count = sums[:3].tolist()
        values, counts = sums[3:].view(2, len(self.names), 2).tolist()
        self.sums.zero_()
        count = max(count, 1.0)  # the count is 0 if every step was skipped
        self.last = total / count
        means = {"loss": self.last}
        for name, *of_halves in zip(self.names, values, counts, strict=True):
            keys = (name, f"{name}_cf", f"{name}_fa")
            means |= zip(keys, half_means(*of_halves), strict=True)
        return {**means, "t": t / count}


def half_means(sums: list[float], counts: list[float]) -> tuple[float, float, float]:
    """Return (mean of the halves, CF, FA). A half that never counted is 0 and excluded from the mean of the halves."""
    cf, fa = (value / max(count, 1) for value, count in zip(sums, counts, strict=True))
    return (cf + fa) / max(sum(count > 0 for count in counts), 1), cf, fa
