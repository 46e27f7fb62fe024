"""The denoising loop over a diffusers scheduler, with one random generator per pair."""

from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import torch

from retipair.diffusion.noise import to_device

ConditioningT = TypeVar("ConditioningT")
Denoise = Callable[[torch.Tensor, torch.Tensor, ConditioningT], torch.Tensor]


def timesteps_for_strength(scheduler: Any, steps: int, strength: float) -> torch.Tensor:
    """Set the scheduler to `steps` timesteps, and return the last fraction `strength` of them (1: all).

    Their number is rounded down as in diffusers' image-to-image pipelines; the caller ensures that it is at least 1.
    The timesteps stay on the CPU, where the scheduler reads them without synchronisation.
    """
    scheduler.set_timesteps(steps)
    first = steps - min(int(steps * strength), steps)
    if hasattr(scheduler, "set_begin_index"):
        scheduler.set_begin_index(first * scheduler.order)
    return scheduler.timesteps[first * scheduler.order :]


def starting_noise(
    scheduler: Any, shape: tuple[int, int, int], generators: Sequence[torch.Generator], device: str
) -> torch.Tensor:
    """Return pure noise at the scheduler's scale, (B, C, h, w) float32, row i from generators[i]."""
    noise = torch.stack([torch.randn(shape, generator=rng) for rng in generators])
    return to_device(noise, device) * scheduler.init_noise_sigma


def noised(
    scheduler: Any, latents: torch.Tensor, timesteps: torch.Tensor, generators: Sequence[torch.Generator]
) -> torch.Tensor:
    """Add noise to clean latents (B, C, h, w) at the first of `timesteps`, with the scheduler's `add_noise`."""
    noise = torch.stack([torch.randn(latents.shape[1:], generator=rng) for rng in generators])
    return scheduler.add_noise(latents, to_device(noise, latents.device), timesteps[:1].repeat(len(latents)))


@torch.no_grad()
def sample(
    denoise: Denoise[ConditioningT],
    scheduler: Any,
    latents: torch.Tensor,
    timesteps: torch.Tensor,
    conditioning: ConditioningT,
    generators: Sequence[torch.Generator],
    guidance_scale: float = 1.0,
    constrain: Callable[[torch.Tensor, torch.Tensor], torch.Tensor] = lambda latents, t: latents,
) -> torch.Tensor:
    """Denoise latents (B, C, h, w) through `timesteps`; returns clean latents of the same shape, float32.

    `constrain` may replace a part of the latents before each step.

    With guidance_scale above 1 the conditioning has 2B rows, unconditional ones first, and each step is one forward
    pass of 2B rows (classifier-free guidance, Ho & Salimans 2022, eq. 6).
    """
    for t, t_on_device in zip(timesteps, to_device(timesteps, latents.device), strict=True):
        latents = constrain(latents, t_on_device)
        repeated = torch.cat([latents] * 2) if guidance_scale > 1 else latents
        prediction = denoise(scheduler.scale_model_input(repeated, t), t_on_device, conditioning)
        if guidance_scale > 1:
            unconditional, conditional = prediction.chunk(2)
            prediction = unconditional + guidance_scale * (conditional - unconditional)
        latents = scheduler.step(prediction, t, latents, **_randomness(scheduler, generators)).prev_sample
    return latents


def _randomness(scheduler: Any, generators: Sequence[torch.Generator]) -> dict[str, Any]:
    """Return the `generator` argument of `step`, which all supported schedulers accept."""
    return {"generator": generators[0] if len(generators) == 1 else list(generators)}
