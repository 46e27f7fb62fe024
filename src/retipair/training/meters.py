"""Compute the mean losses since the last log line from sums that are kept on the device."""

import math
from collections.abc import Sequence

import torch

from retipair.diffusion.losses import Losses
from retipair.runtime.distributed import DistributedState


class LossMeter:
    """Sum up losses since the last log line. The sums stay on the device, so that a step needs no synchronisation.

    names: the names of the losses, in the order of `Losses.values`.
    sums: (3 + 4 x number of losses,). In this order: the sum of the total loss, the sum of the timesteps, the number
        of samples, for each loss the sums over the CF and the FA halves, and for each loss the numbers of CF and FA
        halves in these sums.
    last: the mean total loss that the last call of `read` found; NaN before the first call.
    """

    def __init__(self, names: Sequence[str], device: str) -> None:
        self.names = names
        self.sums = torch.zeros(3 + 4 * len(names), device=device)
        self.last = math.nan

    def add(self, losses: Losses, t: torch.Tensor) -> None:
        """Add the losses of a batch with the timesteps `t`, (B,). Ignore the batch if a loss is NaN or infinite."""
        scalars = torch.stack([losses.total.detach() * len(t), t.float().sum()])
        count = torch.full((1,), len(t), device=t.device)
        halves = torch.cat([*losses.values.values(), *losses.counts.values()], dim=1)  # (B, 4 x number of losses)
        sums = torch.cat([scalars, count, halves.sum(0)])
        self.sums += torch.where(sums.isfinite().all(), sums, 0.0)

    def read(self, dist: DistributedState) -> dict[str, float]:
        """Return the means over all samples of all processes since the last call, and reset the sums.

        The keys are "loss" (the total loss); "{name}", "{name}_cf" and "{name}_fa" for each loss; and "t" (the
        timestep). The mean of a loss over the CF or FA halves includes only the samples for which `Losses.counts` is 1.
        """
        sums = dist.reduce_sum(self.sums).cpu()
        total, t, count = sums[:3].tolist()
        values, counts = sums[3:].view(2, len(self.names), 2).tolist()
        self.sums.zero_()
        count = max(count, 1.0)  # the count is 0 if all batches were ignored
        self.last = total / count
        means = {"loss": self.last}
        for name, *of_halves in zip(self.names, values, counts, strict=True):
            keys = (name, f"{name}_cf", f"{name}_fa")
            means |= zip(keys, half_means(*of_halves), strict=True)
        return {**means, "t": t / count}


def half_means(sums: list[float], counts: list[float]) -> tuple[float, float, float]:
    """Return (mean of CF and FA, mean of CF, mean of FA) of one loss.

    sums: the sums of the loss over the CF and the FA halves.
    counts: the numbers of CF and FA halves in these sums. A half with a count of 0 has a mean of 0, which is excluded
        from the mean of CF and FA.
    """
    cf, fa = (value / max(count, 1) for value, count in zip(sums, counts, strict=True))
    return (cf + fa) / max(sum(count > 0 for count in counts), 1), cf, fa
