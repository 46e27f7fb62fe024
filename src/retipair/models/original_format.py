"""Rename the tensors of a base as in the original single files of SDXL and SD1.5, the inverse of `from_single_file`.

The original format is that of sd_xl_base_1.0.safetensors and v1-5-pruned.safetensors: one file for UNet, autoencoder
and text encoders. Programs such as ComfyUI read it, and kohya's sd-scripts name the layers of an SDXL LoRA after it.
"""

import re
from collections.abc import Mapping
from typing import Any

import torch

from retipair.models.single_file import UNET, VAE

State = dict[str, torch.Tensor]
_Renames = dict[str, str]

_UNET: _Renames = {
    "time_embedding.linear_1": "time_embed.0",
    "time_embedding.linear_2": "time_embed.2",
    "add_embedding.linear_1": "label_emb.0.0",
    "add_embedding.linear_2": "label_emb.0.2",
    "conv_in": "input_blocks.0.0",
    "conv_norm_out": "out.0",
    "conv_out": "out.2",
    "mid_block.resnets.0": "middle_block.0",
    "mid_block.attentions.0": "middle_block.1",
    "mid_block.resnets.1": "middle_block.2",
}
_RESNET: _Renames = {
    "norm1": "in_layers.0",
    "conv1": "in_layers.2",
    "time_emb_proj": "emb_layers.1",
    "norm2": "out_layers.0",
    "conv2": "out_layers.3",
    "conv_shortcut": "skip_connection",
}
_VAE: _Renames = {
    "conv_norm_out": "norm_out",
    "conv_shortcut": "nin_shortcut",
    "mid_block.resnets.0": "mid.block_1",
    "mid_block.attentions.0": "mid.attn_1",
    "mid_block.resnets.1": "mid.block_2",
    "down_blocks": "down",
    "resnets": "block",
    "downsamplers.0": "downsample",
    "upsamplers.0": "upsample",
}
_VAE_ATTENTION: _Renames = {"group_norm": "norm", "to_q": "q", "to_k": "k", "to_v": "v", "to_out.0": "proj_out"}
_OPEN_CLIP: _Renames = {
    "embeddings.token_embedding": "token_embedding",
    "embeddings.position_embedding.weight": "positional_embedding",
    "encoder.layers": "transformer.resblocks",
    "layer_norm1": "ln_1",
    "layer_norm2": "ln_2",
    "mlp.fc1": "mlp.c_fc",
    "mlp.fc2": "mlp.c_proj",
    "self_attn": "attn",
    "final_layer_norm": "ln_final",
}


def unet_name(name: str, config: Mapping[str, Any]) -> str:
    """Return the original name of a tensor or layer of the UNet, without `model.diffusion_model.`.

    The original format numbers the blocks through all levels: the first convolution, then the layers of each level and
    its down- or upsampler. The upsampler is in the block of the last layer of its level.

    config: the config of the UNet.
    """
    if ".resnets." in name:
        name = _renamed(name, _RESNET)
    place = re.match(r"(down|up)_blocks\.(\d+)\.(resnets|attentions|\w+samplers)\.(\d+)\.", name)
    if not place:
        return _renamed(name, _UNET)
    direction, level, kind, layer = place[1], int(place[2]), place[3], int(place[4])
    rest, layers = name[place.end() :], config["layers_per_block"]
    first = level * (layers + 1)
    within = {"resnets": 0, "attentions": 1}.get(kind)
    if direction == "down":
        if within is None:
            return f"input_blocks.{1 + first + layers}.0.{_renamed(rest, {'conv': 'op'})}"
        return f"input_blocks.{1 + first + layer}.{within}.{rest}"
    if within is None:
        attends = config["up_block_types"][level].startswith("CrossAttn")
        return f"output_blocks.{first + layers}.{2 if attends else 1}.{rest}"
    return f"output_blocks.{first + layer}.{within}.{rest}"


def unet_state(state: Mapping[str, torch.Tensor], config: Mapping[str, Any]) -> State:
    """Return the tensors of a UNet with their original names."""
    return {UNET + unet_name(name, config): tensor for name, tensor in state.items()}


def vae_state(state: Mapping[str, torch.Tensor], config: Mapping[str, Any]) -> State:
    """Return the tensors of an autoencoder with their original names and shapes.

    The original decoder numbers its levels from the finest, and its attention consists of 1x1 convolutions.

    config: the config of the autoencoder.
    """
    finest = len(config["up_block_types"]) - 1
    original = {}
    for name, tensor in state.items():
        attends = ".attentions." in name
        renamed = _renamed(name, _VAE_ATTENTION | _VAE if attends else _VAE)
        renamed = re.sub(r"up_blocks\.(\d+)", lambda level: f"up.{finest - int(level[1])}", renamed)
        is_matrix = attends and tensor.ndim == 2
        original[VAE + renamed] = tensor[:, :, None, None] if is_matrix else tensor
    return original


def clip_state(state: Mapping[str, torch.Tensor], prefix: str) -> State:
    """Return the tensors of a CLIP text encoder under the names in the original files, with their position ids.

    prefix: the prefix of the text encoder in the file, for example "cond_stage_model.transformer.".
    """
    own = _text_weights(state)
    own["embeddings.position_ids"] = torch.arange(len(own["embeddings.position_embedding.weight"]))[None]
    return {f"{prefix}text_model.{name}": tensor for name, tensor in own.items()}


def open_clip_state(state: Mapping[str, torch.Tensor], prefix: str) -> State:
    """Return the tensors of a CLIP text encoder in the format of OpenCLIP.

    In this format, the matrices of query, key and value are one matrix, and the projection is transposed.

    prefix: the prefix of the text encoder in the file, for example "conditioner.embedders.1.model.".
    """
    own = _text_weights(state)
    own |= {"logit_scale": torch.tensor(1.0), "text_projection": own.pop("text_projection.weight").T}
    for name in [name for name in own if ".q_proj." in name]:
        parts = [own.pop(name.replace(".q_proj.", f".{letter}_proj.")) for letter in "qkv"]
        own[name.replace(".q_proj.", ".in_proj_")] = torch.cat(parts)
    return {prefix + _renamed(name, _OPEN_CLIP): tensor for name, tensor in own.items()}


def _text_weights(state: Mapping[str, torch.Tensor]) -> State:
    """Return the tensors of a text encoder without `text_model.`, which transformers before 5.6 put before names."""
    return {name.removeprefix("text_model."): tensor for name, tensor in state.items()}


def _renamed(name: str, renames: _Renames) -> str:
    """Apply all renames in turn, each only to complete parts of the name."""
    for old, new in renames.items():
        name = re.sub(rf"(?<![^.]){re.escape(old)}(?![^.])", new, name)
    return name
