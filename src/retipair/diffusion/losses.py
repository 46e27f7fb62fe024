"""What training lowers: the error of the predicted noise (or v), and of the fine detail that it implies, per half."""

from dataclasses import dataclass
from typing import Any

import torch
from torch.nn import functional as F

_LEAST_ALPHA = 1e-6
"""Divisor where the signal is gone (zero terminal SNR): finite, so that no gradient is NaN."""
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
    """Error of the prediction + weight x L1 of the high-passed clean latents, each half filtered apart.

    The target is the noise or v, as the base's scheduler says.
    """

    def __init__(self, scheduler: Any, high_frequency: HighFrequency, min_snr_gamma: float = 0.0) -> None:
        self._scheduler = scheduler
        self._hf = high_frequency
        self._gamma = min_snr_gamma

    def __call__(
        self,
        prediction: torch.Tensor,
        latents: torch.Tensor,
        noise: torch.Tensor,
        t: torch.Tensor,
        clean: torch.Tensor | None = None,
    ) -> Losses:
        """prediction, latents (clean), noise: (B, C, h, w) float32; t (B,) int64.

        clean: (B, 2) bool, halves that were given without noise and do not count; at most one a row, default none.
        A sample's loss is the mean over its halves that count.
        """
        counts = torch.ones(len(t), 2, device=t.device) if clean is None else (~clean).float()
        share = counts / counts.mean(1, keepdim=True)  # of the sample's loss: 1 and 1, or 0 and 2
        mse = per_half((prediction - target_for(self._scheduler, latents, noise, t)) ** 2) * counts
        weighted = mse if self._gamma <= 0 else mse * min_snr_weight(self._scheduler, t, self._gamma)[:, None]
        hf_counts = counts * ((t < self._hf.max_timestep) & implies_clean(self._scheduler, t))[:, None]
        hf = self._high_frequency(prediction, latents, noise, t) * hf_counts
        total = (weighted * share).mean() + self._hf.weight * (hf * share).mean()
        return Losses(total, mse.detach(), counts, hf.detach(), hf_counts)

    def _high_frequency(
        self, prediction: torch.Tensor, latents: torch.Tensor, noise: torch.Tensor, t: torch.Tensor
    ) -> torch.Tensor:
        if self._hf.weight <= 0:
            return latents.new_zeros(len(latents), 2)
        noisy = self._scheduler.add_noise(latents, noise, t)
        clean = clean_latents(self._scheduler, prediction, noisy, t).clamp(-CLEAN_RANGE, CLEAN_RANGE)
        return per_half((high_pass(clean, self._hf) - high_pass(latents, self._hf)).abs())


def find_nonfinite_half(values: torch.Tensor) -> str | None:
    """The first half, "CF" or "FA", of values (..., w) that has one that is no number; None if neither has."""
    halves = zip(("CF", "FA"), values.chunk(2, dim=-1), strict=True)
    return next((name for name, half in halves if not half.isfinite().all()), None)


def per_half(values: torch.Tensor) -> torch.Tensor:
    """(B, C, h, w) -> means over the left and the right half, (B, 2)."""
    return values.unflatten(-1, (2, -1)).mean(dim=(1, 2, 4))


def target_for(scheduler: Any, latents: torch.Tensor, noise: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
    """What the network should predict: the noise, or v = alpha noise - sigma x (Salimans & Ho 2022, eq. in sec. 4)."""
    kind = scheduler.config.prediction_type
    assert kind in ("epsilon", "v_prediction"), kind
    return noise if kind == "epsilon" else scheduler.get_velocity(latents, noise, t)


def implies_clean(scheduler: Any, t: torch.Tensor) -> torch.Tensor:
    """Whether a prediction implies clean latents, (B,) bool: predicted noise does not at an SNR of zero.

    See Lin et al. 2023, arXiv 2305.08891, sec. 3.2.
    """
    if scheduler.config.prediction_type == "v_prediction":
        return torch.ones_like(t, dtype=torch.bool)
    return scheduler.alphas_cumprod.to(t.device)[t] > 0


def clean_latents(scheduler: Any, prediction: torch.Tensor, noisy: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
    """The clean latents a prediction implies: x0 = (x_t - sigma eps) / alpha (DDPM, eq. 15), or alpha x_t - sigma v."""
    alpha2 = scheduler.alphas_cumprod.to(noisy.device)[t].view(-1, 1, 1, 1)
    alpha, sigma = alpha2.sqrt(), (1 - alpha2).sqrt()
    if scheduler.config.prediction_type == "v_prediction":
        return alpha * noisy - sigma * prediction
    return (noisy - sigma * prediction) / alpha.clamp(min=_LEAST_ALPHA)


def min_snr_weight(scheduler: Any, t: torch.Tensor, gamma: float) -> torch.Tensor:
    """min(SNR, gamma) / SNR for noise, / (SNR + 1) for v: (B,) (Hang et al. 2023, arXiv 2303.09556, eq. 8)."""
    alpha2 = scheduler.alphas_cumprod.to(t.device)[t]
    snr = alpha2 / (1 - alpha2)
    if scheduler.config.prediction_type == "v_prediction":
        return snr.clamp(max=gamma) / (snr + 1)
    return (gamma / snr).clamp(max=1)  # the same, and 1 where the SNR is 0


def high_pass(latents: torch.Tensor, settings: HighFrequency) -> torch.Tensor:
    """x - GaussianBlur(x), each half apart, borders reflecting, so that neither border nor seam looks like an edge."""
    halves = torch.cat(latents.chunk(2, dim=-1), dim=1)  # (B, 2C, h, w/2)
    blurred = _blur(halves, settings.kernel, settings.sigma)
    return torch.cat((halves - blurred).chunk(2, dim=1), dim=-1)


def _blur(images: torch.Tensor, kernel: int, sigma: float) -> torch.Tensor:
    reach = torch.arange(kernel, device=images.device, dtype=images.dtype) - (kernel - 1) / 2
    weights = torch.exp(-0.5 * (reach / sigma) ** 2)
    weights = weights / weights.sum()
    channels = images.shape[1]
    rows = weights.view(1, 1, 1, -1).expand(channels, 1, 1, -1)
    padded = _reflected(_reflected(images, kernel // 2, dim=2), kernel // 2, dim=3)
    return F.conv2d(F.conv2d(padded, rows, groups=channels), rows.transpose(2, 3), groups=channels)


def _reflected(images: torch.Tensor, by: int, dim: int) -> torch.Tensor:
    """Longer by so much on both ends: F.pad's "reflect", whose gradient a GPU sums in no fixed order."""
    size = images.shape[dim]
    before, after = images.narrow(dim, 1, by), images.narrow(dim, size - 1 - by, by)
    return torch.cat([before.flip(dim), images, after.flip(dim)], dim)
