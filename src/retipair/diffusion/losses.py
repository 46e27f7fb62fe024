"""Training losses per half: error of the prediction, and of the high frequencies of the clean latents it implies."""

from dataclasses import dataclass

import torch
from torch.nn import functional as F

from retipair.diffusion.halves import mean_per_half, stack_halves, unstack_halves
from retipair.diffusion.schedule import NoiseSchedule

CLEAN_RANGE = 10.0
"""Predicted clean latents are clamped to this before the high-pass, as in the original system."""


@dataclass(frozen=True)
class HighFrequency:
    """Settings of the high-frequency loss: weight, Gaussian blur (kernel and sigma, latent pixels), timestep limit."""

    weight: float
    kernel: int
    sigma: float
    max_timestep: int


@dataclass(frozen=True)
class Losses:
    """Losses of a batch. total: scalar with gradient; the others: (B, 2), columns CF and FA, detached.

    mse_counts and hf_counts are 1 where mse and hf count, else 0; mse and hf are 0 where they do not count. mse counts
    for all halves that are not clean, hf for those of them with a timestep below the limit; with noise prediction, hf
    does not count at an SNR of 0, where the prediction implies no clean latents.
    """

    total: torch.Tensor
    mse: torch.Tensor
    mse_counts: torch.Tensor
    hf: torch.Tensor
    hf_counts: torch.Tensor


class Objective:
    """Squared error of the prediction + weight x L1 of the high-passed clean latents, each half filtered separately."""

    def __init__(self, schedule: NoiseSchedule, high_frequency: HighFrequency, min_snr_gamma: float = 0.0) -> None:
        self._schedule = schedule
        self._hf = high_frequency
        self._gamma = min_snr_gamma

    def __call__(
        self,
        prediction: torch.Tensor,
        noisy: torch.Tensor,
        latents: torch.Tensor,
        noise: torch.Tensor,
        t: torch.Tensor,
        clean: torch.Tensor | None = None,
    ) -> Losses:
        """Compute the losses of a batch.

        prediction, noisy (x_t with noise in both halves), latents (x_0), noise: (B, C, h, w) float32; t (B,) int64.
        clean: (B, 2) bool, halves that the network got without noise, excluded from the loss; at most one per row,
        default none. A sample's loss is the mean over its other halves.
        """
        counts = torch.ones(len(t), 2, device=t.device) if clean is None else (~clean).float()
        weights = counts / counts.mean(1, keepdim=True)  # 1 and 1, or 0 and 2
        mse = mean_per_half((prediction - self._schedule.target(latents, noise, t)) ** 2) * counts
        weighted = mse if self._gamma <= 0 else mse * self._schedule.min_snr_weight(t, self._gamma)[:, None]
        hf_counts = counts * ((t < self._hf.max_timestep) & self._schedule.implies_clean(t))[:, None]
        hf = self._high_frequency(prediction, noisy, latents, t) * hf_counts
        total = (weighted * weights).mean() + self._hf.weight * (hf * weights).mean()
        return Losses(total, mse.detach(), counts, hf.detach(), hf_counts)

    def _high_frequency(
        self, prediction: torch.Tensor, noisy: torch.Tensor, latents: torch.Tensor, t: torch.Tensor
    ) -> torch.Tensor:
        if self._hf.weight <= 0:
            return latents.new_zeros(len(latents), 2)
        clean = self._schedule.clean_latents(prediction, noisy, t).clamp(-CLEAN_RANGE, CLEAN_RANGE)
        return mean_per_half((high_pass(clean, self._hf) - high_pass(latents, self._hf)).abs())


def high_pass(latents: torch.Tensor, settings: HighFrequency) -> torch.Tensor:
    """Return x - GaussianBlur(x), each half filtered separately with reflect padding, so that the seam is no edge."""
    halves = stack_halves(latents)  # (B, 2C, h, w/2)
    return unstack_halves(halves - _blur(halves, settings.kernel, settings.sigma))


def _blur(images: torch.Tensor, kernel: int, sigma: float) -> torch.Tensor:
    offsets = torch.arange(kernel, device=images.device, dtype=images.dtype) - (kernel - 1) / 2
    weights = torch.exp(-0.5 * (offsets / sigma) ** 2)
    weights = weights / weights.sum()
    channels = images.shape[1]
    rows = weights.view(1, 1, 1, -1).expand(channels, 1, 1, -1)
    padded = _reflect(_reflect(images, kernel // 2, dim=2), kernel // 2, dim=3)
    return F.conv2d(F.conv2d(padded, rows, groups=channels), rows.transpose(2, 3), groups=channels)


def _reflect(images: torch.Tensor, by: int, dim: int) -> torch.Tensor:
    """Pad both ends as F.pad's "reflect", whose gradient is not deterministic on a GPU."""
    size = images.shape[dim]
    before, after = images.narrow(dim, 1, by), images.narrow(dim, size - 1 - by, by)
    return torch.cat([before.flip(dim), images, after.flip(dim)], dim)
