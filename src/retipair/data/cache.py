"""The latents of every pair in its variants: encoded once, then drawn from by (seed, sample) alone."""

import json
import shutil
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from uuid import uuid4

import numpy as np
import torch

# What an encoder gives for one joint image: mean and std of its latents, (C, h, w) each.
Encode = Callable[[np.ndarray], tuple[np.ndarray, np.ndarray]]

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
    joints: Callable[[], Iterator[np.ndarray]],
    encoder: Callable[[], Encode],
) -> LatentCache:
    """The cache in `folder`, built first if it is not there.

    folder: named after everything its content depends on, so that what is there is never stale.
    shape: (pairs, variants, C, h, w). joints: joint images (H, W, 3) uint8 in the order pair, variant.
    encoder: gives the encoding function; called only when there is something to encode.
    """
    if (found := _open(folder, shape)) is not None:
        return found
    _build(folder, shape, joints(), encoder())
    built = _open(folder, shape)
    assert built is not None
    return built


def _open(folder: Path, shape: tuple[int, ...]) -> LatentCache | None:
    """The cache in `folder`; None if it is not there or not whole."""
    if not (folder / "done.json").is_file():
        return None
    try:
        parts = [np.load(folder / f"{name}.npy", mmap_mode="c") for name in ("mean", "std")]
        if all(part.shape == shape for part in parts):
            return LatentCache(*map(torch.from_numpy, parts))
    except (OSError, ValueError):  # cut off, or a file of it deleted
        pass
    shutil.rmtree(folder)
    return None


def _build(folder: Path, shape: tuple[int, ...], joints: Iterator[np.ndarray], encode: Encode) -> None:
    partial = folder.with_name(f".{folder.name}.{uuid4().hex[:8]}.partial")  # its own: two runs may build at once
    partial.mkdir(parents=True)
    try:
        stores = [np.lib.format.open_memmap(partial / f"{n}.npy", "w+", STORED, shape) for n in ("mean", "std")]
        for number, joint in enumerate(joints):
            for store, value in zip(stores, encode(joint), strict=True):
                store[divmod(number, shape[1])] = value
        for store in stores:
            store.flush()
        (partial / "done.json").write_text(json.dumps({"shape": shape}))
        if not (folder / "done.json").is_file():
            shutil.rmtree(folder, ignore_errors=True)
            partial.replace(folder)
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def draw(seed: int, sample: int, pairs: int, variants: int) -> tuple[int, int]:
    """(pair, variant) of sample number `sample` of an endless stream: every pair once an epoch, in a new order."""
    epoch, position = divmod(sample, pairs)
    variant = np.random.default_rng([seed, sample, 1]).integers(variants)
    return int(_order(seed, epoch, pairs)[position]), int(variant)


@lru_cache(maxsize=4)
def _order(seed: int, epoch: int, pairs: int) -> np.ndarray:
    return np.random.default_rng([seed, epoch]).permutation(pairs)
