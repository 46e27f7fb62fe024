"""The denoising loop over a diffusers scheduler, with one random generator per pair."""

from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import torch

from retipair.diffusion.noise import to_device

Hearing = TypeVar("Hearing")
Denoise = Callable[[torch.Tensor, torch.Tensor, Hearing], torch.Tensor]


def timesteps_for_strength(scheduler: Any, steps: int, strength: float) -> torch.Tensor:
    """The last `strength` share of `steps` timesteps, all of them at 1; sets the scheduler up for them.

    The share is rounded down as in the library's image-to-image pipelines; the caller sees to it that one is left. On
    the CPU, where the scheduler reads them: from a GPU it would wait for each.
    """
    scheduler.set_timesteps(steps)
    first = steps - min(int(steps * strength), steps)
    if hasattr(scheduler, "set_begin_index"):
        scheduler.set_begin_index(first * scheduler.order)
    return scheduler.timesteps[first * scheduler.order :]


def starting_noise(
    scheduler: Any, shape: tuple[int, int, int], generators: Sequence[torch.Generator], device: str
) -> torch.Tensor:
    """Pure noise at the scheduler's scale, (B, C, h, w) float32, row i from generators[i]."""
    noise = torch.stack([torch.randn(shape, generator=source) for source in generators])
    return to_device(noise, device) * scheduler.init_noise_sigma


def noised(
    scheduler: Any, latents: torch.Tensor, timesteps: torch.Tensor, generators: Sequence[torch.Generator]
) -> torch.Tensor:
    """Clean latents (B, C, h, w) with the noise of the first of `timesteps`, in the scheduler's own way of noising."""
    noise = torch.stack([torch.randn(latents.shape[1:], generator=source) for source in generators])
    return scheduler.add_noise(latents, to_device(noise, latents.device), timesteps[:1].repeat(len(latents)))


@torch.no_grad()
def sample(
    denoise: Denoise[Hearing],
    scheduler: Any,
    latents: torch.Tensor,
    timesteps: torch.Tensor,
    conditioning: Hearing,
    generators: Sequence[torch.Generator],
    guidance_scale: float = 1.0,
    constrain: Callable[[torch.Tensor, torch.Tensor], torch.Tensor] = lambda latents, t: latents,
) -> torch.Tensor:
    """Denoise latents (B, C, h, w) through `timesteps`; returns clean latents of the same shape, float32.

    `constrain` may replace a part of the latents of each timestep before the network sees them.

    With guidance_scale above 1 the conditioning has 2B rows, those without a prompt first, and each step is one
    forward of 2B (classifier-free guidance, Ho & Salimans 2022, eq. 6).
    """
    for t, t_there in zip(timesteps, to_device(timesteps, latents.device), strict=True):
        latents = constrain(latents, t_there)
        repeated = torch.cat([latents] * 2) if guidance_scale > 1 else latents
        prediction = denoise(scheduler.scale_model_input(repeated, t), t_there, conditioning)
        if guidance_scale > 1:
            without, with_prompt = prediction.chunk(2)
            prediction = without + guidance_scale * (with_prompt - without)
        latents = scheduler.step(prediction, t, latents, **_randomness(scheduler, generators)).prev_sample
    return latents


def _randomness(scheduler: Any, generators: Sequence[torch.Generator]) -> dict[str, Any]:
    """Every supported scheduler takes `generator`; the deterministic ones leave it alone."""
    return {"generator": generators[0] if len(generators) == 1 else list(generators)}
