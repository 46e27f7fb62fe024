"""Convert adapters to and from the LoRA files of other programs: kohya's sd-scripts, ComfyUI, diffusers and PEFT.

A layer of a LoRA has two matrices, A (rank, in) and B (out, rank). It adds `scale B A` to the weight of the layer, with
a scale of alpha / rank, or alpha / sqrt(rank) for rsLoRA (Kalajdzievski 2023, arXiv 2312.03732). The formats differ in
the names of the tensors and in the place of alpha:

- *PEFT*: `base_model.model.LAYER.lora_A.weight` and `.lora_B.weight`; alpha and rank are in adapter_config.json.
- *diffusers*: `unet.LAYER.lora_A.weight` and `.lora_B.weight`, or older names; alpha and rank are in the metadata.
- *kohya*: `lora_unet_LAYER.lora_down.weight`, `.lora_up.weight` and `.alpha`, with underscores for the dots in LAYER.
  The scale is always alpha / rank. For SDXL, LAYER is a name of the original format (`input_blocks_4_1_...`), otherwise
  a name of diffusers.
"""

import json
import re
from collections.abc import Mapping, Sequence
from copy import copy
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from diffusers import UNet2DConditionModel as UNet
from diffusers.utils import convert_unet_state_dict_to_peft
from peft import LoraConfig
from safetensors import safe_open
from safetensors.torch import load_file
from torch import nn

from retipair.models.base import Base
from retipair.models.families import ModelFamily
from retipair.models.original_format import State, unet_name
from retipair.models.tensor_files import write_tensors
from retipair.runtime.errors import FileError

KOHYA_PREFIX = "lora_unet_"
PEFT_PREFIX = "base_model.model."
PEFT_WEIGHTS = "adapter_model.safetensors"
DIFFUSERS_PREFIX = "unet."
_DIFFUSERS_METADATA = "lora_adapter_metadata"
_LARGEST_ALPHA = 1e36
"""With it, the alpha of a kohya file made from rsLoRA, alpha x sqrt(rank), is still finite in float32."""
_TENSOR_NAME = re.compile(r"(.+)\.lora_(?:A\.weight|B\.weight|magnitude_vector)")
_REFUSED = {  # part of a tensor name -> what the file is
    "lora_te": "also changes the text encoders, which retipair does not; train it for the UNet alone",
    "text_encoder": "also changes the text encoders, which retipair does not; train it for the UNet alone",
    "dora_scale": "is a DoRA in kohya's format, which programs read in different ways; merge it into its base",
    "hada_w1_a": "is a LoHa; train a LoRA instead",
    "lokr_w": "is a LoKr; train a LoRA instead",
    "oft_": "is an OFT adapter; train a LoRA instead",
    "lora_mid": "has Tucker decompositions, which are not supported; train it without them",
}


@dataclass(frozen=True)
class Lora:
    """LoRA weights for a UNet, with PEFT's tensor names: `LAYER.lora_A.weight` and `LAYER.lora_B.weight`."""

    tensors: State
    config: LoraConfig


def kohya_name(layer: str, unet_config: Mapping[str, Any], family: ModelFamily) -> str:
    """Return the name of a layer of the UNet in kohya's files."""
    name = unet_name(layer, unet_config) if family.kohya_original_names else layer
    return _flat(name)


def _flat(layer: str) -> str:
    return KOHYA_PREFIX + layer.replace(".", "_")


def to_kohya(lora: Lora, unet_config: Mapping[str, Any], family: ModelFamily) -> State:
    """Return the tensors of a LoRA, which is no DoRA, as kohya's sd-scripts write them; their effect is the same."""
    alpha = torch.tensor(_scale(lora.config) * lora.config.r)
    state: State = {}
    for name, tensor in lora.tensors.items():
        layer, _, matrix = name.rpartition(".lora_")
        key = kohya_name(layer, unet_config, family)
        state[f"{key}.lora_{'down' if matrix == 'A.weight' else 'up'}.weight"] = tensor
        state[f"{key}.alpha"] = alpha.clone()
    return state


def write_peft(folder: Path, lora: Lora, metadata: Mapping[str, str]) -> None:
    """Write the two files of PEFT into a folder: adapter_model.safetensors and adapter_config.json."""
    _with_sorted_layers(lora.config).save_pretrained(str(folder))
    tensors = {PEFT_PREFIX + name: tensor for name, tensor in lora.tensors.items()}
    write_tensors(folder / PEFT_WEIGHTS, tensors, {"format": "pt", **metadata})


def _with_sorted_layers(config: LoraConfig) -> LoraConfig:
    """Return the config with a sorted list of layers. PEFT has a set, whose order differs between processes."""
    config = copy(config)
    config.target_modules = sorted(config.target_modules or [])
    return config


