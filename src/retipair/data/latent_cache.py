"""Cache of the latents of all variants of all pairs: encoded once, then sampled by (seed, sample number)."""

import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import numpy as np
import torch

from retipair.runtime.atomic_io import read_json, write_json
from retipair.runtime.errors import UserError

Encode = Callable[[np.ndarray], tuple[np.ndarray, np.ndarray]]
"""Joint image (H, W, 3) uint8 -> mean and std of its latents, (C, h, w) each."""

_PARTS = ("mean", "std")
_PROGRESS, _DONE = "begun.json", "done.json"
_SAVE_EVERY = 64
"""Joint images between two writes of the progress file: some minutes of SDXL's autoencoder on a CPU."""
STORAGE_DTYPE = np.float16
"""Takes half the memory of float32; the rounding error, 0.05 %, is far smaller than the autoencoder's std."""
MAX_GPU_BYTES = 2**28
"""Maximum bytes of latents in GPU memory: 250 pairs in eight variants at 1024x512. Larger caches are read from disk
when sampled."""


@dataclass(frozen=True)
class LatentCache:
    """Mean and std of the latents, (pairs, variants, C, h, w) float16 each, on the device or memory-mapped."""

    mean: torch.Tensor
    std: torch.Tensor

    @property
    def pairs(self) -> int:
        return self.mean.shape[0]

    @property
    def variants(self) -> int:
        return self.mean.shape[1]

    @property
    def bytes(self) -> int:
        return self.mean.nbytes + self.std.nbytes

    def on(self, device: str) -> "LatentCache":
        """Return the cache in GPU memory, if it has at most MAX_GPU_BYTES bytes; else return it unchanged."""
        if not device.startswith("cuda") or self.bytes > MAX_GPU_BYTES:
            return self
        return LatentCache(self.mean.to(device), self.std.to(device))

    def moments(self, pairs: Sequence[int], variants: Sequence[int]) -> tuple[torch.Tensor, torch.Tensor]:
        """Return mean and std of the given variants of pairs, (B, C, h, w) float16, on the cache's device."""
        indices = [*zip(pairs, variants, strict=True)]  # indexing with lists would synchronise the GPU
        return torch.stack([self.mean[index] for index in indices]), torch.stack([self.std[index] for index in indices])


def open_or_build(
    folder: Path,
    shape: tuple[int, int, int, int, int],
    joints: Callable[[int], Iterator[np.ndarray]],
    encoder: Callable[[], Encode],
) -> LatentCache:
    """Open the cache in `folder`; build it if it is missing, or resume an interrupted build.

    folder: its name must identify everything that the content depends on; no other process may use it.
    shape: (pairs, variants, C, h, w). joints: joints(i) yields the joint images from the i-th on, (H, W, 3) uint8,
    ordered by pair and then by variant. encoder: returns the encoding function; called only if needed.
    """
    if (existing := open_cache(folder, shape)) is not None:
        return existing
    try:
        _build(folder, shape, joints, encoder())
    except UserError:  # once the input is corrected, another folder is used; this build is never resumed
        for name in (_PROGRESS, *(f"{part}.npy" for part in _PARTS)):
            (folder / name).unlink(missing_ok=True)
        raise
    built = open_cache(folder, shape)
    assert built is not None
    return built


def open_cache(folder: Path, shape: tuple[int, ...]) -> LatentCache | None:
    """Open the cache in `folder`; return None if it is missing or incomplete."""
    if not (folder / _DONE).is_file():
        return None
    try:
        parts = [np.load(folder / f"{name}.npy", mmap_mode="c") for name in _PARTS]
        if all(part.shape == shape and part.dtype == STORAGE_DTYPE for part in parts):
            return LatentCache(*map(torch.from_numpy, parts))
    except (OSError, ValueError):  # a truncated or deleted file
        pass
    return None


def _build(folder: Path, shape: tuple[int, ...], joints: Callable[[int], Iterator[np.ndarray]], encode: Encode) -> None:
    """Encode all joint images into the cache. Progress is written after the latents are on disk, and done.json last."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / _DONE).unlink(missing_ok=True)
    encoded, arrays = _resume(folder, shape) or (0, [_allocate(folder / f"{name}.npy", shape) for name in _PARTS])

    def save_progress(amount: int) -> None:
        for array in arrays:
            array.flush()
        write_json(folder / _PROGRESS, {"encoded": amount})

    for number, joint in enumerate(joints(encoded), start=encoded):
        for array, value in zip(arrays, encode(joint), strict=True):
            array[divmod(number, shape[1])] = value
        if (number + 1) % _SAVE_EVERY == 0:
            save_progress(number + 1)
    save_progress(shape[0] * shape[1])
    write_json(folder / _DONE, {"shape": shape})
    (folder / _PROGRESS).unlink()


def _resume(folder: Path, shape: tuple[int, ...]) -> tuple[int, list[np.memmap]] | None:
    """Return (number of encoded images, their arrays) of an interrupted build; None if there is none."""
    try:
        encoded = read_json(folder / _PROGRESS)["encoded"]
        arrays = [np.lib.format.open_memmap(folder / f"{name}.npy", "r+") for name in _PARTS]
    except (UserError, OSError, ValueError, KeyError):
        return None
    fits = all(array.shape == shape and array.dtype == STORAGE_DTYPE for array in arrays)
    return (encoded, arrays) if fits and encoded in range(shape[0] * shape[1] + 1) else None


def _allocate(path: Path, shape: tuple[int, ...]) -> np.memmap:
    """Create a preallocated memmap, so that a full disk raises here and not as SIGBUS on write."""
    array = np.lib.format.open_memmap(path, "w+", STORAGE_DTYPE, shape)
    if hasattr(os, "posix_fallocate"):
        with path.open("r+b") as stream:
            os.posix_fallocate(stream.fileno(), 0, path.stat().st_size)
    return array


def draw(seed: int, sample: int, pairs: int, variants: int) -> tuple[int, int]:
    """Return (pair, variant) of sample number `sample` of an endless stream; each epoch shuffles all pairs."""
    epoch, position = divmod(sample, pairs)
    variant = np.random.default_rng([seed, sample, 1]).integers(variants)
    return int(_order(seed, epoch, pairs)[position]), int(variant)


@lru_cache(maxsize=4)
def _order(seed: int, epoch: int, pairs: int) -> np.ndarray:
    return np.random.default_rng([seed, epoch]).permutation(pairs)
