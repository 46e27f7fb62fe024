"""Guidance: combine several predictions of the network in one denoising step.

Classifier-free guidance (Ho & Salimans 2022, eq. 6) strengthens what the prompt adds to a prediction. *Cross-view
guidance* strengthens what one view adds to the other. For it, the network predicts twice: once jointly, and once with
self-attention that keeps the halves of the joint image apart, as if each view were alone. A multiple of the difference
between both predictions is added to the joint prediction of one view: of the CF, or of the view that is generated from
the other. For new pairs and variations of training pairs, two more changes keep the detail. The power spectrum of the
CF is restored, because otherwise large structures become too strong. The prediction of the FA moves half-way to its
separate prediction. docs/guidance.md and docs/one_view.md have the measurements. Related methods are
perturbed-attention guidance (arXiv 2403.17377), autoguidance (arXiv 2406.02507), and guidance in a limited interval
(arXiv 2404.07724).
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache, cached_property
from typing import Generic, Protocol, Self, TypeVar

import torch

from retipair.diffusion.halves import ViewName, half_of, replace_half
from retipair.diffusion.schedule import NoiseSchedule


class Rows(Protocol):
    """The conditioning of several samples, one row for each."""

    def rows(self, index: Sequence[int]) -> Self:
        """Return the rows with these indices, in this order. An index may occur several times."""


ConditioningT = TypeVar("ConditioningT", bound=Rows)
Denoise = Callable[[torch.Tensor, torch.Tensor, ConditioningT, int], torch.Tensor]
"""The network, a function (latents, timestep, conditioning, separate) -> prediction. In the last `separate` rows,
self-attention keeps the halves apart."""


@dataclass(frozen=True)
class Guidance:
    """The scales of both kinds of guidance.

    prompt_scale: the scale of classifier-free guidance; 1 turns it off.
    pair_scale: the scale of cross-view guidance; 1 turns it off.
    pair_from: the lowest timestep with cross-view guidance, as a fraction of the number of timesteps, in [0, 1].
    guided_view: the view that cross-view guidance makes agree with the other view.
    other_scale: the scale of the other view. At 1, its half stays as predicted jointly; at 0, it is that of the
        separate prediction. It is used where cross-view guidance is used.
    keeps_spectrum: whether the power spectrum of the clean latents in the guided half is restored.
    """

    prompt_scale: float = 1.0
    pair_scale: float = 1.0
    pair_from: float = 0.35
    guided_view: ViewName = "cf"
    other_scale: float = 0.5
    keeps_spectrum: bool = True

    @property
    def has_unconditional(self) -> bool:
        """Whether the conditioning starts with unconditional rows."""
        return self.prompt_scale > 1

    def is_pair_guided(self, t: float, num_timesteps: int) -> bool:
        """Return whether cross-view guidance is used at timestep `t` of a noise schedule with `num_timesteps`."""
        return self.pair_scale != 1 and t >= self.pair_from * num_timesteps


NO_GUIDANCE = Guidance()


@dataclass(frozen=True)
class GuidedDenoiser(Generic[ConditioningT]):
    """The network with guidance. One forward pass of a larger batch computes all predictions that guidance combines.

    denoise: the network.
    schedule: the noise schedule of the base.
    guidance: the scales of guidance.
    conditioning: one row for each of the B samples. With classifier-free guidance, B unconditional rows come before
        these B rows.
    batch_size: the number of samples, B.
    """

    denoise: Denoise[ConditioningT]
    schedule: NoiseSchedule
    guidance: Guidance
    conditioning: ConditioningT
    batch_size: int

    def __call__(self, latents: torch.Tensor, t: float, t_on_device: torch.Tensor) -> torch.Tensor:
        """Return the guided prediction for noisy latents (B, C, h, w), float32.

        t, t_on_device: the timestep, as a number and as a tensor () on the device of the latents.
        """
        if not self.guidance.is_pair_guided(t, self.schedule.num_timesteps):
            return self._prompt_guided(self._predict(latents, t_on_device))
        *together, alone = self._predict(latents, t_on_device, separate=self.batch_size)
        return self._pair_guided(self._prompt_guided(together), together[-1] - alone, latents, t_on_device)

    def _predict(self, latents: torch.Tensor, t: torch.Tensor, separate: int = 0) -> list[torch.Tensor]:
        """Return the predictions to combine, (B, C, h, w) each, from one forward pass of the network.

        The list contains the unconditional prediction (only for classifier-free guidance), the conditional prediction,
        and the conditional prediction with the halves kept apart (only if `separate` is not 0), in this order.

        separate: the number of samples to predict with self-attention that keeps the CF half and the FA half apart:
            `batch_size` or 0.
        """
        copies = 1 + self.guidance.has_unconditional + (separate > 0)
        conditioning = self._conditioning_of_all if separate else self.conditioning
        repeated = torch.cat([latents] * copies) if copies > 1 else latents
        return list(self.denoise(repeated, t, conditioning, separate).chunk(copies))

    @cached_property
    def _conditioning_of_all(self) -> ConditioningT:
        """The conditioning, with the last B rows repeated for the separate prediction."""
        count = self.batch_size * (1 + self.guidance.has_unconditional)
        return self.conditioning.rows([*range(count), *range(count - self.batch_size, count)])

    def _prompt_guided(self, predictions: Sequence[torch.Tensor]) -> torch.Tensor:
        """Apply classifier-free guidance if there is an unconditional prediction."""
        *unconditional, conditional = predictions
        if not unconditional:
            return conditional
        return unconditional[0] + self.guidance.prompt_scale * (conditional - unconditional[0])

    def _pair_guided(
        self, prediction: torch.Tensor, difference: torch.Tensor, latents: torch.Tensor, t: torch.Tensor
    ) -> torch.Tensor:
        """Change both halves of a prediction by multiples of `difference`, the joint minus the separate prediction.

        With `keeps_spectrum`, the clean latents of the guided view keep their power spectrum.
        """
        view, scale = self.guidance.guided_view, self.guidance.pair_scale
        changed = prediction + (self.guidance.other_scale - 1) * difference
        half, guided_half = half_of(prediction, view), half_of(prediction + (scale - 1) * difference, view)
        if self.guidance.keeps_spectrum:
            noisy, timesteps = half_of(latents, view), t.round().long().expand(len(latents))
            clean = self.schedule.clean_latents(half, noisy, timesteps)
            guided = self.schedule.clean_latents(guided_half, noisy, timesteps)
            guided_half = self.schedule.prediction(match_power(guided, clean), noisy, timesteps)
        return replace_half(changed, guided_half, view)


def match_power(latents: torch.Tensor, reference: torch.Tensor) -> torch.Tensor:
    """Scale the spectrum of latents (B, C, h, w) to the power of `reference` in each ring of frequencies.

    Each channel of each sample is scaled on its own, and keeps its mean.
    """
    rings = _rings(*latents.shape[-2:]).to(latents.device)
    spectrum, wanted = torch.fft.rfft2(latents), torch.fft.rfft2(reference)
    gain = (_ring_power(wanted, rings) / _ring_power(spectrum, rings).clamp(min=_MIN_POWER)).sqrt() @ rings
    gain[..., 0] = 1.0  # the mean
    return torch.fft.irfft2(spectrum * gain.unflatten(-1, spectrum.shape[-2:]), s=latents.shape[-2:])


_MIN_POWER = 1e-12
"""Smallest divisor, for latents without any signal in a ring."""


def _ring_power(spectrum: torch.Tensor, rings: torch.Tensor) -> torch.Tensor:
    """Return the power in each ring, (B, C, number of rings), without that of the mean."""
    power = spectrum.abs().square().flatten(2)
    power[..., 0] = 0.0
    return power @ rings.T


@cache
def _rings(height: int, width: int) -> torch.Tensor:
    """Return whether a frequency of `rfft2` is in a ring, (number of rings, height * (width // 2 + 1)), 0 or 1.

    Ring k contains the frequencies from k to k + 1 cycles per `height` px; the last ring also all higher frequencies.
    """
    radius = torch.hypot(torch.fft.fftfreq(height)[:, None], torch.fft.rfftfreq(width)[None, :])
    index = (radius * height).long().clamp(max=height // 2 - 1).flatten()
    return torch.nn.functional.one_hot(index, height // 2).T.float()
