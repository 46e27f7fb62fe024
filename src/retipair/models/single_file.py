"""Detect which model a .safetensors file in the original format contains, by its header, without loading weights."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors import safe_open

from retipair.runtime.errors import SettingError

UNET = "model.diffusion_model."
_STEM = UNET + "input_blocks.0.0.weight"
VAE = "first_stage_model."

# Models other than SDXL and SD1.5. Each key occurs, at the start or after a dot, only in tensor names of its model.
_OTHER_MODELS = {
    "lora_down.": "a LoRA, not a base",
    "lora_A.": "a LoRA, not a base",
    "lora.down.": "a LoRA, not a base",
    "hada_w1_a": "a LoHa adapter, not a base",
    "lokr_w": "a LoKr adapter, not a base",
    "control_model.": "a ControlNet",
    "time_stack.": "Stable Video Diffusion",
    "motion_modules.": "an AnimateDiff motion module",
    "joint_blocks.0.": "Stable Diffusion 3",
    "double_blocks.0.img_attn.": "Flux",
    "clip_txt_mapper.": "Stable Cascade",
    "down_blocks.1.0.channelwise.": "Stable Cascade",
    "conditioner.embedders.0.model.": "the SDXL refiner",
    "edm_mean": "Playground v2.5",
    "edm_vpred.sigma_max": "CosXL",
}
_SINGLE_PARTS = {  # files that contain a single part of a base, by the name of a tensor
    "down_blocks.0.resnets.0.conv1.weight": "the UNet of a diffusers folder alone; give the whole folder",
    "decoder.conv_in.weight": "an autoencoder (VAE) alone",
    VAE + "decoder.conv_in.weight": "an autoencoder (VAE) alone",
    "text_model.embeddings.position_embedding.weight": "a text encoder alone",
}
_BY_CHANNELS = {
    5: "a depth-to-image model",
    7: "an upscaler",
    8: "an InstructPix2Pix model",
    9: "an inpainting model",
}
_BY_CONTEXT = {1024: "Stable Diffusion 2", 1280: "the SDXL refiner"}
_PREDICTION = {
    **dict.fromkeys(("v", "v_prediction", "v-prediction", "velocity"), True),
    **dict.fromkeys(("epsilon", "eps"), False),
}
_METADATA_KEY = "modelspec.prediction_type"


@dataclass(frozen=True)
class Header:
    """Header of a .safetensors file: the shape of each tensor, by tensor name, and the metadata."""

    path: Path
    shapes: Mapping[str, tuple[int, ...]]
    metadata: Mapping[str, str]


@dataclass(frozen=True)
class DeclaredSchedule:
    """Noise schedule that a .safetensors file declares. It overrides the published configs, which predict noise.

    v_prediction: whether the model predicts v instead of noise.
    declarations: descriptions of the declarations in the file, for messages.
    contradicted: the metadata entry that is ignored because it contradicts `declarations`; None if there is none.
    """

    v_prediction: bool = False
    zero_terminal_snr: bool = False
    declarations: tuple[str, ...] = ()
    contradicted: str | None = None

    @property
    def settings(self) -> dict[str, Any]:
        """Entries for the scheduler config. Zero terminal SNR needs trailing timesteps (Lin et al. 2023, sec. 3.3)."""
        settings: dict[str, Any] = {"prediction_type": "v_prediction"} if self.v_prediction else {}
        if self.zero_terminal_snr:
            settings |= {"rescale_betas_zero_snr": True, "timestep_spacing": "trailing"}
        return settings


NOTHING_DECLARED = DeclaredSchedule()


def read_header(path: Path) -> Header:
    """Read the header of a .safetensors file. Raises SafetensorError for any other file."""
    with safe_open(path, framework="pt") as file:
        shapes = {name: tuple(file.get_slice(name).get_shape()) for name in file.keys()}  # noqa: SIM118
        return Header(path, shapes, file.metadata() or {})


def other_family(header: Header) -> str | None:
    """Return the name of the model if its tensor names show that it is neither SDXL nor SD1.5, else None."""
    for part, family in _OTHER_MODELS.items():
        if any(f".{part}" in f".{name}" for name in header.shapes):
            return family
    if _STEM not in header.shapes:
        single_parts = (part for name, part in _SINGLE_PARTS.items() if name in header.shapes)
        return next(single_parts, f"no SDXL or SD1.5 base (it has no {UNET}* tensors)")
    return None


def missing_part(header: Header, text_encoders: Sequence[str]) -> str | None:
    """Return the name of a part that the file lacks (autoencoder or text encoder); None if the base is complete.

    text_encoders: the prefix of the tensor names of each text encoder.
    """
    parts = {VAE: "autoencoder", **dict.fromkeys(text_encoders, "text encoder")}
    missing = (part for prefix, part in parts.items() if not any(name.startswith(prefix) for name in header.shapes))
    return next(missing, None)


def unet_inputs(header: Header) -> tuple[int, int]:
    """Return the number of input channels of the UNet and the width of its text features (0 if it takes no text)."""
    keys = [name for name in header.shapes if name.startswith(UNET) and name.endswith("attn2.to_k.weight")]
    return header.shapes[_STEM][1], header.shapes[keys[0]][1] if keys else 0


def family_by_inputs(in_channels: int, context: int) -> str | None:
    """Return the name of a model with these UNet inputs that is neither SDXL nor SD1.5, else None.

    in_channels: the number of input channels of the UNet. context: the width of the text features.
    """
    return _BY_CHANNELS.get(in_channels) or _BY_CONTEXT.get(context)


def declared_schedule(header: Header) -> DeclaredSchedule:
    """Read the noise schedule that the file declares.

    A tensor named `v_pred` declares v-prediction, and a tensor named `ztsnr` declares zero terminal SNR. The metadata
    entry `modelspec.prediction_type` declares either prediction type. If it contradicts `v_pred`, `v_pred` counts, as
    in ComfyUI and Forge. Raises UserError for an unknown prediction type and for zero terminal SNR without
    v-prediction.
    """
    keys = tuple(f"key {name}" for name in ("v_pred", "ztsnr") if name in header.shapes)
    kind = header.metadata.get(_METADATA_KEY, "")
    metadata = f"{_METADATA_KEY} = {kind}"
    if kind and kind.lower() not in _PREDICTION:
        raise SettingError("base", header.path, f"its {metadata} is not supported; only epsilon (noise) and v are")
    by_key, by_metadata = "v_pred" in header.shapes, _PREDICTION.get(kind.lower(), False)
    if "ztsnr" in header.shapes and not (by_key or by_metadata):
        raise SettingError(
            "base",
            header.path,
            "its key ztsnr declares zero terminal SNR, which needs v-prediction, but neither "
            "v_pred nor its metadata declares v-prediction; add the key v_pred if the base predicts v",
        )
    if kind and by_key and not by_metadata:
        return DeclaredSchedule(True, "ztsnr" in header.shapes, keys, metadata)
    return DeclaredSchedule(by_key or by_metadata, "ztsnr" in header.shapes, (*keys, *([metadata] if kind else [])))
