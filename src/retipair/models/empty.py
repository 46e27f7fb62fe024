"""Create networks on torch's meta device, where weights have shapes but no values, to estimate their memory."""

from typing import Any

import torch
from diffusers import (
    AutoencoderKL,
    UNet2DConditionModel,
)

from retipair.models.base import Base
from retipair.models.loading import from_config, naming_errors
from retipair.models.recognition import read_model_config


def empty_unet(base: Base) -> UNet2DConditionModel:
    """Create the UNet on the meta device."""
    return _empty(base, "unet", UNet2DConditionModel)


def empty_vae(base: Base) -> AutoencoderKL:
    """Create the autoencoder on the meta device."""
    return _empty(base, "vae", AutoencoderKL)


def empty_text_encoders(base: Base) -> list[torch.nn.Module]:
    """Create the text encoders on the meta device."""
    return [_empty(base, name, kind) for name, kind in base.family.text_encoders.items()]


def _empty(base: Base, name: str, kind: Any) -> Any:
    with naming_errors(base.source), torch.device("meta"):
        return from_config(kind, read_model_config(base.configs, name))
