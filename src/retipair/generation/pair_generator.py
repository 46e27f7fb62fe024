"""Seeds and conditioning in, pairs out: the sampler, the autoencoder and the layout put together."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch

from retipair import __version__
from retipair.data.layout import Layout, to_grey
from retipair.data.pair import Pair
from retipair.diffusion.noise import generator
from retipair.diffusion.sampling import noised, sample, starting_noise, timesteps_for_strength
from retipair.models.base import Base
from retipair.models.conditioning import Conditioning
from retipair.models.denoiser import Denoiser
from retipair.models.vae import Autoencoder, decode, encode_sample
from retipair.vision.field_of_view import field_of_view


@dataclass(frozen=True)
class GeneratedImages:
    """joint (H, W, 3) as decoded; cf (S, S, 3); fa (S, S) grey; fa_chroma: what was removed for that. uint8."""

    joint: np.ndarray
    cf: np.ndarray
    fa: np.ndarray
    fa_chroma: float

    @property
    def pair(self) -> Pair:
        """Valid where both views show the eye."""
        return Pair(self.cf, self.fa, field_of_view(self.cf) & field_of_view(self.fa))


@dataclass(frozen=True)
class PairGenerator:
    """How pairs are painted; what is painted comes with each call."""

    base: Base
    layout: Layout
    denoise: Denoiser
    vae: Autoencoder
    sampler: str
    steps: int
    guidance_scale: float = 1.0

    def sample(
        self,
        conditioning: Conditioning,
        generators: Sequence[torch.Generator],
        sources: np.ndarray | None = None,
        strength: float = 1.0,
        after_step: Callable[[], None] = lambda: None,
    ) -> list[GeneratedImages]:
        """One pair a generator, from pure noise, or from `sources` (B, H, W, 3) uint8 noised to `strength`.

        conditioning: a row a pair; with guidance the rows without a prompt come before those, 2B in all.
        """
        scheduler, device = self.base.scheduler(self.sampler), str(self.vae.device)
        timesteps = timesteps_for_strength(scheduler, self.steps, strength)
        if sources is None:
            latents = starting_noise(scheduler, self.base.latent_shape(self.layout.joint_size), generators, device)
        else:
            clean = [encode_sample(self.vae, *one) for one in zip(sources, generators, strict=True)]
            latents = noised(scheduler, torch.cat(clean), timesteps, generators)
        latents = sample(
            self.denoise,
            scheduler,
            latents,
            timesteps,
            conditioning,
            generators,
            self.guidance_scale,
            after_step,
        )
        return [self._split(joint) for joint in decode(self.vae, latents)]

    def _split(self, joint: np.ndarray) -> GeneratedImages:
        cf, fa = self.layout.split(joint)
        return GeneratedImages(joint, cf, *to_grey(fa))


def draw_prompt(prompts: Sequence[tuple[str, int]], seed: int, index: int) -> str:
    """One of (text, how often it was trained), as often as it was trained: a function of (seed, index)."""
    if len(prompts) == 1:
        return prompts[0][0]
    counts = torch.tensor([count for _, count in prompts], dtype=torch.float64)
    row = torch.multinomial(counts, 1, generator=generator(seed, "prompt", index))
    return prompts[int(row)][0]


def synthetic_mark(
    painter: PairGenerator, prompt: str, seed: int, index: int, how: str = "from noise"
) -> dict[str, str]:
    """Return the texts that every generated PNG carries: that it is synthetic, and how it was made.

    how: "from noise", or what it is a variation of. The texts are a function of these values and of the version.
    """
    return {
        "Synthetic": f"yes: drawn by a diffusion model, {how}; not a photograph, not for clinical use",
        "Software": f"retipair {__version__}",
        "Base": painter.base.name,
        "Seed": f"{seed}, pair {index}",
        "Prompt": prompt,
        "Steps": str(painter.steps),
        "Sampler": painter.sampler,
        "Guidance": f"{painter.guidance_scale:g}",
        "Size": str(painter.layout.view_size),
    }
