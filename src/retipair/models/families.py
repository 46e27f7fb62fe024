"""Define the model families: SDXL and SD1.5."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

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
"""Folder of the published configs of the families and of two tiny bases, without weights."""

SAMPLERS = {
    "ddpm": DDPMScheduler,
    "ddim": DDIMScheduler,
    "dpmpp": DPMSolverMultistepScheduler,
    "euler": EulerDiscreteScheduler,
}


@dataclass(frozen=True, eq=False)
class ModelFamily:
    """Properties in which model families differ outside the UNet.

    default_repo: hub id of the published base. layout: default layout. single_file_encoders: prefixes of the text
    encoders' tensors in an original-format file. size_ids: whether the UNet takes pooled text and size ids.
    pipeline_options: constructor arguments of the pipeline that are not models. declared_options: further ones that a
    base may declare in its model_index.json, with their defaults.
    """

    name: str
    default_repo: str
    layout: Literal["side_by_side", "squeezed"]
    pipeline: type[DiffusionPipeline]
    text_encoders: dict[str, type]
    tokenizers: tuple[str, ...]
    single_file_encoders: tuple[str, ...]
    size_ids: bool
    pipeline_options: dict[str, Any]
    declared_options: dict[str, Any] = field(default_factory=dict)


SDXL = ModelFamily(
    name="sdxl",
    default_repo="stabilityai/stable-diffusion-xl-base-1.0",
    layout="side_by_side",
    pipeline=StableDiffusionXLPipeline,
    text_encoders={"text_encoder": CLIPTextModel, "text_encoder_2": CLIPTextModelWithProjection},
    tokenizers=("tokenizer", "tokenizer_2"),
    single_file_encoders=("conditioner.embedders.0.", "conditioner.embedders.1."),
    size_ids=True,
    pipeline_options={"add_watermarker": False},
    declared_options={"force_zeros_for_empty_prompt": True},
)

SD15 = ModelFamily(
    name="sd15",
    default_repo="stable-diffusion-v1-5/stable-diffusion-v1-5",
    layout="squeezed",
    pipeline=StableDiffusionPipeline,
    text_encoders={"text_encoder": CLIPTextModel},
    tokenizers=("tokenizer",),
    single_file_encoders=("cond_stage_model.",),
    size_ids=False,
    pipeline_options={"safety_checker": None, "feature_extractor": None, "requires_safety_checker": False},
)

FAMILIES = {family.name: family for family in (SDXL, SD15)}
