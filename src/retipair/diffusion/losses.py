"""Compute the training loss: the squared error plus weighted additional losses, such as the high-frequency loss.

Each loss has a value for each half of the joint latents: the left half is the CF, the right half is the FA.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property

import torch
from torch.nn import functional as F

from retipair.diffusion.halves import mean_per_half, stack_halves, unstack_halves
from retipair.diffusion.schedule import NoiseSchedule

CLEAN_RANGE = 10.0
"""Clean latents that are computed from a prediction are clamped to +-CLEAN_RANGE."""


@dataclass(frozen=True)
class Prediction:
    """A prediction of the network, with the tensors from which its losses are computed.

    prediction: the predicted noise or v, (B, C, h, w) float32.
    noisy: the noisy latents x_t, with noise in both halves, (B, C, h, w) float32.
    latents: the clean latents x_0, (B, C, h, w) float32.
    noise: the noise in x_t, (B, C, h, w) float32.
    t: the timestep of each sample, (B,) int64.
    """

    schedule: NoiseSchedule
    prediction: torch.Tensor
    noisy: torch.Tensor
    latents: torch.Tensor
    noise: torch.Tensor
    t: torch.Tensor

    @cached_property
    def target(self) -> torch.Tensor:
        """The correct prediction, (B, C, h, w): the noise or v, by the prediction type of the schedule."""
        return self.schedule.target(self.latents, self.noise, self.t)

    @cached_property
    def clean_latents(self) -> torch.Tensor:
        """The clean latents computed from the prediction, (B, C, h, w), clamped to +-CLEAN_RANGE."""
        clean = self.schedule.clean_latents(self.prediction, self.noisy, self.t)
        return clean.clamp(-CLEAN_RANGE, CLEAN_RANGE)


LossFunction = Callable[[Prediction], torch.Tensor]
"""A function that returns the loss of each sample and half, (B, 2). The columns are CF and FA."""


def mse(prediction: Prediction) -> torch.Tensor:
    """Return the mean squared error of the prediction for each sample and half, (B, 2)."""
    return mean_per_half((prediction.prediction - prediction.target) ** 2)


def high_frequency(prediction: Prediction, kernel: int, sigma: float) -> torch.Tensor:
    """Return the mean absolute error of the high-pass filtered clean latents for each sample and half, (B, 2).

    kernel, sigma: see `high_pass`.
    """
    predicted = high_pass(prediction.clean_latents, kernel, sigma)
    return mean_per_half((predicted - high_pass(prediction.latents, kernel, sigma)).abs())


@dataclass(frozen=True)
class Term:
    """A loss that is multiplied by `weight` and then added to the squared error. A loss of weight 0 is not computed.

    The loss applies only to samples with a timestep below `max_timestep` and with clean latents that can be computed
    from the prediction (see `NoiseSchedule.implies_clean`).
    """

    function: LossFunction
    weight: float
    max_timestep: int


@dataclass(frozen=True)
class Losses:
    """Losses of a batch.

    total: the loss to minimise, a scalar with gradient.
    values: for each loss by name, the unweighted values (B, 2) of each sample and half, without gradient.
    counts: for each loss by name, (B, 2): 1 if the loss applies to this sample and half, else 0. Where it is 0, the
    value is also 0.
    """

    total: torch.Tensor
    values: dict[str, torch.Tensor]
    counts: dict[str, torch.Tensor]


class Objective:
    """The training loss: the squared error of the prediction ("mse") plus the weighted sum of the terms.

    terms: the additional losses, by name.
    min_snr_gamma: gamma of the min-SNR weights of the squared error; 0 for no such weights.
    """

    def __init__(self, schedule: NoiseSchedule, terms: Mapping[str, Term], min_snr_gamma: float = 0.0) -> None:
        self._schedule = schedule
        self._terms = terms
        self._gamma = min_snr_gamma

    @property
    def names(self) -> tuple[str, ...]:
        """Names of the losses, in the order of `Losses.values`."""
        return ("mse", *self._terms)

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

        prediction, noisy, latents, noise, t: see `Prediction`.
        clean: for each sample and half, (B, 2) bool, whether the network got the half without noise; None if all halves
        had noise. At most one half of a sample may be clean. The loss of a sample is the mean over its noisy halves.
        """
        given = Prediction(self._schedule, prediction, noisy, latents, noise, t)
        counts = torch.ones(len(t), 2, device=t.device) if clean is None else (~clean).float()
        weights = counts / counts.mean(1, keepdim=True)  # 1 for both halves, or 0 for a clean half and 2 for the other
        error = mse(given) * counts
        weighted = error if self._gamma <= 0 else error * self._schedule.min_snr_weight(t, self._gamma)[:, None]
        total = (weighted * weights).mean()
        values_of, counts_of = {"mse": error.detach()}, {"mse": counts}
        for name, term in self._terms.items():
            counted = counts * ((t < term.max_timestep) & self._schedule.implies_clean(t))[:, None]
            values = counted * (term.function(given) if term.weight > 0 else 0.0)
            total = total + term.weight * (values * weights).mean()
            values_of[name], counts_of[name] = values.detach(), counted
        return Losses(total, values_of, counts_of)


def high_pass(latents: torch.Tensor, kernel: int, sigma: float) -> torch.Tensor:
    """Return the latents minus their Gaussian blur. Each half is filtered separately, with reflect padding.

    kernel: the width of the Gaussian kernel in latent pixels, an odd number.
    sigma: the standard deviation of the Gaussian kernel in latent pixels.
    """
    halves = stack_halves(latents)  # (B, 2C, h, w/2)
    return unstack_halves(halves - _blur(halves, kernel, sigma))


def _blur(images: torch.Tensor, kernel: int, sigma: float) -> torch.Tensor:
    offsets = torch.arange(kernel, device=images.device, dtype=images.dtype) - (kernel - 1) / 2
    weights = torch.exp(-0.5 * (offsets / sigma) ** 2)
    weights = weights / weights.sum()
    channels = images.shape[1]
    rows = weights.view(1, 1, 1, -1).expand(channels, 1, 1, -1)
    padded = _reflect(_reflect(images, kernel // 2, dim=2), kernel // 2, dim=3)
    return F.conv2d(F.conv2d(padded, rows, groups=channels), rows.transpose(2, 3), groups=channels)


def _reflect(images: torch.Tensor, width: int, dim: int) -> torch.Tensor:
    """Pad both ends of `dim` by reflection. Unlike the gradient of F.pad, its gradient is deterministic on a GPU."""
    size = images.shape[dim]
    before, after = images.narrow(dim, 1, width), images.narrow(dim, size - 1 - width, width)
    return torch.cat([before.flip(dim), images, after.flip(dim)], dim)
