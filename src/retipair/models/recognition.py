"""Detect whether a folder or file contains SDXL or SD1.5. Raise UserError for any other model."""

import json
from pathlib import Path
from typing import Any

from retipair.models.families import SD15, SDXL, ModelFamily
from retipair.models.single_file import (
    UNET,
    Header,
    family_by_inputs,
    missing_part,
    other_family,
    unet_inputs,
)
from retipair.runtime.errors import DamagedError, MissingError, SettingError, UserError


def family_of_folder(folder: Path, source: str) -> ModelFamily:
    if not (folder / "model_index.json").is_file():
        raise SettingError(
            "base",
            source,
            "no model_index.json in this folder; give a diffusers folder of SDXL or SD1.5, "
            "a .safetensors file or a hub id",
        )
    index = read_model_json(folder / "model_index.json")
    if "unet" not in index:
        raise _unsupported(source, f"a {index.get('_class_name')}, which has no UNet")
    unet = read_model_config(folder, "unet")
    family = _family_of_unet(unet)
    if family is None or unet.get("_class_name") != "UNet2DConditionModel":
        raise SettingError(
            "base",
            source,
            f"neither SDXL nor SD1.5 (UNet {unet.get('_class_name')}, conditioning "
            f"{unet.get('addition_embed_type')}); other families are not supported",
        )
    inputs = unet.get("in_channels", 0), unet.get("cross_attention_dim", 0)
    if other := family_by_inputs(*inputs):
        raise _unsupported(source, other)
    width = sum(read_model_config(folder, name).get("hidden_size", 0) for name in family.text_encoders)
    check_inputs(source, inputs, (read_model_config(folder, "vae").get("latent_channels", 0), width))
    return family


def _family_of_unet(unet: dict[str, Any]) -> ModelFamily | None:
    """Return the model family of a base with this UNet config; None for an unsupported model."""
    return {"text_time": SDXL, None: SD15}.get(unet.get("addition_embed_type"))


def family_of_file(header: Header) -> ModelFamily:
    if other := other_family(header) or family_by_inputs(*unet_inputs(header)):
        raise _unsupported(header.path, other)
    family = SDXL if UNET + "label_emb.0.0.weight" in header.shapes else SD15
    if part := missing_part(header, family.single_file_encoders):
        raise SettingError("base", header.path, f"has no {part}; give a file of the complete base")
    return family


def check_inputs(source: object, inputs: tuple[int, int], given: tuple[int, int]) -> None:
    """Raise UserError, naming `source`, if the UNet does not fit the autoencoder and the text encoders.

    inputs: the number of latent channels and the width of the text features that the UNet takes.
    given: the number of latent channels of the autoencoder and the width of the text encoders' features.
    """
    if inputs != given:
        takes, gives = (f"{channels} channels and text features {width} wide" for channels, width in (inputs, given))
        raise SettingError(
            "base",
            source,
            f"neither SDXL nor SD1.5: its UNet takes {takes}, but the base provides {gives}; "
            "other families are not supported",
        )


def _unsupported(source: object, family: str) -> UserError:
    return SettingError("base", source, f"is {family}; give a base of SDXL or SD1.5")


def read_model_config(folder: Path, part: str, name: str = "config.json") -> dict[str, Any]:
    return read_model_json(folder / part / name)


def read_model_json(path: Path) -> dict[str, Any]:
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise MissingError(path, "missing; the base is not a complete diffusers folder") from None
    except ValueError as error:
        raise DamagedError(path, f"not JSON ({error}); get the base again") from None
    if not isinstance(values, dict):
        raise DamagedError(path, "not a JSON object; get the base again")
    return values
