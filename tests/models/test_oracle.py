"""Conditioning, images and losses equal those of diffusers' own pipelines and training scripts."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import (
    DDPMScheduler,
    StableDiffusionImg2ImgPipeline,
    StableDiffusionPipeline,
    StableDiffusionXLImg2ImgPipeline,
    StableDiffusionXLPipeline,
)
from PIL import Image
from torch.nn import functional as F

from conftest import VIEW
from retipair.data.layout import Layout
from retipair.diffusion.guidance import Guidance
from retipair.diffusion.losses import Objective
from retipair.diffusion.noise import generator
from retipair.diffusion.schedule import NoiseSchedule
from retipair.generation.modes import FromImages
from retipair.generation.pair_generator import PairGenerator
from retipair.models.base import Base, open_base
from retipair.models.conditioning import Conditioning, encode_prompts
from retipair.models.denoiser import Denoiser
from retipair.models.families import SAMPLERS
from retipair.models.lora import add_adapter, lora_config

PROMPT = "two views of one eye"
PIPELINES: dict[str, Any] = {"sdxl": StableDiffusionXLPipeline, "sd15": StableDiffusionPipeline}
IMG2IMG: dict[str, Any] = {"sdxl": StableDiffusionXLImg2ImgPipeline, "sd15": StableDiffusionImg2ImgPipeline}


@pytest.fixture
def base(system: str, base_folder: Callable[[str], Path]) -> Base:
    return open_base(str(base_folder(system)))


@pytest.fixture
def layout(base: Base) -> Layout:
    return Layout(base.family.layout, VIEW)


def pipeline(kinds: dict[str, Any], base: Base) -> Any:
    pipe = kinds[base.family.name].from_pretrained(base.source)
    pipe.set_progress_bar_config(disable=True)
    return pipe


def pair_generator(base: Base, layout: Layout, sampler: str, steps: int, guidance: float = 1.0) -> PairGenerator:
    denoise = Denoiser(base.unet().eval(), torch.float32, "cpu")
    return PairGenerator(base, layout, denoise, base.vae(), sampler, steps, Guidance(guidance))


def conditioning(base: Base, layout: Layout, rows: list[int]) -> Conditioning:
    return encode_prompts(base, [PROMPT], layout.joint_size, "cpu").rows(rows)


def sizes(base: Base, layout: Layout) -> dict[str, Any]:
    return {"height": layout.joint_size[0], "width": layout.joint_size[1]}


def test_prompt_embeddings_pooled_text_and_size_ids_are_the_pipelines(base: Base, layout: Layout) -> None:
    ours = encode_prompts(base, [PROMPT, ""], layout.joint_size, "cpu")
    pipe = pipeline(PIPELINES, base)
    theirs = pipe.encode_prompt(PROMPT, device="cpu", num_images_per_prompt=1, do_classifier_free_guidance=True)
    assert torch.equal(ours.embeddings[0], theirs[0][0])
    assert torch.equal(ours.embeddings[-1], theirs[1][0])
    if base.family.name == "sd15":
        assert ours.pooled is None
        assert ours.size_ids is None
        assert torch.equal(ours.embeddings[-1], ours.embeddings[1])  # "unconditional" is the encoding of ""
        return
    assert ours.pooled is not None
    assert torch.equal(ours.pooled[0], theirs[2][0])
    assert torch.equal(ours.pooled[-1], theirs[3][0])
    assert not ours.embeddings[-1].any()  # "unconditional" is zeros
    height, width = layout.joint_size
    dim = pipe.text_encoder_2.config.projection_dim
    ids = pipe._get_add_time_ids((height, width), (0, 0), (height, width), torch.float32, dim)
    assert ours.size_ids is not None
    assert torch.equal(ours.size_ids[0], ids[0])


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_text_to_image_equals_the_pipeline(base: Base, layout: Layout, sampler: str) -> None:
    ours = pair_generator(base, layout, sampler, steps=4).sample(conditioning(base, layout, [0]), [generator(3, 1)])
    pipe = pipeline(PIPELINES, base)
    pipe.scheduler = base.scheduler(sampler)
    theirs = pipe(PROMPT, num_inference_steps=4, guidance_scale=1.0, generator=generator(3, 1), **sizes(base, layout))
    assert np.array_equal(ours[0].joint, np.asarray(theirs.images[0]))
    assert ours[0].joint.std() > 1


def test_guidance_equals_the_pipeline(base: Base, layout: Layout) -> None:
    generate = pair_generator(base, layout, "ddpm", steps=3, guidance=4.0)
    ours = generate.sample(conditioning(base, layout, [1, 0]), [generator(3, 1)])
    pipe = pipeline(PIPELINES, base)
    pipe.scheduler = base.scheduler("ddpm")
    theirs = pipe(PROMPT, num_inference_steps=3, guidance_scale=4.0, generator=generator(3, 1), **sizes(base, layout))
    assert np.array_equal(ours[0].joint, np.asarray(theirs.images[0]))


@pytest.mark.parametrize("sampler", SAMPLERS)
@pytest.mark.parametrize("strength", [0.5, 1.0])
def test_image_to_image_equals_the_pipeline(base: Base, layout: Layout, sampler: str, strength: float) -> None:
    source = np.random.default_rng(0).integers(0, 256, (*layout.joint_size, 3), dtype=np.uint8)
    generate = pair_generator(base, layout, sampler, steps=4)
    ours = generate.sample(
        conditioning(base, layout, [0]), [generator(3, 1)], FromImages(generate.vae, source[None], strength)
    )
    pipe = pipeline(IMG2IMG, base)
    pipe.scheduler = base.scheduler(sampler)
    theirs = pipe(
        PROMPT,
        image=Image.fromarray(source),
        strength=strength,
        num_inference_steps=4,
        guidance_scale=1.0,
        generator=generator(3, 1),
    )
    assert np.array_equal(ours[0].joint, np.asarray(theirs.images[0]))


@pytest.mark.parametrize("min_snr_gamma", [0.0, 5.0])
@pytest.mark.parametrize("prediction_type", ["epsilon", "v_prediction"])
def test_loss_equals_the_published_lora_step(
    base: Base, layout: Layout, prediction_type: str, min_snr_gamma: float
) -> None:
    """diffusers' text-to-image LoRA scripts, one step, reimplemented from the same latents, noise and timesteps."""
    unet = base.unet()
    add_adapter(unet, lora_config(4, 4, "attention", dora=False, rslora=False))
    scheduler = DDPMScheduler.from_config(base.scheduler("ddpm").config, prediction_type=prediction_type)
    latents = torch.randn(2, 4, 16, 32, generator=generator(0))
    noise = torch.randn(latents.shape, generator=generator(1))
    t = torch.tensor([20, 700])
    cond = conditioning(base, layout, [0, 0])

    prediction = Denoiser(unet, torch.float32, "cpu")(scheduler.add_noise(latents, noise, t), t, cond)
    schedule = NoiseSchedule.from_scheduler(scheduler)
    noisy = schedule.add_noise(latents, noise, t)
    ours = Objective(schedule, {}, min_snr_gamma)(prediction, noisy, latents, noise, t).total

    added = {"text_embeds": cond.pooled, "time_ids": cond.size_ids} if cond.pooled is not None else None
    model_pred = unet(
        scheduler.add_noise(latents, noise, t), t, cond.embeddings, added_cond_kwargs=added, return_dict=False
    )[0]
    target = noise if prediction_type == "epsilon" else scheduler.get_velocity(latents, noise, t)
    if min_snr_gamma == 0:
        theirs = F.mse_loss(model_pred.float(), target.float(), reduction="mean")
    else:
        from diffusers.training_utils import compute_snr

        snr = compute_snr(scheduler, t)
        weights = torch.stack([snr, min_snr_gamma * torch.ones_like(t)], dim=1).min(dim=1)[0]
        weights = weights / snr if prediction_type == "epsilon" else weights / (snr + 1)
        theirs = F.mse_loss(model_pred.float(), target.float(), reduction="none")
        theirs = (theirs.mean(dim=list(range(1, theirs.ndim))) * weights).mean()
    assert ours.item() == pytest.approx(theirs.item(), abs=1e-6)
