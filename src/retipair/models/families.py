"""Define the model families SDXL and SD1.5."""

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from diffusers import (
    DDIMScheduler,
    DDPMScheduler,
    DiffusionPipeline,
    DPMSolverMultistepScheduler,
    EulerDiscreteScheduler,
    StableDiffusionPipeline,
    StableDiffusionXLPipeline,
)
from transformers import CLIPTextModel, CLIPTextModelWithProjection

CONFIGS = Path(__file__).parent / "configs"
"""Folder of the published configs of both families and of two tiny bases, without weights."""


SAMPLERS = {
    "ddpm": DDPMScheduler,
    "ddim": DDIMScheduler,
    "dpmpp": DPMSolverMultistepScheduler,
    "euler": EulerDiscreteScheduler,
}


@dataclass(frozen=True, eq=False)
class ModelFamily:
    """Properties in which SDXL and SD1.5 differ outside the UNet. default_repo: hub id of the published base."""

    name: Literal["sdxl", "sd15"]
    default_repo: str
    layout: Literal["side_by_side", "squeezed"]
    pipeline: type[DiffusionPipeline]
    text_encoders: dict[str, type]
    tokenizers: tuple[str, ...]


SDXL = ModelFamily(
    name="sdxl",
    default_repo="stabilityai/stable-diffusion-xl-base-1.0",
    layout="side_by_side",
    pipeline=StableDiffusionXLPipeline,
    text_encoders={"text_encoder": CLIPTextModel, "text_encoder_2": CLIPTextModelWithProjection},
    tokenizers=("tokenizer", "tokenizer_2"),
)


SD15 = ModelFamily(
    name="sd15",
    default_repo="stable-diffusion-v1-5/stable-diffusion-v1-5",
    layout="squeezed",
    pipeline=StableDiffusionPipeline,
    text_encoders={"text_encoder": CLIPTextModel},
    tokenizers=("tokenizer",),
)


FAMILIES = {family.name: family for family in (SDXL, SD15)}
