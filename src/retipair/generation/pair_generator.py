"""Generate pairs in memory: sample latents from random numbers and prompt embeddings, decode them, split the views."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np
import torch

from retipair import __version__
from retipair.data.layout import Layout, to_grey
from retipair.data.pair import Pair, to_rgb
from retipair.diffusion.guidance import NO_GUIDANCE, Guidance, GuidedDenoiser
from retipair.diffusion.noise import generator
from retipair.diffusion.sampling import sample
from retipair.generation.given_views import GivenView
from retipair.generation.modes import FromNoise, SamplingBatch, Start
from retipair.models.base import Base
from retipair.models.conditioning import Conditioning
from retipair.models.denoiser import Denoiser
from retipair.models.vae import Autoencoder, decode
from retipair.vision.field_of_view import field_of_view
from retipair.vision.modality import CF_FA, Modalities


@dataclass(frozen=True)
class GeneratedImages:
    """The images of a generated pair, uint8.

    joint: the decoded joint image of both views, (H, W, 3).
    cf: the colour fundus photograph, (S, S, 3); grey if the modality of the first view has no colour.
    fa: the fluorescein angiogram, converted to greyscale, (S, S).
    fa_chroma: the mean chroma that the conversion removed from the angiogram, in [0, 255]; 0 for a given angiogram.
    given: the view from which the other one was drawn, or None if both were generated.
    attempt: the number of the attempt at this pair, from 0.
    modalities: the modalities of the two views.
    """

    joint: np.ndarray
    cf: np.ndarray
    fa: np.ndarray
    fa_chroma: float
    given: GivenView | None = None
    attempt: int = 0
    modalities: Modalities = CF_FA

    @cached_property
    def pair(self) -> Pair:
        """The two views as a `Pair`; its mask is the field of the given view, else the intersection of both fields."""
        mask = field_of_view(self.cf) & field_of_view(self.fa) if self.given is None else self.given.mask
        return Pair(self.cf, self.fa, mask, dark_vessels=self.modalities.dark_vessels)

    @cached_property
    def consistency(self) -> float:
        """Vesselness correlation of the two views, in [-1, 1], rounded to four decimals as in manifests."""
        return round(self.pair.consistency(), 4)

    def with_given(self, given: GivenView) -> "GeneratedImages":
        """Return the images with the given view itself in place of its reconstruction.

        The drawn view is black outside the field of the given view, as in prepared pairs.
        """
        if given.view == "cf":
            return replace(self, cf=given.image, fa=self.fa * given.mask, given=given)
        return replace(self, cf=self.cf * given.mask[..., None], fa=given.image, fa_chroma=0.0, given=given)


FROM_NOISE = FromNoise()


@dataclass(frozen=True)
class PairGenerator:
    """Generate pairs with one base, adapter and sampler."""

    base: Base
    layout: Layout
    denoise: Denoiser
    vae: Autoencoder
    sampler: str
    steps: int
    guidance: Guidance = NO_GUIDANCE
    modalities: Modalities = CF_FA

    def sample(
        self,
        conditioning: Conditioning,
        generators: Sequence[torch.Generator],
        start: Start = FROM_NOISE,
    ) -> list[GeneratedImages]:
        """Generate one pair per random generator.

        conditioning: the prompt embeddings, one row for each of the B pairs. With classifier-free
            guidance, B unconditional rows come before them.
        start: the object that chooses the initial latents.
        """
        scheduler, device = self.base.scheduler(self.sampler), str(self.vae.device)
        shape = self.base.latent_shape(self.layout.joint_size)
        latents, timesteps = start.begin(SamplingBatch(scheduler, self.steps, shape, generators, device))
        predict = GuidedDenoiser(self.denoise, self.base.schedule, self.guidance, conditioning, len(generators))
        latents = sample(predict, scheduler, latents, timesteps, generators, start.constrain, start.repeats)
        return [self._split(joint) for joint in decode(self.vae, latents)]

    def _split(self, joint: np.ndarray) -> GeneratedImages:
        cf, fa = self.layout.split(joint)
        cf = cf if self.modalities.first.colour else to_rgb(to_grey(cf)[0])
        return GeneratedImages(joint, cf, *to_grey(fa), modalities=self.modalities)


def draw_prompt(prompts: Sequence[tuple[str, int]], seed: int, index: int) -> str:
    """Draw one prompt with a probability proportional to its count, as a function of (seed, index).

    prompts: the prompts and their counts, as (text, count).
    """
    if len(prompts) == 1:
        return prompts[0][0]
    counts = torch.tensor([count for _, count in prompts], dtype=torch.float64)
    row = torch.multinomial(counts, 1, generator=generator(seed, "prompt", index))
    return prompts[int(row)][0]


def synthetic_mark(
    pair_generator: PairGenerator, prompt: str, seed: int, index: int, how: str = "from noise"
) -> dict[str, str]:
    """Return the text metadata of a generated PNG: that it is synthetic, and how it was generated.

    how: a phrase for how the pair was made, such as "from noise".
    The texts depend only on these arguments and the version of retipair.
    """
    return {
        "Synthetic": f"yes: drawn by a diffusion model, {how}; not a photograph, not for clinical use",
        "Software": f"retipair {__version__}",
        "Base": pair_generator.base.name,
        "Seed": f"{seed}, pair {index}",
        "Prompt": prompt,
        "Steps": str(pair_generator.steps),
        "Sampler": pair_generator.sampler,
        "Guidance": f"{pair_generator.guidance.prompt_scale:g}",
        **_pair_guidance_text(pair_generator.guidance),
        "Size": str(pair_generator.layout.view_size),
    }


def with_parameters(mark: Mapping[str, str], joint_size: tuple[int, int]) -> dict[str, str]:
    """Return the metadata with the key "parameters" added: the same values in the form of AUTOMATIC1111's web UI.

    ComfyUI, image browsers and civitai.com read this form: the prompt, an empty negative prompt, and a line of names
    and values. The prompt is written in one line. Values that contain a comma or a colon are quoted as in JSON.

    mark: the text metadata of a generated PNG.
    joint_size: the (height, width) of the joint image, px.
    """
    seed, _, pair = mark["Seed"].partition(", ")
    values = {
        "Steps": mark["Steps"],
        "Sampler": mark["Sampler"],
        "CFG scale": mark["Guidance"],
        "Seed": seed,
        "Size": f"{joint_size[1]}x{joint_size[0]}",
        "Model": mark["Base"],
        "Lora hashes": f"retipair: {mark['Adapter']}" if "Adapter" in mark else "",
        "Denoising strength": mark.get("Strength", ""),
        "Pair guidance": mark.get("Pair guidance", ""),
        "Pair": pair.removeprefix("pair "),
        "Version": mark["Software"],
    }
    line = ", ".join(f"{name}: {_quoted(value)}" for name, value in values.items() if value)
    prompt = " ".join(mark["Prompt"].splitlines())
    return {**mark, "parameters": f"{prompt}\nNegative prompt: \n{line}"}


def _quoted(value: str) -> str:
    return json.dumps(value, ensure_ascii=False) if "," in value or ":" in value else value


def _pair_guidance_text(guidance: Guidance) -> dict[str, str]:
    """Return the metadata of cross-view guidance; {} if it is off, because earlier versions wrote none either."""
    if guidance.pair_scale == 1:
        return {}
    return {"Pair guidance": f"{guidance.pair_scale:g}, timesteps from {guidance.pair_from:g} of the schedule"}
