"""What training and validation look at: pairs, encoded once, and drawn in batches.

A batch is a function of the seed and the numbers of its samples alone.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from retipair.config import TrainConfig
from retipair.data.augmentation import apply_variant, draw_variant
from retipair.data.dataset import PairRecord, content_sha256, load_views
from retipair.data.latent_cache import Encode, LatentCache, draw, open_cache, open_or_build
from retipair.diffusion.halves import find_nonfinite_half
from retipair.diffusion.noise import clean_halves, generator, noise_like, timesteps_for, to_device
from retipair.models.conditioning import Conditioning, encode_prompts
from retipair.models.vae import encode_moments, fingerprint_of
from retipair.runtime.console import progress
from retipair.runtime.distributed import DistributedState
from retipair.runtime.errors import UserError
from retipair.runtime.lock import directory_lock
from retipair.runtime.schema import json_sha256
from retipair.training.plan import VALIDATION_TIMESTEPS, Data, Plan

RECIPE = 1
"""Raise it whenever the same pairs would be encoded otherwise."""


@dataclass(frozen=True)
class Batch:
    """latents (clean), noise: (B, C, h, w) float32; t: (B,) int64; conditioning: B rows.

    clean: (B, 2) bool, halves (CF, FA) that get no noise and do not count.
    """

    latents: torch.Tensor
    noise: torch.Tensor
    t: torch.Tensor
    clean: torch.Tensor
    conditioning: Conditioning


@dataclass(frozen=True)
class Batches:
    """Both sides of the split as latents, and what each pair hears.

    Row i of `conditioning` is that of `prompts[i]`, its last row that of no prompt at all; `train_prompts` and
    `val_prompts` are rows, one for each pair.
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

    def draw(self, samples: Sequence[int]) -> Batch:
        """The batch of these numbers of the endless stream of samples: pair, variant and all the rest of a batch."""
        seed = self.config.seed
        pairs, variants = zip(*(draw(seed, s, self.train.pairs, self.train.variants) for s in samples), strict=True)
        mean, std = (to_device(part, self.device).float() for part in self.train.moments(pairs, variants))
        latents = mean + std * noise_like(mean, *((seed, "posterior", s) for s in samples))
        keys = [(seed, "noise", s) for s in samples]
        noise = noise_like(latents, *keys, offset=self.config.offset_noise_strength)
        t = timesteps_for(self.timesteps, latents.device, *((seed, "timestep", s) for s in samples))
        halves = ((seed, "clean", s) for s in samples)
        clean = clean_halves(self.config.half_clean_fraction, latents.device, *halves)
        rows = [self._row(sample, pair) for sample, pair in zip(samples, pairs, strict=True)]
        return Batch(latents, noise, t, clean, self.conditioning.rows(rows))

    def pairs_of(self, samples: Sequence[int]) -> list[int]:
        """The places of their pairs among those of the training."""
        return [draw(self.config.seed, sample, self.train.pairs, self.train.variants)[0] for sample in samples]

    def _row(self, sample: int, pair: int) -> int:
        dropout = self.config.prompt_dropout
        if dropout and torch.rand((), generator=generator(self.config.seed, "prompt", sample)) < dropout:
            return len(self.conditioning.embeddings) - 1
        return self.train_prompts[pair]

    def conditioning_for(self, prompt: str) -> Conditioning:
        """One row: that of a prompt."""
        return self.conditioning.rows([self.prompts.index(prompt)])

    def validation(self, dist: DistributedState) -> Iterator[tuple[int, Batch]]:
        """Each validation pair of this process's share at each fixed timestep, by the timestep's place: mean latents,
        fixed noise in both halves, no offset.
        """
        clean = torch.zeros(1, 2, dtype=torch.bool, device=self.device)
        for number, row in dist.split_between_processes([*enumerate(self.val_prompts)]):
            mean, _ = self.val.moments([number], [0])
            latents = to_device(mean, self.device).float()
            for place, t in enumerate(VALIDATION_TIMESTEPS):
                noise = noise_like(latents, ("validation", number, t))
                steps = torch.tensor([t], device=latents.device)
                yield place, Batch(latents, noise, steps, clean, self.conditioning.rows([row]))


# Making them


def make_batches(plan: Plan, data: Data) -> Batches:
    """Latents and conditioning of both sides; autoencoder and text encoders are loaded for this and gone afterwards."""
    train, val = _encode(plan, data)
    texts = [[entry.caption or plan.config.prompt for entry in side] for side in (data.train, data.val)]
    prompts = sorted(set().union(*texts))
    conditioning = encode_prompts(plan.base, prompts, plan.layout.joint_size, plan.device)
    rows = [[prompts.index(text) for text in side] for side in texts]
    timesteps = plan.base.timesteps
    return Batches(plan.config, plan.device, timesteps, train, val, prompts, conditioning, *rows)


def _encode(plan: Plan, data: Data) -> tuple[LatentCache, LatentCache]:
    """Latents of the training pairs in all their variants and of the validation pairs as they are.

    What is not on disk yet is encoded; the autoencoder is loaded only for that and gone when this returns.
    """
    vae = plan.base.vae()
    weights = fingerprint_of(vae)
    caches = [
        _cache(plan, entries, variants, vae, weights)
        for entries, variants in ((data.train, plan.config.augment_variants), (data.val, 1))
    ]
    return caches[0].on(plan.device), caches[1].on(plan.device)


def _cache(plan: Plan, entries: list[PairRecord], variants: int, vae: Any, weights: str) -> LatentCache:
    key = {
        "recipe": RECIPE,
        "pairs": content_sha256(entries),
        "autoencoder": weights,
        "layout": plan.layout.name,
        "size": plan.layout.view_size,
        "variants": variants,
        "seed": plan.config.seed if variants > 1 else 0,
    }
    folder = plan.config.results / "latents" / json_sha256(key)[:16]

    now = entries[0]

    def joints(begun: int) -> Iterator[np.ndarray]:
        nonlocal now
        with progress("Encoding pairs", len(entries) * variants, begun) as advance:
            for number, now in enumerate(entries[begun // variants :], begun // variants):
                views = load_views(now, plan.layout.view_size)
                for variant in range(max(0, begun - number * variants), variants):
                    yield plan.layout.join(*apply_variant(*views, draw_variant(variant, plan.config.seed, number)))
                    advance()

    def encoder() -> Encode:
        vae.to(plan.device)
        return lambda joint: encoded(vae, joint, now)

    shape = (len(entries), variants, *plan.latent_shape)
    if (found := open_cache(folder, shape)) is not None:
        return found
    with directory_lock(folder, wait=True):  # of two runs that need the same, one encodes
        return open_or_build(folder, shape, joints, encoder)


def encoded(vae: Any, joint: np.ndarray, entry: PairRecord) -> tuple[np.ndarray, np.ndarray]:
    """mean, std of a joint image's latents, (C, h, w). Raises UserError, naming pair and half, for no numbers."""
    moments = encode_moments(vae, joint[None])
    for part in (moments.mean, moments.std):
        if view := find_nonfinite_half(part.to(torch.float16)):
            raise UserError(
                f"{entry.folder}: pair {entry.id}, {view}: the base's autoencoder gives no numbers; take a base with "
                "a sound one (SDXL's overflows in fp16: take it in fp32, or sdxl-vae-fp16-fix)"
            )
    return moments.mean[0].numpy(), moments.std[0].numpy()
