"""Generation modes: the initial latents of denoising, and constraints on the latents at each step.

A mode has two parts: a `GenerationMode` in `MODES`, which describes its inputs to the command, and a `Start`, which the
sampler gets for each batch. Add one of each for a new mode.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal, Protocol

import numpy as np
import torch

from retipair.diffusion.sampling import noised, starting_noise, timesteps_for_strength
from retipair.models.vae import Autoencoder, encode_sample

ModeName = Literal["noise", "from_data"]


@dataclass(frozen=True)
class GenerationMode:
    """The inputs of a mode. varies_pairs: it starts from training pairs, noised to `--strength`."""

    name: ModeName
    varies_pairs: bool


MODES = {mode.name: mode for mode in (GenerationMode("noise", False), GenerationMode("from_data", True))}


@dataclass(frozen=True)
class SamplingBatch:
    """What a mode needs to know about one batch. shape: (C, h, w) of the latents; one random generator per pair."""

    scheduler: Any
    steps: int
    shape: tuple[int, int, int]
    generators: Sequence[torch.Generator]
    device: str


class Start(Protocol):
    """The initial latents of one batch, and constraints on them."""

    def begin(self, batch: SamplingBatch) -> tuple[torch.Tensor, torch.Tensor]:
        """Set the scheduler's timesteps; return the initial latents, (B, *shape) float32, and timesteps to denoise."""

    def constrain(self, latents: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
        """Return the latents (B, C, h, w) of timestep `t` with this mode's constraint; default: none."""
        return latents


@dataclass(frozen=True)
class FromNoise(Start):
    """Start from pure noise: a new eye."""

    def begin(self, batch: SamplingBatch) -> tuple[torch.Tensor, torch.Tensor]:
        timesteps = timesteps_for_strength(batch.scheduler, batch.steps, 1.0)
        return starting_noise(batch.scheduler, batch.shape, batch.generators, batch.device), timesteps


@dataclass(frozen=True)
class FromImages(Start):
    """Start from joint images (B, H, W, 3) uint8, encoded and noised to `strength` in (0, 1]: variations of them."""

    vae: Autoencoder
    images: np.ndarray
    strength: float

    def begin(self, batch: SamplingBatch) -> tuple[torch.Tensor, torch.Tensor]:
        timesteps = timesteps_for_strength(batch.scheduler, batch.steps, self.strength)
        clean = [encode_sample(self.vae, image, rng) for image, rng in zip(self.images, batch.generators, strict=True)]
        return noised(batch.scheduler, torch.cat(clean), timesteps, batch.generators), timesteps
