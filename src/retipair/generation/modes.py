"""Generation modes. A mode chooses the latents from which denoising starts, and may constrain them at each step.

A mode consists of two parts. Its `GenerationMode` in `MODES` tells the command which inputs to read. Its `Start`
computes the initial latents of a batch for the sampler. CONTRIBUTING.md says how to add a mode.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal, Protocol

import numpy as np
import torch

from retipair.config import GenerateConfig
from retipair.diffusion.guidance import Guidance
from retipair.diffusion.halves import ViewName, replace_half
from retipair.diffusion.sampling import noise_of, noised, starting_noise, timesteps_for_strength
from retipair.diffusion.schedule import NoiseSchedule
from retipair.models.vae import Autoencoder, encode_sample

ModeName = Literal["noise", "from_data", "cf2fa", "fa2cf"]


@dataclass(frozen=True)
class GenerationMode:
    """The name and the inputs of a mode.

    varies_pairs: whether the mode starts from training pairs, to which it adds noise as `--strength` says.
    given: the view that `--data` contains, from which the mode draws the other view; None in other modes.
    pair_scale: the default of `--pair_guidance` (docs/guidance.md, docs/one_view.md).
    """

    name: ModeName
    varies_pairs: bool = False
    given: ViewName | None = None
    pair_scale: float = 12.0

    @property
    def guided_view(self) -> ViewName:
        """The view that cross-view guidance changes: the CF, or the view that is drawn from the other."""
        return "fa" if self.given == "cf" else "cf"


MODES = {
    mode.name: mode
    for mode in (
        GenerationMode("noise"),
        GenerationMode("from_data", varies_pairs=True),
        GenerationMode("cf2fa", given="cf", pair_scale=2.0),
        GenerationMode("fa2cf", given="fa", pair_scale=2.0),
    )
}


def guidance_of(config: GenerateConfig) -> Guidance:
    """Return the scales of guidance: those of the settings, else the defaults of the mode."""
    mode = MODES[config.mode]
    scale = mode.pair_scale if config.pair_guidance is None else config.pair_guidance
    start = Guidance.pair_from if config.pair_guidance_from is None else config.pair_guidance_from
    guidance = Guidance(config.guidance_scale, scale, start, mode.guided_view)
    # The given view replaces its half in every step, so its prediction has no effect.
    return replace(guidance, other_scale=1.0, keeps_spectrum=False) if mode.given else guidance


@dataclass(frozen=True)
class SamplingBatch:
    """What a mode needs to know about one batch of pairs.

    scheduler: the diffusers scheduler of the sampler.
    steps: the number of denoising steps from pure noise.
    shape: the shape (C, h, w) of the latents of one pair.
    generators: the random generators, one for each pair.
    """

    scheduler: Any
    steps: int
    shape: tuple[int, int, int]
    generators: Sequence[torch.Generator]
    device: str


class Start(Protocol):
    """The interface through which a mode chooses the initial latents of a batch, and may constrain later latents."""

    def begin(self, batch: SamplingBatch) -> tuple[torch.Tensor, torch.Tensor]:
        """Set the timesteps of the scheduler; return (latents, timesteps).

        latents: the initial latents, (B, *shape) float32.
        timesteps: the timesteps at which to denoise.
        """

    def constrain(self, latents: torch.Tensor, t: torch.Tensor | None) -> torch.Tensor:
        """Return the input of the network at timestep `t`, or the final latents (`t` is None), as this mode requires.

        latents: (B, C, h, w); by default they are not changed.
        """
        return latents

    @property
    def repeats(self) -> int:
        """How often each denoising step is taken."""
        return 1


@dataclass(frozen=True)
class FromNoise(Start):
    """Start from pure noise: each generated pair shows a new eye."""

    def begin(self, batch: SamplingBatch) -> tuple[torch.Tensor, torch.Tensor]:
        timesteps = timesteps_for_strength(batch.scheduler, batch.steps, 1.0)
        return starting_noise(batch.scheduler, batch.shape, batch.generators, batch.device), timesteps


@dataclass(frozen=True)
class FromImages(Start):
    """Start from existing pairs, to generate variations of them.

    images: the joint images of the pairs, (B, H, W, 3) uint8. They are encoded to latents, and noise is added.
    strength: the amount of noise, in (0, 1]; 1 is the amount of the first timestep of denoising from pure noise.
    """

    vae: Autoencoder
    images: np.ndarray
    strength: float

    def begin(self, batch: SamplingBatch) -> tuple[torch.Tensor, torch.Tensor]:
        timesteps = timesteps_for_strength(batch.scheduler, batch.steps, self.strength)
        clean = [encode_sample(self.vae, image, rng) for image, rng in zip(self.images, batch.generators, strict=True)]
        return noised(batch.scheduler, torch.cat(clean), timesteps, batch.generators), timesteps


@dataclass(frozen=True)
class FromView(FromNoise):
    """Draw one view from the other: start from noise, but give the network one half without noise at every step.

    The network learns this from a fraction of its training samples (`train --half_clean_fraction`).

    latents: the clean latents of the given half, (B, C, h, w / 2).
    view: the given view.
    """

    latents: torch.Tensor
    view: ViewName

    def constrain(self, latents: torch.Tensor, t: torch.Tensor | None) -> torch.Tensor:
        return replace_half(latents, self.latents, self.view)


@dataclass(frozen=True)
class FromNoisedView(FromView):
    """As `FromView`, for networks that were not trained with half-clean samples.

    The given half gets the noise of each step, and each step is repeated, so that both halves come to agree (RePaint,
    Lugmayr et al. 2022, arXiv 2201.09865).

    schedule: the noise schedule of the base.
    generators: the random generators, one for each pair.
    """

    schedule: NoiseSchedule
    generators: Sequence[torch.Generator]

    def constrain(self, latents: torch.Tensor, t: torch.Tensor | None) -> torch.Tensor:
        if t is None:
            return super().constrain(latents, t)
        noise = noise_of(self.latents.shape[1:], self.generators, latents.device)
        half = self.schedule.add_noise(self.latents, noise, t.round().long().expand(len(latents)))
        return replace_half(latents, half, self.view)

    @property
    def repeats(self) -> int:
        return REPEATS


REPEATS = 4
"""How often each step is taken with a given view that gets noise."""
