"""The training losses: error of the prediction, and of the fine detail that it implies, per half."""

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
    """A batch's losses. total: scalar with gradient; the rest (B, 2): a column a half, CF then FA, detached.

    mse and hf are zero where a half does not count. hf also where the timestep is not below the limit, and where noise
    is predicted of latents without any signal, which implies no clean ones. mse_counts and hf_counts are one where they
    count, else zero.
    """

    total: torch.Tensor
    mse: torch.Tensor
    mse_counts: torch.Tensor
    hf: torch.Tensor
    hf_counts: torch.Tensor


class Objective:
    """Squared error of the prediction + weight x L1 of the high-passed clean latents, each half filtered apart."""

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
        clean: (B, 2) bool, halves that the network was given without noise and that do not count; at most one a row,
        default none. A sample's loss is the mean over its halves that count.
        """
        counts = torch.ones(len(t), 2, device=t.device) if clean is None else (~clean).float()
        share = counts / counts.mean(1, keepdim=True)  # of the sample's loss: 1 and 1, or 0 and 2
        mse = mean_per_half((prediction - self._schedule.target(latents, noise, t)) ** 2) * counts
        weighted = mse if self._gamma <= 0 else mse * self._schedule.min_snr_weight(t, self._gamma)[:, None]
        hf_counts = counts * ((t < self._hf.max_timestep) & self._schedule.implies_clean(t))[:, None]
        hf = self._high_frequency(prediction, noisy, latents, t) * hf_counts
        total = (weighted * share).mean() + self._hf.weight * (hf * share).mean()
        return Losses(total, mse.detach(), counts, hf.detach(), hf_counts)

    def _high_frequency(
        self, prediction: torch.Tensor, noisy: torch.Tensor, latents: torch.Tensor, t: torch.Tensor
    ) -> torch.Tensor:
        if self._hf.weight <= 0:
            return latents.new_zeros(len(latents), 2)
        clean = self._schedule.clean_latents(prediction, noisy, t).clamp(-CLEAN_RANGE, CLEAN_RANGE)
        return mean_per_half((high_pass(clean, self._hf) - high_pass(latents, self._hf)).abs())


def high_pass(latents: torch.Tensor, settings: HighFrequency) -> torch.Tensor:
    """Return x - GaussianBlur(x), each half filtered apart with reflecting borders: no border or seam is an edge."""
    halves = stack_halves(latents)  # (B, 2C, h, w/2)
    return unstack_halves(halves - _blur(halves, settings.kernel, settings.sigma))


def _blur(images: torch.Tensor, kernel: int, sigma: float) -> torch.Tensor:
    reach = torch.arange(kernel, device=images.device, dtype=images.dtype) - (kernel - 1) / 2
    weights = torch.exp(-0.5 * (reach / sigma) ** 2)
    weights = weights / weights.sum()
    channels = images.shape[1]
    rows = weights.view(1, 1, 1, -1).expand(channels, 1, 1, -1)
    padded = _reflect(_reflect(images, kernel // 2, dim=2), kernel // 2, dim=3)
    return F.conv2d(F.conv2d(padded, rows, groups=channels), rows.transpose(2, 3), groups=channels)


def _reflect(images: torch.Tensor, by: int, dim: int) -> torch.Tensor:
    """Pad both ends as F.pad's "reflect" does, whose gradient a GPU sums in no fixed order."""
    size = images.shape[dim]
    before, after = images.narrow(dim, 1, by), images.narrow(dim, size - 1 - by, by)
    return torch.cat([before.flip(dim), images, after.flip(dim)], dim)
