"""Adapters of every kind that are not at their initial values, and an image that a UNet with one generates."""

from typing import Any

import numpy as np
import torch
from peft import LoraConfig

from conftest import VIEW
from retipair.data.layout import Layout
from retipair.diffusion.noise import generator
from retipair.generation.pair_generator import PairGenerator
from retipair.models.base import Base
from retipair.models.conditioning import encode_prompts
from retipair.models.denoiser import Denoiser
from retipair.models.lora import AdapterMetadata, adapter_parameters, add_adapter, lora_config

PROMPT = "two views of one eye"
KINDS = {
    "plain": {"rank": 4, "alpha": 4.0, "dora": False, "rslora": False},
    "alpha": {"rank": 4, "alpha": 11.0, "dora": False, "rslora": False},
    "dora": {"rank": 4, "alpha": 8.0, "dora": True, "rslora": False},
    "rslora": {"rank": 4, "alpha": 2.0, "dora": False, "rslora": True},
}


def config_of(kind: str, targets: str = "attention") -> LoraConfig:
    settings = KINDS[kind]
    return lora_config(settings["rank"], settings["alpha"], targets, settings["dora"], settings["rslora"])


def description(base: Base, kind: str) -> AdapterMetadata:
    return AdapterMetadata(
        system=base.family.name,
        layout=base.family.layout,
        view_size=VIEW,
        base=base.source,
        targets="attention",
        prompts=[(PROMPT, 3)],
        prompt_dropout=0.0,
        size_ids=[VIEW, 2 * VIEW, 0, 0, VIEW, 2 * VIEW],
        base_sha256="0" * 64,
        data_sha256="0" * 64,
        step=7,
        **KINDS[kind],  # type: ignore[arg-type]
    )


def with_adapter(base: Base, kind: str, targets: str = "attention") -> Any:
    """Return a UNet with an adapter that is not at its initial values."""
    unet = base.unet().eval()
    add_adapter(unet, config_of(kind, targets), seed=1)
    for number, (name, parameter) in enumerate(adapter_parameters(unet).items()):
        noise = torch.randn(parameter.shape, generator=generator(5, number))
        if "lora_B" in name:
            parameter.data = 0.5 * noise
        elif "lora_magnitude_vector" in name:
            parameter.data *= 1 + 0.2 * noise
    return unet


def generate_joint(base: Base, unet: Any) -> np.ndarray:
    layout = Layout(base.family.layout, VIEW)
    generate = PairGenerator(base, layout, Denoiser(unet, torch.float32, "cpu"), base.vae(), "ddim", 3)
    conditioning = encode_prompts(base, [PROMPT], layout.joint_size, "cpu").rows([0])
    return generate.sample(conditioning, [generator(2, 1)])[0].joint
