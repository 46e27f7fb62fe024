"""Draw reproducible random numbers for training and sampling.

Each draw has a key, such as (seed, "noise", index of the sample), and depends only on this key.
"""

import numpy as np
import torch

from retipair.diffusion.halves import repeat_per_half


def generator(*key: int | str) -> torch.Generator:
    """Return a random generator that is seeded with a key, such as (seed, "noise", index of the sample).

    The generator is on the CPU, so that the random numbers do not depend on the device.
    """
    words = [part if isinstance(part, int) else int.from_bytes(part.encode(), "little") for part in key]
    assert all(word >= 0 for word in words), f"negative part in {key}"
    state = np.random.SeedSequence([len(key), *words]).generate_state(1, np.uint64)[0]
    return torch.Generator().manual_seed(int(state) >> 1)


def noise_like(latents: torch.Tensor, *keys: tuple[int | str, ...], offset: float = 0.0) -> torch.Tensor:
    """Return standard normal noise, float32, with the shape (B, C, h, w) and the device of `latents`.

    keys: the keys of the random generators, one for each sample.
    offset: the standard deviation of a random constant that is added to each channel of each half (offset noise,
    N. Guttenberg, 2023). CF and FA have separate constants, so that their brightness varies independently.
    """
    rows = [_noise(latents.shape[1:], generator(*key), offset) for key in keys]
    return to_device(torch.stack(rows), latents.device)


def to_device(tensor: torch.Tensor, device: torch.device | str) -> torch.Tensor:
    """Copy a tensor to `device`. A copy from CPU to CUDA is asynchronous, with pinned memory."""
    if torch.device(device).type != "cuda" or tensor.device.type == "cuda":
        return tensor.to(device)
    return tensor.pin_memory().to(device, non_blocking=True)


def _noise(shape: torch.Size, rng: torch.Generator, offset: float) -> torch.Tensor:
    noise = torch.randn(shape, generator=rng)
    if offset:
        constants = offset * torch.randn((shape[0], 1, 2), generator=rng)  # (channels, 1, halves)
        noise = noise + repeat_per_half(constants, shape[-1])
    return noise


def timesteps_for(count: int, device: torch.device, *keys: tuple[int | str, ...]) -> torch.Tensor:
    """Return one uniformly distributed timestep in [0, count) for each key, (B,) int64."""
    timesteps = [torch.randint(count, (1,), generator=generator(*key)) for key in keys]
    return to_device(torch.cat(timesteps), device)


def clean_halves(fraction: float, device: torch.device, *keys: tuple[int | str, ...]) -> torch.Tensor:
    """Choose at random which halves of the latents get no noise, (B, 2) bool with the columns CF and FA.

    fraction: the probability that one half of a sample gets no noise. CF and FA are equally likely to be this half.
    keys: the keys of the random generators, one for each sample.
    """
    uniform = torch.cat([torch.rand(1, generator=generator(*key)) for key in keys])
    left = uniform < fraction / 2
    return to_device(torch.stack([left, ~left & (uniform < fraction)], dim=1), device)


def with_clean_halves(noisy: torch.Tensor, latents: torch.Tensor, clean: torch.Tensor) -> torch.Tensor:
    """Return the noisy latents (B, C, h, w), with some halves replaced by the clean latents (B, C, h, w).

    clean: whether to replace the CF half and the FA half of each sample, (B, 2) bool.
    """
    mask = repeat_per_half(clean, latents.shape[-1])[:, None, None]  # (B, 1, 1, w)
    return torch.where(mask, latents, noisy)
