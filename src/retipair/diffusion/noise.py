"""Random numbers for training and sampling, each a function of a key: the seed, its purpose and its index."""

import numpy as np
import torch

from retipair.diffusion.halves import repeat_per_half


def generator(*key: int | str) -> torch.Generator:
    """Return a generator for a key such as (seed, "noise", sample), on the CPU: numbers do not depend on the device."""
    words = [part if isinstance(part, int) else int.from_bytes(part.encode(), "little") for part in key]
    assert all(word >= 0 for word in words), f"negative part in {key}"
    state = np.random.SeedSequence([len(key), *words]).generate_state(1, np.uint64)[0]
    return torch.Generator().manual_seed(int(state) >> 1)


def noise_like(latents: torch.Tensor, *keys: tuple[int | str, ...], offset: float = 0.0) -> torch.Tensor:
    """Return standard normal noise for latents (B, C, h, w), row i from keys[i]; float32 on the latents' device.

    `offset` scales a random constant added to each channel and half (offset noise: N. Guttenberg, 2023). The halves
    have separate constants, because a shared one would couple CF and FA, whose brightness is opposite.
    """
    rows = [_noise(latents.shape[1:], generator(*key), offset) for key in keys]
    return to_device(torch.stack(rows), latents.device)


def to_device(tensor: torch.Tensor, device: torch.device | str) -> torch.Tensor:
    """Copy to `device`; CPU-to-CUDA copies are asynchronous (pinned memory)."""
    if torch.device(device).type != "cuda" or tensor.device.type == "cuda":
        return tensor.to(device)
    return tensor.pin_memory().to(device, non_blocking=True)


def _noise(shape: torch.Size, rng: torch.Generator, offset: float) -> torch.Tensor:
    noise = torch.randn(shape, generator=rng)
    if offset:
        constants = offset * torch.randn((shape[0], 1, 2), generator=rng)  # (C, 1, 2 halves)
        noise = noise + repeat_per_half(constants, shape[-1])
    return noise


def timesteps_for(count: int, device: torch.device, *keys: tuple[int | str, ...]) -> torch.Tensor:
    """Return uniform timesteps in [0, count), one per key: (B,) int64."""
    timesteps = [torch.randint(count, (1,), generator=generator(*key)) for key in keys]
    return to_device(torch.cat(timesteps), device)


def clean_halves(fraction: float, device: torch.device, *keys: tuple[int | str, ...]) -> torch.Tensor:
    """Choose the halves that stay clean, (B, 2) bool: in `fraction` of the rows, CF or FA with equal probability."""
    uniform = torch.cat([torch.rand(1, generator=generator(*key)) for key in keys])
    left = uniform < fraction / 2
    return to_device(torch.stack([left, ~left & (uniform < fraction)], dim=1), device)


def with_clean_halves(noisy: torch.Tensor, latents: torch.Tensor, clean: torch.Tensor) -> torch.Tensor:
    """Return `noisy` with `latents` in its clean halves; both (B, C, h, w), clean (B, 2) bool."""
    mask = repeat_per_half(clean, latents.shape[-1])[:, None, None]  # (B, 1, 1, w)
    return torch.where(mask, latents, noisy)
