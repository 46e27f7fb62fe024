"""Everything random in training and sampling is a function of a seed and a few numbers that say what it is for."""

import numpy as np
import torch


def generator(*key: int | str) -> torch.Generator:
    """A generator (on the CPU, so that every device draws the same) for a key such as (seed, "noise", sample)."""
    words = [part if isinstance(part, int) else int.from_bytes(part.encode(), "little") for part in key]
    assert all(word >= 0 for word in words), f"negative part in {key}"
    state = np.random.SeedSequence([len(key), *words]).generate_state(1, np.uint64)[0]
    return torch.Generator().manual_seed(int(state) >> 1)


def noise_like(latents: torch.Tensor, *keys: tuple[int | str, ...], offset: float = 0.0) -> torch.Tensor:
    """Standard normal noise for latents (B, C, h, w), row i from keys[i]; float32 on the latents' device.

    offset adds that times one constant a channel and half, drawn apart for the left and the right half: CF and FA have
    opposite brightness, one constant for both would couple them (offset noise: N. Guttenberg, 2023).
    """
    rows = [_noise(latents.shape[1:], generator(*key), offset) for key in keys]
    return to_device(torch.stack(rows), latents.device)


def to_device(tensor: torch.Tensor, device: torch.device | str) -> torch.Tensor:
    """The tensor on the device. A GPU takes one of the CPU's from pinned memory, for which nobody waits."""
    if torch.device(device).type != "cuda" or tensor.device.type == "cuda":
        return tensor.to(device)
    return tensor.pin_memory().to(device, non_blocking=True)


def _noise(shape: torch.Size, source: torch.Generator, offset: float) -> torch.Tensor:
    noise = torch.randn(shape, generator=source)
    if offset:
        constants = offset * torch.randn((shape[0], 1, 2), generator=source)  # (C, 1, 2 halves)
        noise = noise + constants.repeat_interleave(shape[-1] // 2, dim=-1)
    return noise


def timesteps_for(count: int, device: torch.device, *keys: tuple[int | str, ...]) -> torch.Tensor:
    """Uniform timesteps in [0, count), one a key: (B,) int64."""
    drawn = [torch.randint(count, (1,), generator=generator(*key)) for key in keys]
    return to_device(torch.cat(drawn), device)


def clean_halves(fraction: float, device: torch.device, *keys: tuple[int | str, ...]) -> torch.Tensor:
    """Which halves stay clean, (B, 2) bool: in that fraction of rows one of both, left or right evenly, else none."""
    drawn = torch.cat([torch.rand(1, generator=generator(*key)) for key in keys])
    left = drawn < fraction / 2
    return to_device(torch.stack([left, ~left & (drawn < fraction)], dim=1), device)


def with_clean_halves(noisy: torch.Tensor, latents: torch.Tensor, clean: torch.Tensor) -> torch.Tensor:
    """noisy with latents in place of its clean halves; both (B, C, h, w), clean (B, 2) bool."""
    where = clean.repeat_interleave(latents.shape[-1] // 2, dim=1)[:, None, None]  # (B, 1, 1, w)
    return torch.where(where, latents, noisy)
