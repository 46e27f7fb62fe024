"""The latents of every pair in its variants: encoded once, then drawn from by (seed, sample) alone."""

import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import numpy as np
import torch

from retipair.runtime.atomic_io import read_json, write_json
from retipair.runtime.errors import UserError

# What an encoder gives for one joint image: mean and std of its latents, (C, h, w) each.
Encode = Callable[[np.ndarray], tuple[np.ndarray, np.ndarray]]

_PARTS = ("mean", "std")
_BEGUN, _DONE = "begun.json", "done.json"
_KEEP_EVERY = 64
"""Joint images, between two notes of how far it got: some minutes of SDXL's autoencoder on a CPU."""
STORED = np.float16
"""Rounds latents by 0.05 %, far below the autoencoder's own std, for half the memory."""


HELD = 2**28
"""Bytes of latents in a GPU's memory, at most: those of 250 pairs in eight variants at 1024x512. More are read from
disk as they are drawn."""


@dataclass(frozen=True)
class LatentCache:
    """mean, std: (pairs, variants, C, h, w) float16, on the device or mapped from disk."""

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
        """The cache in the device's memory, if it is small beside all else there; else mapped from disk as it is."""
        if not device.startswith("cuda") or self.bytes > HELD:
            return self
        return LatentCache(self.mean.to(device), self.std.to(device))

    def moments(self, pairs: Sequence[int], variants: Sequence[int]) -> tuple[torch.Tensor, torch.Tensor]:
        """mean and std of the chosen pairs' variants, (B, C, h, w) float16, where the cache lies."""
        chosen = [*zip(pairs, variants, strict=True)]  # one by one: a GPU would wait for lists of indices
        return torch.stack([self.mean[one] for one in chosen]), torch.stack([self.std[one] for one in chosen])


def open_or_build(
    folder: Path,
    shape: tuple[int, int, int, int, int],
    joints: Callable[[int], Iterator[np.ndarray]],
    encoder: Callable[[], Encode],
) -> LatentCache:
    """The cache in `folder`, built first if it is not there, from where an earlier call was cut off.

    folder: named after everything its content depends on, so that what is there is never stale; the caller's alone.
    shape: (pairs, variants, C, h, w). joints: joint images (H, W, 3) uint8 in the order pair, variant, from a place on.
    encoder: gives the encoding function; called only when there is something to encode.
    """
    if (found := open_cache(folder, shape)) is not None:
        return found
    try:
        _build(folder, shape, joints, encoder())
    except UserError:  # once that is mended it is another cache
        for name in (_BEGUN, *(f"{part}.npy" for part in _PARTS)):
            (folder / name).unlink(missing_ok=True)
        raise
    built = open_cache(folder, shape)
    assert built is not None
    return built


def open_cache(folder: Path, shape: tuple[int, ...]) -> LatentCache | None:
    """The cache in `folder`; None if it is not there or not whole."""
    if not (folder / _DONE).is_file():
        return None
    try:
        parts = [np.load(folder / f"{name}.npy", mmap_mode="c") for name in _PARTS]
        if all(part.shape == shape and part.dtype == STORED for part in parts):
            return LatentCache(*map(torch.from_numpy, parts))
    except (OSError, ValueError):  # cut off, or a file of it deleted
        pass
    return None


def _build(folder: Path, shape: tuple[int, ...], joints: Callable[[int], Iterator[np.ndarray]], encode: Encode) -> None:
    """In place: what says how far it got is written after that is on disk, what says that it is done last of all."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / _DONE).unlink(missing_ok=True)
    begun, stores = _taken_up(folder, shape) or (0, [_allocated(folder / f"{name}.npy", shape) for name in _PARTS])

    def keep(amount: int) -> None:
        for store in stores:
            store.flush()
        write_json(folder / _BEGUN, {"encoded": amount})

    for number, joint in enumerate(joints(begun), start=begun):
        for store, value in zip(stores, encode(joint), strict=True):
            store[divmod(number, shape[1])] = value
        if (number + 1) % _KEEP_EVERY == 0:
            keep(number + 1)
    keep(shape[0] * shape[1])
    write_json(folder / _DONE, {"shape": shape})
    (folder / _BEGUN).unlink()


def _taken_up(folder: Path, shape: tuple[int, ...]) -> tuple[int, list[np.memmap]] | None:
    """(how many are encoded, what they are in) of a call that was cut off; None if there is nothing to take up."""
    try:
        begun = read_json(folder / _BEGUN)["encoded"]
        stores = [np.lib.format.open_memmap(folder / f"{name}.npy", "r+") for name in _PARTS]
    except (UserError, OSError, ValueError, KeyError):
        return None
    fits = all(store.shape == shape and store.dtype == STORED for store in stores)
    return (begun, stores) if fits and begun in range(shape[0] * shape[1] + 1) else None


def _allocated(path: Path, shape: tuple[int, ...]) -> np.memmap:
    """An array on disk, whose space is there: a full disk would kill whoever writes into a file that is mapped."""
    store = np.lib.format.open_memmap(path, "w+", STORED, shape)
    if hasattr(os, "posix_fallocate"):
        with path.open("r+b") as stream:
            os.posix_fallocate(stream.fileno(), 0, path.stat().st_size)
    return store


def draw(seed: int, sample: int, pairs: int, variants: int) -> tuple[int, int]:
    """(pair, variant) of sample number `sample` of an endless stream: every pair once an epoch, in a new order."""
    epoch, position = divmod(sample, pairs)
    variant = np.random.default_rng([seed, sample, 1]).integers(variants)
    return int(_order(seed, epoch, pairs)[position]), int(variant)


@lru_cache(maxsize=4)
def _order(seed: int, epoch: int, pairs: int) -> np.ndarray:
    return np.random.default_rng([seed, epoch]).permutation(pairs)