def write_diffusers(path: Path, lora: Lora, base: Base, metadata: Mapping[str, str]) -> None:
    """Write a file that `load_lora_weights` of diffusers pipelines reads.

    It has PEFT's tensor names with the prefix `unet.`. diffusers' `convert_state_dict_to_diffusers` is not used: it
    renames only the tensors of `to_q/k/v/out`, and `load_lora_weights` ignores a part of the tensors if a file mixes
    renamed tensors with others.
    """
    pipeline: Any = base.family.pipeline
    settings = _with_sorted_layers(lora.config).to_dict()
    pipeline.save_lora_weights(path.parent, lora.tensors, weight_name=path.name, unet_lora_adapter_metadata=settings)
    with safe_open(path, framework="pt") as file:
        own = file.metadata() or {}
    write_tensors(path, load_file(path), {**own, **metadata})


def write_kohya(path: Path, lora: Lora, base: Base, metadata: Mapping[str, str]) -> None:
    """Write a file that ComfyUI, Forge and kohya's sd-scripts read, with the metadata that they show.

    The LoRA must not be a DoRA: programs normalise the magnitudes of a DoRA along different axes.
    """
    assert not lora.config.use_dora
    state = to_kohya(lora, base.unet_config, base.family)
    write_tensors(path, state, {"format": "pt", **_kohya_metadata(lora.config, base), **metadata})


def _kohya_metadata(config: LoraConfig, base: Base) -> dict[str, str]:
    predicts_v = base.schedule.prediction_type == "v_prediction"
    return {
        "ss_network_module": "networks.lora",
        "ss_network_dim": str(config.r),
        "ss_network_alpha": f"{_scale(config) * config.r:g}",
        "ss_base_model_version": base.family.kohya_version,
        "ss_v2": "False",
        "modelspec.sai_model_spec": "1.0.0",
        "modelspec.architecture": base.family.lora_architecture,
        "modelspec.implementation": "diffusers",
        "modelspec.title": "retipair adapter",
        "modelspec.description": "CF and FA of one eye in one joint image. Synthetic; not for clinical use.",
        "modelspec.prediction_type": "v" if predicts_v else "epsilon",
    }


def from_file(path: Path, tensors: State, metadata: Mapping[str, str], unet: UNet, family: ModelFamily) -> Lora:
    """Convert the tensors of a file of kohya or diffusers.

    metadata: the metadata of the file.
    unet: the UNet of the base, whose layers the file must name.
    Raises UserError, naming the file, if it is no LoRA for this UNet, or if its layers are damaged or differ in rank or
    alpha.
    """
    _check_kind(path, tensors)
    if any(name.startswith(KOHYA_PREFIX) for name in tensors):
        state, alphas = _from_kohya(path, tensors, unet, family)
        settings: Mapping[str, Any] = {}
    else:
        state, alphas = _from_diffusers(path, tensors)
        settings = _diffusers_settings(metadata)
    if settings.get("rank_pattern") or settings.get("alpha_pattern"):
        raise FileError(path, "its layers have different ranks or alphas; use a LoRA with one for all layers")
    if len(state) != sum(not name.endswith(".alpha") for name in tensors):
        raise FileError(path, "has the tensors of a layer twice, under two names; choose another file")
    return Lora(state, _config(path, state, check_layers(path, state, unet), alphas, settings))


def check_layers(path: Path, state: State, unet: UNet) -> int:
    """Return the rank of a LoRA with PEFT's tensor names, which is the same for all layers.

    Raises UserError, naming the file `path` and the first wrong layer, unless each layer is in the UNet and has two
    matrices, A (rank, in) and B (out, rank), both with two more axes for a convolution.
    """
    layers = set()
    for name in sorted(state):
        match = _TENSOR_NAME.fullmatch(name)
        if not match:
            raise FileError(path, f"its tensor {name} is unknown; choose another file")
        layers.add(match[1])
    known = {name for name, _ in unet.named_modules()}
    if unknown := sorted(layers - known):
        raise _unknown_layer(path, unknown[0])
    return _only(path, "ranks", sorted({_rank(path, state, layer) for layer in sorted(layers)}))


def _rank(path: Path, state: State, layer: str) -> int:
    down, up = (state.get(f"{layer}.lora_{matrix}.weight", torch.empty(())) for matrix in "AB")
    if down.ndim not in (2, 4) or up.ndim != down.ndim or not down.shape[0] or up.shape[1] != down.shape[0]:
        problem = "does not have two matrices of equal ranks, down (rank, in) and up (out, rank)"
        raise FileError(path, f"its layer {layer} {problem}; use another checkpoint")
    return down.shape[0]


