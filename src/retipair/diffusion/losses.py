"""Training losses of each half: the squared error, and weighted additional losses such as the high-frequency loss."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property

import torch
from torch.nn import functional as F

from retipair.diffusion.halves import mean_per_half, stack_halves, unstack_halves
from retipair.diffusion.schedule import NoiseSchedule

CLEAN_RANGE = 10.0
"""Predicted clean latents are clamped to this range, as in the original system."""


@dataclass(frozen=True)
class Prediction:
    """A prediction of the network, and what it is compared with.

    prediction, noisy (x_t with noise in both halves), latents (x_0), noise: (B, C, h, w) float32; t: (B,) int64.
    """

    schedule: NoiseSchedule
    prediction: torch.Tensor
    noisy: torch.Tensor
    latents: torch.Tensor
    noise: torch.Tensor
    t: torch.Tensor

    @cached_property
    def target(self) -> torch.Tensor:
        """What the network should predict, (B, C, h, w): the noise, or v."""
        return self.schedule.target(self.latents, self.noise, self.t)

    @cached_property
    def clean_latents(self) -> torch.Tensor:
        """The clean latents that the prediction implies, (B, C, h, w), clamped to +-CLEAN_RANGE."""
        clean = self.schedule.clean_latents(self.prediction, self.noisy, self.t)
        return clean.clamp(-CLEAN_RANGE, CLEAN_RANGE)


LossFunction = Callable[[Prediction], torch.Tensor]
"""Returns the loss of each sample and half, (B, 2), columns CF and FA."""


def mse(prediction: Prediction) -> torch.Tensor:
    """Return the mean squared error of the prediction."""
    return mean_per_half((prediction.prediction - prediction.target) ** 2)


def high_frequency(prediction: Prediction, kernel: int, sigma: float) -> torch.Tensor:
    """Return the L1 error of the high-passed clean latents, each half filtered separately; see `high_pass`."""
    predicted = high_pass(prediction.clean_latents, kernel, sigma)
    return mean_per_half((predicted - high_pass(prediction.latents, kernel, sigma)).abs())


@dataclass(frozen=True)
class Term:
    """A loss that is added to the squared error.

    It applies to samples with a timestep below `max_timestep`, except for noise prediction at an SNR of 0, which does
    not imply clean latents. With a weight of 0 it is not computed.
    """

    function: LossFunction
    weight: float
    max_timestep: int


@dataclass(frozen=True)
class Losses:
    """Losses of a batch. total: scalar with gradient. values, counts: by name of the loss, (B, 2) each, detached.

    Columns are CF and FA. counts is 1 where the loss counts, else 0; values are 0 where it does not.
    """

    total: torch.Tensor
    values: dict[str, torch.Tensor]
    counts: dict[str, torch.Tensor]


class Objective:
    """The squared error of the prediction ("mse", with min-SNR weights if `min_snr_gamma` > 0) + weight x each term."""

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

        prediction, noisy (x_t with noise in both halves), latents (x_0), noise: (B, C, h, w) float32; t (B,) int64.
        clean: (B, 2) bool, halves that the network got without noise, excluded from the loss; at most one per row,
        default none. The loss of a sample is the mean over its remaining halves.
        """
        given = Prediction(self._schedule, prediction, noisy, latents, noise, t)
        counts = torch.ones(len(t), 2, device=t.device) if clean is None else (~clean).float()
        weights = counts / counts.mean(1, keepdim=True)  # 1 and 1, or 0 and 2
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
    """Return x - GaussianBlur(x). Each half is filtered separately with reflect padding, to ignore the seam."""
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


def _reflect(images: torch.Tensor, by: int, dim: int) -> torch.Tensor:
    """Pad both ends as F.pad does in mode "reflect", but with a gradient that is deterministic on a GPU."""
    size = images.shape[dim]
    before, after = images.narrow(dim, 1, by), images.narrow(dim, size - 1 - by, by)
    return torch.cat([before.flip(dim), images, after.flip(dim)], dim)
