"""Encode the training and validation pairs with the autoencoder once, and sample training batches from the latents.

A *joint image* is a CF and an FA side by side; its two *halves* are the CF and the FA. A *variant* is one of the
augmented versions of a pair. A *sample number* counts the samples of a training from 0. The seed and the sample
numbers alone determine a batch.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cache
from typing import Any

import numpy as np
import torch

from retipair.config import TrainConfig
from retipair.data.augmentation import apply_variant, draw_variant
from retipair.data.dataset import PairRecord, load_views
from retipair.data.latent_cache import Encode, LatentCache, draw, open_cache, open_or_build
from retipair.diffusion.halves import find_nonfinite_half
from retipair.diffusion.noise import clean_halves, generator, noise_like, timesteps_for, to_device
from retipair.models.conditioning import Conditioning, encode_prompts, select_rows, size_ids_tensor
from retipair.models.vae import encode_moments, vae_sha256
from retipair.runtime.console import progress
from retipair.runtime.distributed import DistributedState
from retipair.runtime.errors import FileError
from retipair.runtime.lock import directory_lock
from retipair.runtime.schema import json_sha256
from retipair.training.plan import VALIDATION_TIMESTEPS, Data, Plan

RECIPE = 1
"""Version of the encoding. Increment it after a change of the code that changes the latents of the same pairs."""


@dataclass(frozen=True)
class Batch:
    """A training batch of B joint images.

    latents: the latents without noise, (B, C, h, w) float32.
    noise: the noise to add to the latents, (B, C, h, w) float32.
    t: the timesteps, (B,) int64.
    clean: (B, 2) bool, columns CF and FA. True for a half that gets no noise and is excluded from the loss.
    conditioning: the encoded prompts, B rows.
    """

    latents: torch.Tensor
    noise: torch.Tensor
    t: torch.Tensor
    clean: torch.Tensor
    conditioning: Conditioning


@dataclass(frozen=True)
class Batches:
    """The latents and the encoded prompts of the training and validation pairs, from which batches are made.

    timesteps: the number of timesteps of the noise schedule.
    conditioning: the encoded prompts. Row i belongs to `prompts[i]`; the last row is the unconditional one, for
        prompt dropout.
    train_prompts: for each training pair, the row of its prompt in `conditioning`.
    val_prompts: for each validation pair, the row of its prompt in `conditioning`.
    train_size_ids: the size ids of each training pair, (pairs, 6); None for bases without size ids.
    val_size_ids: the size ids of each validation pair.
    """

    config: TrainConfig
    device: str
    timesteps: int
    train: LatentCache
    val: LatentCache
    prompts: Sequence[str]
    conditioning: Conditioning
    train_prompts: Sequence[int]
    val_prompts: Sequence[int]
    train_size_ids: torch.Tensor | None
    val_size_ids: torch.Tensor | None

    def batch_of(self, samples: Sequence[int]) -> Batch:
        """Return the batch of the samples with these numbers.

        The seed and a sample number determine the pair, its variant, the noise, the timestep and the prompt.
        """
        seed = self.config.seed
        pairs, variants = zip(*(draw(seed, s, self.train.pairs, self.train.variants) for s in samples), strict=True)
        mean, std = (to_device(part, self.device).float() for part in self.train.moments(pairs, variants))
        latents = mean + std * noise_like(mean, *((seed, "posterior", s) for s in samples))
        keys = [(seed, "noise", s) for s in samples]
        noise = noise_like(latents, *keys, offset=self.config.offset_noise_strength)
        t = timesteps_for(self.timesteps, latents.device, *((seed, "timestep", s) for s in samples))
        clean_keys = ((seed, "clean", s) for s in samples)
        clean = clean_halves(self.config.half_clean_fraction, latents.device, *clean_keys)
        rows = [self._row(sample, pair) for sample, pair in zip(samples, pairs, strict=True)]
        return Batch(latents, noise, t, clean, self._conditioning(rows, self.train_size_ids, pairs))

    def pairs_of(self, samples: Sequence[int]) -> list[int]:
        """Return, for each sample number, the index of its training pair."""
        return [draw(self.config.seed, sample, self.train.pairs, self.train.variants)[0] for sample in samples]

    def _conditioning(self, rows: Sequence[int], size_ids: torch.Tensor | None, pairs: Sequence[int]) -> Conditioning:
        """Return these rows of `conditioning`, with the size ids of these pairs."""
        conditioning = self.conditioning.rows(rows)
        return conditioning if size_ids is None else replace(conditioning, size_ids=select_rows(size_ids, pairs))

    def _row(self, sample: int, pair: int) -> int:
        dropout = self.config.prompt_dropout
        if dropout and torch.rand((), generator=generator(self.config.seed, "prompt", sample)) < dropout:
            return len(self.conditioning.embeddings) - 1
        return self.train_prompts[pair]

    def conditioning_for(self, prompt: str) -> Conditioning:
        """Return the row of `conditioning` that belongs to `prompt`."""
        return self.conditioning.rows([self.prompts.index(prompt)])

    def validation(self, dist: DistributedState) -> Iterator[tuple[int, Batch]]:
        """Yield the batches of a validation: one for each validation pair of this process and each fixed timestep.

        Yields (index in VALIDATION_TIMESTEPS, batch of one pair). The latents are the mean of the autoencoder's
        posterior. Both halves get noise, which is the same in every validation and contains no offset noise.
        """
        clean = torch.zeros(1, 2, dtype=torch.bool, device=self.device)
        for number, row in dist.split_between_processes([*enumerate(self.val_prompts)]):
            mean, _ = self.val.moments([number], [0])
            latents = to_device(mean, self.device).float()
            conditioning = self._conditioning([row], self.val_size_ids, [number])
            for index, t in enumerate(VALIDATION_TIMESTEPS):
                noise = noise_like(latents, ("validation", number, t))
                steps = torch.tensor([t], device=latents.device)
                yield index, Batch(latents, noise, steps, clean, conditioning)


# Building batches


def make_batches(plan: Plan, data: Data) -> Batches:
    """Encode the prompts and those pairs whose latents are not cached.

    The autoencoder and the text encoders are loaded for this only, and freed afterwards.
    """
    train, val = _encode(plan, data)
    texts = [[entry.caption or plan.config.prompt for entry in entries] for entries in (data.train, data.val)]
    prompts = sorted(set().union(*texts))
    conditioning = encode_prompts(plan.base, prompts, plan.layout.joint_size, plan.device)
    train_rows, val_rows = ([prompts.index(text) for text in split] for split in texts)
    return Batches(
        config=plan.config,
        device=plan.device,
        timesteps=plan.base.timesteps,
        train=train,
        val=val,
        prompts=prompts,
        conditioning=conditioning,
        train_prompts=train_rows,
        val_prompts=val_rows,
        train_size_ids=_size_ids(plan, data.train),
        val_size_ids=_size_ids(plan, data.val),
    )


def _size_ids(plan: Plan, entries: Sequence[PairRecord]) -> torch.Tensor | None:
    """Return the size ids of each pair, (pairs, 6) float32; None for bases without size ids."""
    if not plan.base.family.size_ids:
        return None
    original_sizes = [replace(plan.layout, view_size=side).joint_size for side in plan.original_sizes(entries)]
    return size_ids_tensor(plan.base, plan.layout.joint_size, original_sizes, plan.device)


def _encode(plan: Plan, data: Data) -> tuple[LatentCache, LatentCache]:
    """Return (latents of all variants of the training pairs, latents of the validation pairs without augmentation).

    Latents that are not cached are computed. The autoencoder is loaded for this only, and freed on return.
    """
    load_vae = cache(plan.base.vae)
    weights = vae_sha256(plan.base, load_vae)
    train = _open_cache(plan, data.train, plan.config.augment_variants, data.train_sha256, weights, load_vae)
    val = _open_cache(plan, data.val, 1, data.val_sha256, weights, load_vae)
    return train.on(plan.device), val.on(plan.device)


def _open_cache(
    plan: Plan,
    entries: list[PairRecord],
    variants: int,
    pairs_sha256: str,
    weights_sha256: str,
    load_vae: Callable[[], Any],
) -> LatentCache:
    """Return the latents of the pairs `entries`, from the cache if it holds them.

    variants: the number of variants of each pair.
    pairs_sha256: the hash of the pairs.
    weights_sha256: the hash of the autoencoder's weights.
    load_vae: loads the autoencoder.
    """
    key = {
        "recipe": RECIPE,
        "pairs": pairs_sha256,
        "autoencoder": weights_sha256,
        "layout": plan.layout.name,
        "size": plan.layout.view_size,
        "variants": variants,
        "seed": plan.config.seed if variants > 1 else 0,
    }
    folder = plan.config.results / "latents" / json_sha256(key)[:16]

    current = entries[0]

    def joints(start: int) -> Iterator[np.ndarray]:
        nonlocal current
        with progress("Encoding pairs", len(entries) * variants, start) as advance:
            for number, current in enumerate(entries[start // variants :], start // variants):
                views = load_views(current, plan.layout.view_size)
                for variant in range(max(0, start - number * variants), variants):
                    yield plan.layout.join(*apply_variant(*views, draw_variant(variant, plan.config.seed, number)))
                    advance()

    def encoder() -> Encode:
        vae = load_vae().to(plan.device)
        return lambda joint: encoded(vae, joint, current)

    shape = (len(entries), variants, *plan.latent_shape)
    if (existing := open_cache(folder, shape)) is not None:
        return existing
    with directory_lock(folder, wait=True):  # if two runs need the same latents, only one encodes them
        return open_or_build(folder, shape, joints, encoder)


def encoded(vae: Any, joint: np.ndarray, entry: PairRecord) -> tuple[np.ndarray, np.ndarray]:
    """Return the mean and the standard deviation of the latents of a joint image, (C, h, w) each.

    Raises UserError if one of the two contains NaN or infinity after conversion to fp16. The message names the pair
    and the half.
    """
    moments = encode_moments(vae, joint[None])
    for part in (moments.mean, moments.std):
        if view := find_nonfinite_half(part.to(torch.float16)):
            raise FileError(
                entry.folder,
                f"pair {entry.id}, {view}: the base's autoencoder returns NaN or infinity; "
                "use a base with another autoencoder",
            )
    return moments.mean[0].numpy(), moments.std[0].numpy()