def _unknown_layer(path: Path, layer: str) -> FileError:
    return FileError(path, f"its layer {layer} is not in this base; with --base, pass the base it was trained on")


def _check_kind(path: Path, tensors: Mapping[str, torch.Tensor]) -> None:
    for part, problem in _REFUSED.items():
        if any(part in name for name in tensors):
            raise FileError(path, f"{problem}, or choose another file")
    if not any("lora" in name for name in tensors):
        raise FileError(path, "contains no LoRA; choose another file")


def _from_kohya(path: Path, tensors: State, unet: UNet, family: ModelFamily) -> tuple[State, dict[str, float]]:
    """Return the tensors with PEFT's names, and the alpha of each layer.

    Some programs write diffusers' names for SDXL too, so these are always accepted.
    """
    layers = [name for name, module in unet.named_modules() if isinstance(module, nn.Linear | nn.Conv2d)]
    names = {_flat(layer): layer for layer in layers}
    names |= {kohya_name(layer, unet.config, family): layer for layer in layers}
    matrices = {"lora_down.weight": "lora_A.weight", "lora_up.weight": "lora_B.weight"}
    state: State = {}
    alphas: dict[str, float] = {}
    for name, tensor in tensors.items():
        key, _, kind = name.partition(".")
        if key not in names:
            raise _unknown_layer(path, key)
        if kind == "alpha":
            alphas[names[key]] = _number(path, name, tensor)
        elif kind in matrices:
            state[f"{names[key]}.{matrices[kind]}"] = tensor
        else:
            raise FileError(path, f"its tensor {name} is unknown; choose another file")
    return state, alphas


def _from_diffusers(path: Path, tensors: State) -> tuple[State, dict[str, float]]:
    """Return the tensors with PEFT's names, and the alpha of each layer for which the file has one."""
    prefix = next((p for p in (DIFFUSERS_PREFIX, PEFT_PREFIX) if all(name.startswith(p) for name in tensors)), None)
    if prefix is None:
        raise FileError(path, "has tensor names that are neither kohya's nor diffusers'; choose another file")
    if prefix == PEFT_PREFIX:
        raise FileError(path, "PEFT keeps the rank and alpha in adapter_config.json; pass the folder of both files")
    state = {name.removeprefix(prefix): tensor for name, tensor in tensors.items()}
    alphas = {
        name.removesuffix(".alpha"): _number(path, name, state.pop(name))
        for name in list(state)
        if name.endswith(".alpha")
    }
    return convert_unet_state_dict_to_peft(state), alphas


def _diffusers_settings(metadata: Mapping[str, str]) -> dict[str, Any]:
    """Return the settings that diffusers wrote into the metadata, with PEFT's names; {} if there are none."""
    try:
        values = json.loads(metadata.get(_DIFFUSERS_METADATA, "{}"))
    except (ValueError, RecursionError):
        return {}
    if not isinstance(values, dict):
        return {}
    prefix = DIFFUSERS_PREFIX
    return {name.removeprefix(prefix): value for name, value in values.items() if name.startswith(prefix)}


def _config(
    path: Path, state: State, rank: int, alphas: Mapping[str, float], settings: Mapping[str, Any]
) -> LoraConfig:
    """Return PEFT's config of a LoRA whose layers have one alpha; without an alpha, it is the rank."""
    alpha = settings.get("lora_alpha")
    if type(alpha) not in (int, float):
        alpha = _only(path, "alphas", sorted(set(alphas.values())) or [rank])
    if not is_alpha(alpha):
        raise FileError(path, f"its alpha is NaN or larger than {_LARGEST_ALPHA:g}; choose another file")
    layers = sorted({name.rpartition(".lora_")[0] for name in state})
    dora = settings.get("use_dora") is True or any("lora_magnitude_vector" in name for name in state)
    rslora = settings.get("use_rslora") is True
    return LoraConfig(r=rank, lora_alpha=alpha, target_modules=layers, use_dora=dora, use_rslora=rslora)


def is_alpha(value: Any) -> bool:
    """Return whether a value of JSON is an alpha with which the scale of the LoRA is finite."""
    return type(value) in (int, float) and abs(value) <= _LARGEST_ALPHA


def _number(path: Path, name: str, tensor: torch.Tensor) -> float:
    if tensor.numel() != 1:
        raise FileError(path, f"its tensor {name} is not a single number; choose another file")
    return float(tensor)


def _only(path: Path, what: str, values: Sequence[float]) -> Any:
    if len(values) != 1:
        found = ", ".join(f"{value:g}" for value in values) or "none"
        raise FileError(path, f"its layers have different {what} ({found}); use a LoRA with one for all layers")
    return values[0]


def _scale(config: LoraConfig) -> float:
    return config.lora_alpha / (config.r**0.5 if config.use_rslora else config.r)
