"""What training and validation look at: batches that are functions of the seed and the sample's number alone."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch

from retipair.config import TrainConfig
from retipair.data.cache import LatentCache, draw
from retipair.data.dataset import Entry
from retipair.diffusion.noise import generator, noise_like, timesteps_for
from retipair.model.conditioning import Conditioning

VALIDATION_TIMESTEPS = (200, 500, 800)


@dataclass(frozen=True)
class Batch:
    """latents (clean), noise: (B, C, h, w) float32; t: (B,) int64; conditioning: B rows."""

    latents: torch.Tensor
    noise: torch.Tensor
    t: torch.Tensor
    conditioning: Conditioning


@dataclass(frozen=True)
class Batches:
    """Both sides of the split as latents, with the row of `conditioning` that each training pair hears.

    The last row of `conditioning` is that of no prompt at all.
    """

    config: TrainConfig
    device: str
    timesteps: int
    train: LatentCache
    val: LatentCache
    conditioning: Conditioning
    train_rows: Sequence[int]
    val_rows: Sequence[int]

    def draw(self, samples: Sequence[int]) -> Batch:
        """The batch of these numbers of the endless stream of samples: pair, variant, latents, noise, t and prompt."""
        seed = self.config.seed
        pairs, variants = zip(*(draw(seed, s, self.train.pairs, self.train.variants) for s in samples), strict=True)
        mean, std = self.train.moments(pairs, variants, self.device)
        latents = mean + std * noise_like(mean, *((seed, "posterior", s) for s in samples))
        keys = [(seed, "noise", s) for s in samples]
        noise = noise_like(latents, *keys, offset=self.config.offset_noise_strength)
        t = timesteps_for(self.timesteps, latents.device, *((seed, "timestep", s) for s in samples))
        rows = [self._row(sample, pair) for sample, pair in zip(samples, pairs, strict=True)]
        return Batch(latents, noise, t, self.conditioning.rows(rows))

    def _row(self, sample: int, pair: int) -> int:
        dropout = self.config.prompt_dropout
        if dropout and torch.rand((), generator=generator(self.config.seed, "prompt", sample)) < dropout:
            return len(self.conditioning.embeddings) - 1
        return self.train_rows[pair]

    def validation(self) -> Iterator[Batch]:
        """Each validation pair at each fixed timestep: mean latents, fixed noise, no offset, whatever the seed."""
        for number, row in enumerate(self.val_rows):
            latents, _ = self.val.moments([number], [0], self.device)
            for t in VALIDATION_TIMESTEPS:
                noise = noise_like(latents, ("validation", number, t))
                steps = torch.tensor([t], device=latents.device)
                yield Batch(latents, noise, steps, self.conditioning.rows([row]))


def prompt_rows(entries: Sequence[Entry], prompts: Sequence[str], default: str) -> list[int]:
    """The row of each pair's sentence; one that training never sees (in validation) is heard as the first."""
    rows = {prompt: row for row, prompt in enumerate(prompts)}
    return [rows.get(entry.caption or default, 0) for entry in entries]
