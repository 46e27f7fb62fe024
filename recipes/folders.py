"""Define the architecture of the bundled bases, and write them as diffusers folders."""

import copy
from functools import partial
from pathlib import Path
from typing import Any

import torch
from diffusers import (
    AutoencoderKL,
    DDIMScheduler,
    StableDiffusionPipeline,
    StableDiffusionXLPipeline,
    UNet2DConditionModel,
)
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection

from retipair.models.byte_tokenizer import byte_tokenizer
from retipair.runtime.atomic_io import atomic_write_dir

SHARD = "14MB"
VIEW = 256
TEXT_WIDTHS = (64, 96)

SCHEDULER = {
    "num_train_timesteps": 1000,
    "beta_schedule": "scaled_linear",
    "beta_start": 0.00085,
    "beta_end": 0.012,
    "prediction_type": "v_prediction",
    "rescale_betas_zero_snr": True,
    "timestep_spacing": "trailing",
    "clip_sample": False,
    "set_alpha_to_one": False,
    "steps_offset": 1,
}

_UNET: dict[str, Any] = {
    "in_channels": 16,
    "out_channels": 16,
    "block_out_channels": [96, 128, 160, 160],
    "layers_per_block": 1,
    # The last up block has attention at the resolution of the latents, so that a half can attend to the same vessel in
    # the other half.
    "down_block_types": ["DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D", "DownBlock2D"],
    "up_block_types": ["UpBlock2D", "CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "CrossAttnUpBlock2D"],
    "attention_head_dim": [1, 2, 5, 5],  # the number of heads, as in SDXL's own config
    "use_linear_projection": True,
    "norm_num_groups": 16,
}
UNETS: dict[str, dict[str, Any]] = {
    "tiny-sdxl": _UNET
    | {
        "sample_size": 2 * VIEW // 8,
        "cross_attention_dim": sum(TEXT_WIDTHS),
        "addition_embed_type": "text_time",
        "addition_time_embed_dim": 16,
        "projection_class_embeddings_input_dim": 6 * 16 + TEXT_WIDTHS[1],
    },
    # Fewer channels at the lowest resolution, so that both bases together stay below 60 MB.
    "tiny-sd15": _UNET
    | {
        "sample_size": VIEW // 8,
        "cross_attention_dim": TEXT_WIDTHS[0],
        "block_out_channels": [96, 128, 160, 128],
        "attention_head_dim": [1, 2, 5, 4],
    },
}


def text_encoders(name: str) -> list[Any]:
    """Return CLIP text encoders with random, frozen weights. They only have to distinguish the few captions."""
    classes = (CLIPTextModel, CLIPTextModelWithProjection)[: 2 if name == "tiny-sdxl" else 1]
    torch.manual_seed(5)
    return [encoder(_text_config(width)).eval() for encoder, width in zip(classes, TEXT_WIDTHS, strict=False)]


def _text_config(width: int) -> CLIPTextConfig:
    return CLIPTextConfig(
        vocab_size=514,
        hidden_size=width,
        intermediate_size=2 * width,
        num_hidden_layers=3,
        num_attention_heads=4,
        projection_dim=width,
        hidden_act="quick_gelu",
        bos_token_id=0,
        eos_token_id=2,
        pad_token_id=1,
        # With the usual 0.02, such a narrow encoder gives nearly the same embeddings for all prompts.
        initializer_range=0.2,
        initializer_factor=1.0,
    )


def new_unet(name: str) -> UNet2DConditionModel:
    return UNet2DConditionModel(**UNETS[name])


def build_pipeline(name: str, unet: UNet2DConditionModel, vae: AutoencoderKL) -> Any:
    """Return the diffusers pipeline of a base."""
    encoders = text_encoders(name)
    parts = {"unet": unet, "vae": vae, "scheduler": DDIMScheduler(**SCHEDULER), "tokenizer": byte_tokenizer()}
    if name == "tiny-sdxl":
        return StableDiffusionXLPipeline(
            **parts,
            text_encoder=encoders[0],
            text_encoder_2=encoders[1],
            tokenizer_2=byte_tokenizer("!"),
            add_watermarker=False,
        )
    return StableDiffusionPipeline(
        **parts,
        text_encoder=encoders[0],
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )


def write_base(folder: Path, name: str, unet: UNet2DConditionModel, vae: AutoencoderKL) -> None:
    """Write a complete diffusers folder in fp16."""
    pipeline = build_pipeline(name, copy.deepcopy(unet), copy.deepcopy(vae)).to(torch.float16)
    pipeline.vae.register_to_config(_name_or_path=name)  # not a local path
    atomic_write_dir(folder, partial(pipeline.save_pretrained, max_shard_size=SHARD))
