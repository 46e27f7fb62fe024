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
"""The folder that contains config files without weights: those published for SDXL and SD1.5, and two tiny versions."""

SAMPLERS = {
    "ddpm": DDPMScheduler,
    "ddim": DDIMScheduler,
    "dpmpp": DPMSolverMultistepScheduler,
    "euler": EulerDiscreteScheduler,
}


@dataclass(frozen=True, eq=False)
class ModelFamily:
    """Properties of a model family that are not part of the UNet's config.

    default_repo: the hub id of the published base.
    layout: the default arrangement of CF and FA in the joint image.
    pipeline: the class of the diffusers pipeline.
    text_encoders: the classes of the text encoders, by folder name.
    tokenizers: the folder names of the tokenizers, in the order of the text encoders.
    single_file_encoders: the prefixes of the text encoders' tensor names in an original-format file.
    size_ids: whether the UNet takes pooled text embeddings and size ids.
    kohya_original_names: whether kohya's LoRA files name the layers of the UNet as in the original format.
    lora_architecture: the name of the architecture of its LoRA files in the metadata `modelspec.architecture`.
    kohya_version: its name in kohya's metadata `ss_base_model_version`.
    pipeline_options: the arguments of the pipeline's constructor other than models.
    declared_options: additional arguments of the pipeline's constructor that a base may declare in its
    model_index.json, with default values.
    """

    name: str
    default_repo: str
    layout: Literal["side_by_side", "squeezed"]
    pipeline: type[DiffusionPipeline]
    text_encoders: dict[str, type]
    tokenizers: tuple[str, ...]
    single_file_encoders: tuple[str, ...]
    size_ids: bool
    kohya_original_names: bool
    lora_architecture: str
    kohya_version: str
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
    kohya_original_names=True,
    lora_architecture="stable-diffusion-xl-v1-base/lora",
    kohya_version="sdxl_base_v1-0",
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
    kohya_original_names=False,
    lora_architecture="stable-diffusion-v1/lora",
    kohya_version="sd_v1",
    pipeline_options={"safety_checker": None, "feature_extractor": None, "requires_safety_checker": False},
)

FAMILIES = {family.name: family for family in (SDXL, SD15)}
