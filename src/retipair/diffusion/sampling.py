"""Generate latents by denoising with a diffusers scheduler. Each sample of a batch has its own random generator."""

from collections.abc import Callable, Sequence
from typing import Any

import torch

from retipair.diffusion.noise import to_device

Predict = Callable[[torch.Tensor, float, torch.Tensor], torch.Tensor]
"""A function (latents, timestep, timestep as a tensor on the device) -> prediction."""
Constrain = Callable[[torch.Tensor, torch.Tensor | None], torch.Tensor]
"""A function (latents, timestep as a tensor on the device, or None for the final latents) -> latents."""


def timesteps_for_strength(scheduler: Any, steps: int, strength: float) -> torch.Tensor:
    """Set the scheduler to `steps` timesteps, and return those for a strength in (0, 1]; a strength of 1 returns all.

    As in diffusers' image-to-image pipelines, these are the last `steps * strength` timesteps, rounded down. The caller
    ensures that there is at least one. The timesteps stay on the CPU, because the scheduler reads their values there.
    """
    scheduler.set_timesteps(steps)
    first = steps - min(int(steps * strength), steps)
    if hasattr(scheduler, "set_begin_index"):
        scheduler.set_begin_index(first * scheduler.order)
    return scheduler.timesteps[first * scheduler.order :]


def starting_noise(
    scheduler: Any, shape: tuple[int, int, int], generators: Sequence[torch.Generator], device: str
) -> torch.Tensor:
    """Return pure noise with the standard deviation at which the scheduler starts, (B, C, h, w) float32.

    shape: the shape (C, h, w) of one sample.
    generators: the random generators, one for each sample.
    """
    return noise_of(shape, generators, device) * scheduler.init_noise_sigma


def noise_of(shape: Sequence[int], generators: Sequence[torch.Generator], device: torch.device | str) -> torch.Tensor:
    """Return standard normal noise, (B, *shape) float32, drawn on the CPU with one random generator for each sample."""
    return to_device(torch.stack([torch.randn(*shape, generator=rng) for rng in generators]), device)


def noised(
    scheduler: Any, latents: torch.Tensor, timesteps: torch.Tensor, generators: Sequence[torch.Generator]
) -> torch.Tensor:
    """Add noise to clean latents (B, C, h, w), as strong as at timesteps[0]. generators: one for each sample."""
    noise = noise_of(latents.shape[1:], generators, latents.device)
    return scheduler.add_noise(latents, noise, timesteps[:1].repeat(len(latents)))


@torch.no_grad()
def sample(
    predict: Predict,
    scheduler: Any,
    latents: torch.Tensor,
    timesteps: torch.Tensor,
    generators: Sequence[torch.Generator],
    constrain: Constrain = lambda latents, t: latents,
    repeats: int = 1,
) -> torch.Tensor:
    """Denoise noisy latents (B, C, h, w) and return clean latents of the same shape, float32.

    predict: the network, usually a `GuidedDenoiser`.
    scheduler: a diffusers scheduler, set by `timesteps_for_strength`.
    timesteps: the timesteps of the denoising steps.
    generators: the random generators, one for each sample.
    constrain: a function that may change the input of the network and the returned latents.
    repeats: how often each step is taken. Before a step is repeated, noise is added back (RePaint, Lugmayr et al. 2022,
        arXiv 2201.09865, algorithm 1). Above 1, the scheduler must not use results of earlier
        steps; DDPM and DDIM do not.
    """
    following = [*timesteps[1:], None]
    for t, after, t_on_device in zip(timesteps, following, to_device(timesteps, latents.device), strict=True):
        for remaining in reversed(range(repeats)):
            model_input = constrain(scheduler.scale_model_input(latents, t), t_on_device)
            prediction = predict(model_input, float(t), t_on_device)
            latents = scheduler.step(prediction, t, latents, **_randomness(scheduler, generators)).prev_sample
            if remaining:
                latents = _with_noise_back(scheduler, latents, t, after, generators)
    return constrain(latents, None)


def _with_noise_back(
    scheduler: Any,
    latents: torch.Tensor,
    t: torch.Tensor,
    after: torch.Tensor | None,
    generators: Sequence[torch.Generator],
) -> torch.Tensor:
    """Add noise to latents (B, C, h, w), so that they are as noisy as at timestep `t` again.

    after: the next timestep; the latents are now as noisy as at this timestep. None if they have no noise.
    """
    kept = scheduler.alphas_cumprod[t] / (1.0 if after is None else scheduler.alphas_cumprod[after])
    return kept.sqrt() * latents + (1 - kept).sqrt() * noise_of(latents.shape[1:], generators, latents.device)


def _randomness(scheduler: Any, generators: Sequence[torch.Generator]) -> dict[str, Any]:
    """Return the keyword argument of the scheduler's `step` that passes the random generators."""
    return {"generator": generators[0] if len(generators) == 1 else list(generators)}
