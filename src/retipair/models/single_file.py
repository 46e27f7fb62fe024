"""What an original-format .safetensors file says of the model in it. Only its header is read, no weights."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors import safe_open

from retipair.runtime.errors import UserError

UNET = "model.diffusion_model."
_STEM = UNET + "input_blocks.0.0.weight"
_VAE = "first_stage_model."
_TEXT_ENCODERS = {"sd15": ("cond_stage_model.",), "sdxl": ("conditioner.embedders.0.", "conditioner.embedders.1.")}

_FAMILIES = {  # the start of a tensor name, or of its later part, that no SDXL or SD1.5 base has
    "lora_down.": "a LoRA, which changes a base",
    "lora_A.": "a LoRA, which changes a base",
    "lora.down.": "a LoRA, which changes a base",
    "hada_w1_a": "a LoHa adapter, which changes a base",
    "lokr_w": "a LoKr adapter, which changes a base",
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
_LONE_PARTS = {  # a tensor name that a file has which holds one part of a base, and no UNet of the original format
    "down_blocks.0.resnets.0.conv1.weight": "the UNet of a diffusers folder alone; give the whole folder",
    "decoder.conv_in.weight": "an autoencoder (VAE) alone",
    _VAE + "decoder.conv_in.weight": "an autoencoder (VAE) alone",
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
    """Name -> shape of the tensors in a file, and its metadata."""

    path: Path
    shapes: Mapping[str, tuple[int, ...]]
    metadata: Mapping[str, str]


@dataclass(frozen=True)
class DeclaredSchedule:
    """What a file declares of its noise schedule that the published configs, which predict noise, do not say.

    found: what declares it. contradicted: metadata that says otherwise and does not count.
    """

    v_prediction: bool = False
    zero_terminal_snr: bool = False
    found: tuple[str, ...] = ()
    contradicted: str | None = None

    @property
    def settings(self) -> dict[str, Any]:
        """For the scheduler's config. Zero terminal SNR samples from the last timestep (Lin et al. 2024, sec. 3.3)."""
        settings: dict[str, Any] = {"prediction_type": "v_prediction"} if self.v_prediction else {}
        if self.zero_terminal_snr:
            settings |= {"rescale_betas_zero_snr": True, "timestep_spacing": "trailing"}
        return settings


NOTHING_DECLARED = DeclaredSchedule()


def read_header(path: Path) -> Header:
    """Read names, shapes and metadata. Raises SafetensorError if it is no .safetensors file."""
    with safe_open(path, framework="pt") as file:
        shapes = {name: tuple(file.get_slice(name).get_shape()) for name in file.keys()}  # noqa: SIM118
        return Header(path, shapes, file.metadata() or {})


def other_family(header: Header) -> str | None:
    """Name the model in a file that is neither SDXL nor SD1.5, as far as tensor names tell; else None."""
    for part, family in _FAMILIES.items():
        if any(f".{part}" in f".{name}" for name in header.shapes):
            return family
    if _STEM not in header.shapes:
        alone = (part for name, part in _LONE_PARTS.items() if name in header.shapes)
        return next(alone, f"no SDXL or SD1.5 base (it has no {UNET}* tensors)")
    return None


def missing_part(header: Header, system: str) -> str | None:
    """Name the first part of a base of this system that the file lacks; None if it has all."""
    parts = {_VAE: "autoencoder", **dict.fromkeys(_TEXT_ENCODERS[system], "text encoder")}
    lacking = (part for prefix, part in parts.items() if not any(name.startswith(prefix) for name in header.shapes))
    return next(lacking, None)


def unet_inputs(header: Header) -> tuple[int, int]:
    """Read how many channels the UNet takes, and how wide its text features are (0 where it takes none)."""
    keys = [name for name in header.shapes if name.startswith(UNET) and name.endswith("attn2.to_k.weight")]
    return header.shapes[_STEM][1], header.shapes[keys[0]][1] if keys else 0


def family_by_inputs(in_channels: int, context: int) -> str | None:
    """Name the model whose UNet takes so many channels, or text features so wide; None if it may be SDXL or SD1.5."""
    return _BY_CHANNELS.get(in_channels) or _BY_CONTEXT.get(context)


def declared_schedule(header: Header) -> DeclaredSchedule:
    """Read what the file declares: empty tensors named `v_pred` and `ztsnr`, and `modelspec.prediction_type`.

    Samplers read the tensor names (ComfyUI, Forge), so `v_pred` outweighs metadata that contradicts it.
    Raises UserError for a prediction type that is not known, and for zero terminal SNR without v-prediction.
    """
    keys = tuple(f"key {name}" for name in ("v_pred", "ztsnr") if name in header.shapes)
    kind = header.metadata.get(_METADATA_KEY, "")
    metadata = f"{_METADATA_KEY} = {kind}"
    if kind and kind.lower() not in _PREDICTION:
        raise UserError(f"--base {header.path}: its {metadata} is not supported; only epsilon (noise) and v work")
    by_key, by_metadata = "v_pred" in header.shapes, _PREDICTION.get(kind.lower(), False)
    if "ztsnr" in header.shapes and not (by_key or by_metadata):
        raise UserError(
            f"--base {header.path}: its key ztsnr says zero terminal SNR, which needs v-prediction, but neither v_pred "
            "nor its metadata says that it predicts v; add the key v_pred if it does"
        )
    if kind and by_key and not by_metadata:
        return DeclaredSchedule(True, "ztsnr" in header.shapes, keys, metadata)
    return DeclaredSchedule(by_key or by_metadata, "ztsnr" in header.shapes, (*keys, *([metadata] if kind else [])))
