"""Means of the losses since the last log line, accumulated on the device."""

import math

import torch

from retipair.diffusion.losses import Losses
from retipair.runtime.distributed import DistributedState


class LossMeter:
    """Sums since the last log line, kept on the device to avoid a synchronisation at each step."""

    def __init__(self, device: str) -> None:
        self.sums = torch.zeros(11, device=device)
        self.last = math.nan

    def add(self, losses: Losses, t: torch.Tensor) -> None:
        scalars = torch.stack([losses.total.detach() * len(t), t.float().sum()])
        count = torch.full((1,), len(t), device=t.device)
        halves = torch.cat([losses.mse, losses.hf, losses.mse_counts, losses.hf_counts], dim=1)  # (B, 8)
        sums = torch.cat([scalars, count, halves.sum(0)])
        self.sums += torch.where(sums.isfinite().all(), sums, 0.0)

    def read(self, dist: DistributedState) -> dict[str, float]:
        """Return the means since the last call, over all processes; a half's over the samples where it counts."""
        total, t, count, *halves = dist.reduce_sum(self.sums).tolist()
        self.sums.zero_()
        count = max(count, 1.0)  # 0 if every step was skipped
        self.last = total / count
        mse, mse_cf, mse_fa = half_means(halves[0:2], halves[4:6])
        hf, hf_cf, hf_fa = half_means(halves[2:4], halves[6:8])
        return {
            "loss": self.last,
            "mse": mse,
            "mse_cf": mse_cf,
            "mse_fa": mse_fa,
            "hf": hf,
            "hf_cf": hf_cf,
            "hf_fa": hf_fa,
            "t": t / count,
        }


def half_means(sums: list[float], counts: list[float]) -> tuple[float, float, float]:
    """Return (both, CF, FA): the mean of each half, 0 if it never counted, and the mean over those that did."""
    cf, fa = (value / max(count, 1) for value, count in zip(sums, counts, strict=True))
    return (cf + fa) / max(sum(count > 0 for count in counts), 1), cf, fa
