"""Generation modes: what denoising starts from, and what holds the latents on the way.

A mode is two values. `GenerationMode` says what a command needs for it; `MODES` has one for each `--mode`. A `Start` is
what the sampler is handed for one batch. A new mode is one of each.
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
    """What a mode needs. varies_pairs: it starts from training pairs, noised to `--strength`."""

    name: ModeName
    varies_pairs: bool


MODES = {mode.name: mode for mode in (GenerationMode("noise", False), GenerationMode("from_data", True))}


class Start(Protocol):
    """Where one batch starts."""

    def begin(
        self,
        scheduler: Any,
        steps: int,
        shape: tuple[int, int, int],
        generators: Sequence[torch.Generator],
        device: str,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Return the first latents, (B, *shape) float32, and the timesteps to go through; sets the scheduler up."""

    def constrain(self, latents: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
        """Return the latents (B, C, h, w) of timestep `t` with what this mode prescribes put in place."""


@dataclass(frozen=True)
class FromNoise:
    """Start from pure noise: a new eye."""

    def begin(
        self,
        scheduler: Any,
        steps: int,
        shape: tuple[int, int, int],
        generators: Sequence[torch.Generator],
        device: str,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        timesteps = timesteps_for_strength(scheduler, steps, 1.0)
        return starting_noise(scheduler, shape, generators, device), timesteps

    def constrain(self, latents: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
        return latents


@dataclass(frozen=True)
class FromImages:
    """Start from joint images (B, H, W, 3) uint8, encoded and noised to `strength` in (0, 1]: variations of them."""

    vae: Autoencoder
    images: np.ndarray
    strength: float

    def begin(
        self,
        scheduler: Any,
        steps: int,
        shape: tuple[int, int, int],
        generators: Sequence[torch.Generator],
        device: str,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        timesteps = timesteps_for_strength(scheduler, steps, self.strength)
        clean = [encode_sample(self.vae, *one) for one in zip(self.images, generators, strict=True)]
        return noised(scheduler, torch.cat(clean), timesteps, generators), timesteps

    def constrain(self, latents: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
        return latents
