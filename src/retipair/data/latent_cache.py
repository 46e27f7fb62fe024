"""Cache the autoencoder's latents of every augmented variant of every pair, so that each variant is encoded only once.

Training then draws a pair and a variant for each sample. This draw depends only on the seed and the sample number.
"""

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
"""Function that maps a joint image (H, W, 3) uint8 to the mean and std of each of its latent values, (C, h, w) each."""

_PARTS = ("mean", "std")
_PROGRESS, _DONE = "begun.json", "done.json"
_SAVE_EVERY = 64
"""Number of joint images between two writes of the progress file.

SDXL's autoencoder encodes this number in some minutes on a CPU, which is the most work that a kill loses.
"""
STORAGE_DTYPE = np.float16
"""float16 takes half the memory of float32. Its rounding error is at most 0.05 % for values above 6.2e-5."""
MAX_GPU_BYTES = 2**28
"""Maximum size of a cache in GPU memory, enough for 250 pairs in eight variants with joint images of 1024x512 px.

The latents of larger caches are read from disk for each sample.
"""


@dataclass(frozen=True)
class LatentCache:
    """The autoencoder's posterior for each variant of each pair, in GPU memory or memory-mapped.

    mean: the mean of each latent value, (pairs, variants, C, h, w) float16.
    std: the standard deviation of each latent value, (pairs, variants, C, h, w) float16.
    """

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
        """Return a copy of the cache in the memory of `device`, to sample it faster.

        The cache is returned unchanged if `device` is not a CUDA GPU or if the cache exceeds MAX_GPU_BYTES.
        """
        if not device.startswith("cuda") or self.bytes > MAX_GPU_BYTES:
            return self
        return LatentCache(self.mean.to(device), self.std.to(device))

    def moments(self, pairs: Sequence[int], variants: Sequence[int]) -> tuple[torch.Tensor, torch.Tensor]:
        """Return the mean and the std of a batch of latents, (B, C, h, w) float16 each, on the cache's device.

        pairs, variants: the index of the pair and the index of the variant, for each of the B items.
        """
        # Items are indexed one by one, because indexing with a list would make the CPU wait for the GPU.
        indices = [*zip(pairs, variants, strict=True)]
        return torch.stack([self.mean[index] for index in indices]), torch.stack([self.std[index] for index in indices])


def open_or_build(
    folder: Path,
    shape: tuple[int, int, int, int, int],
    joints: Callable[[int], Iterator[np.ndarray]],
    encoder: Callable[[], Encode],
) -> LatentCache:
    """Open the cache in `folder`; build it if it is missing, or resume an interrupted build.

    folder: a folder that no other process uses. Its name must identify everything on which the latents depend,
    because an existing cache of the right shape is used as it is.
    shape: (pairs, variants, C, h, w).
    joints: joints(i) yields the joint images (H, W, 3) uint8 from index i on, sorted by pair and then by variant.
    encoder: a function that loads and returns the encoding function; it is called only if the cache is not complete.
    """
    if (existing := open_cache(folder, shape)) is not None:
        return existing
    try:
        _build(folder, shape, joints, encoder())
    except UserError:  # the user will correct the input, which changes the name of the folder: delete this build
        for name in (_PROGRESS, *(f"{part}.npy" for part in _PARTS)):
            (folder / name).unlink(missing_ok=True)
        raise
    built = open_cache(folder, shape)
    assert built is not None
    return built


def open_cache(folder: Path, shape: tuple[int, ...]) -> LatentCache | None:
    """Open the cache in `folder`; return None if it is missing, incomplete or not of this shape."""
    if not (folder / _DONE).is_file():
        return None
    try:
        parts = [np.load(folder / f"{name}.npy", mmap_mode="c") for name in _PARTS]
        if all(part.shape == shape and part.dtype == STORAGE_DTYPE for part in parts):
            return LatentCache(*map(torch.from_numpy, parts))
    except (OSError, ValueError):  # a file was truncated or deleted
        pass
    return None


def _build(folder: Path, shape: tuple[int, ...], joints: Callable[[int], Iterator[np.ndarray]], encode: Encode) -> None:
    """Encode all joint images into the files of the cache, from the point where an interrupted build ended.

    The progress file is written only after the latents that it counts are on disk, and done.json is written last.
    """
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
    """Return (number of encoded joint images, arrays of mean and std) of an interrupted build, or None if none fits."""
    try:
        encoded = read_json(folder / _PROGRESS)["encoded"]
        arrays = [np.lib.format.open_memmap(folder / f"{name}.npy", "r+") for name in _PARTS]
    except (UserError, OSError, ValueError, KeyError):
        return None
    fits = all(array.shape == shape and array.dtype == STORAGE_DTYPE for array in arrays)
    return (encoded, arrays) if fits and encoded in range(shape[0] * shape[1] + 1) else None


def _allocate(path: Path, shape: tuple[int, ...]) -> np.memmap:
    """Create a memory-mapped array with its disk space allocated.

    Thus a full disk raises OSError here; otherwise, a later write to the array would end the process by SIGBUS.
    """
    array = np.lib.format.open_memmap(path, "w+", STORAGE_DTYPE, shape)
    if hasattr(os, "posix_fallocate"):
        with path.open("r+b") as stream:
            os.posix_fallocate(stream.fileno(), 0, path.stat().st_size)
    return array


def draw(seed: int, sample: int, pairs: int, variants: int) -> tuple[int, int]:
    """Draw (index of the pair, index of the variant) for a training sample.

    In each epoch, every pair is drawn once, in a new random order; its variant is drawn independently.
    sample: the number of the sample, from 0 and without an upper limit.
    pairs: the number of pairs.
    variants: the number of variants of each pair.
    """
    epoch, position = divmod(sample, pairs)
    variant = np.random.default_rng([seed, sample, 1]).integers(variants)
    return int(_order(seed, epoch, pairs)[position]), int(variant)


@lru_cache(maxsize=4)
def _order(seed: int, epoch: int, pairs: int) -> np.ndarray:
    return np.random.default_rng([seed, epoch]).permutation(pairs)
