"""One-file checkpoints for tests: a diffusers folder in the layout SDXL and SD1.5 were first released in.

The way back is the library's `from_single_file`: this is its inverse, for any number of levels.
"""

import json
import re
from math import prod
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file

State = dict[str, torch.Tensor]
Renames = list[tuple[str, str]]


def write_single_file(folder: Path, target: Path) -> None:
    """A (tiny) SDXL or SD1.5 in the diffusers format -> `target`, one .safetensors in the original one."""
    state = {f"model.diffusion_model.{name}": tensor for name, tensor in _unet(folder / "unet").items()}
    state |= {f"first_stage_model.{name}": tensor for name, tensor in _vae(folder / "vae").items()}
    if (folder / "text_encoder_2").is_dir():
        widths = [_config(folder / name)["hidden_size"] for name in ("text_encoder", "text_encoder_2")]
        assert widths[0] != widths[1], "diffusers tells SDXL's text encoders apart by their width alone"
        state |= _clip(folder / "text_encoder", "conditioner.embedders.0.transformer.")
        state |= _open_clip(folder / "text_encoder_2", "conditioner.embedders.1.model.")
    else:
        state |= _clip(folder / "text_encoder", "cond_stage_model.transformer.")
    save_file({name: tensor.contiguous() for name, tensor in state.items()}, target, {"format": "pt"})


def write_empty_file(target: Path, shapes: dict[str, tuple[int, ...]], metadata: dict[str, str] | None = None) -> None:
    """A .safetensors file of half-precision zeros with these names and shapes, which takes no space on disk."""
    end = 0
    header: dict[str, object] = {"__metadata__": {"format": "pt", **(metadata or {})}}
    for name, shape in shapes.items():
        start, end = end, end + 2 * prod(shape)
        header[name] = {"dtype": "F16", "shape": shape, "data_offsets": [start, end]}
    text = json.dumps(header).encode()
    with target.open("wb") as stream:
        stream.write(len(text).to_bytes(8, "little") + text)
        stream.truncate(8 + len(text) + end)


def add_to_file(target: Path, tensors: State, metadata: dict[str, str]) -> None:
    """Add tensors and metadata to a .safetensors file."""
    save_file(load_file(target) | tensors, target, {"format": "pt", **metadata})


_UNET_PREFIX = "model.diffusion_model."
_CONTEXT = "transformer_blocks.0.attn2.to_k.weight"
SD15_SHAPES: dict[str, tuple[int, ...]] = {
    f"{_UNET_PREFIX}input_blocks.0.0.weight": (320, 4, 3, 3),
    f"{_UNET_PREFIX}input_blocks.2.1.{_CONTEXT}": (320, 768),
    "first_stage_model.decoder.conv_in.weight": (512, 4, 3, 3),
    "cond_stage_model.transformer.text_model.embeddings.position_embedding.weight": (77, 768),
}
"""What tells SD1.5 from other models: some names and shapes of the published file."""
SDXL_SHAPES: dict[str, tuple[int, ...]] = {
    f"{_UNET_PREFIX}input_blocks.0.0.weight": (320, 4, 3, 3),
    f"{_UNET_PREFIX}input_blocks.4.1.{_CONTEXT}": (640, 2048),
    f"{_UNET_PREFIX}label_emb.0.0.weight": (1280, 2816),
    "first_stage_model.decoder.conv_in.weight": (512, 4, 3, 3),
    "conditioner.embedders.0.transformer.text_model.embeddings.position_embedding.weight": (77, 768),
    "conditioner.embedders.1.model.positional_embedding": (77, 1280),
}
SHAPES = {"sd15": SD15_SHAPES, "sdxl": SDXL_SHAPES}


def _weights(folder: Path) -> State:
    files = [path for path in folder.glob("*.safetensors") if ".fp16." not in path.name]
    assert len(files) == 1, f"{folder}: one weights file expected, not {files}"
    return load_file(files[0])


def _config(folder: Path) -> dict:
    return json.loads((folder / "config.json").read_text())


def _renamed(name: str, renames: Renames) -> str:
    """Every rename in turn, where it fits whole parts of the name."""
    for old, new in renames:
        name = re.sub(rf"(?<![^.]){re.escape(old)}(?![^.])", new, name)
    return name


# The UNet


_UNET: Renames = [
    ("time_embedding.linear_1", "time_embed.0"),
    ("time_embedding.linear_2", "time_embed.2"),
    ("add_embedding.linear_1", "label_emb.0.0"),
    ("add_embedding.linear_2", "label_emb.0.2"),
    ("conv_in", "input_blocks.0.0"),
    ("conv_norm_out", "out.0"),
    ("conv_out", "out.2"),
    ("mid_block.resnets.0", "middle_block.0"),
    ("mid_block.attentions.0", "middle_block.1"),
    ("mid_block.resnets.1", "middle_block.2"),
]
_UNET_RESNET: Renames = [
    ("norm1", "in_layers.0"),
    ("conv1", "in_layers.2"),
    ("time_emb_proj", "emb_layers.1"),
    ("norm2", "out_layers.0"),
    ("conv2", "out_layers.3"),
    ("conv_shortcut", "skip_connection"),
]


def _unet(folder: Path) -> State:
    config = _config(folder)
    return {_unet_name(name, config): tensor for name, tensor in _weights(folder).items()}


def _unet_name(name: str, config: dict) -> str:
    """The original counts blocks through all levels: the stem, then each level's layers and its resampler."""
    if ".resnets." in name:
        name = _renamed(name, _UNET_RESNET)
    place = re.match(r"(down|up)_blocks\.(\d+)\.(resnets|attentions|\w+samplers)\.(\d+)\.", name)
    if not place:
        return _renamed(name, _UNET)
    level, layer, rest = int(place[2]), int(place[4]), name[place.end() :]
    within = {"resnets": 0, "attentions": 1}.get(place[3])
    layers = config["layers_per_block"]
    first = level * (layers + 1)
    if place[1] == "down":
        if within is None:
            return f"input_blocks.{1 + first + layers}.0.{_renamed(rest, [('conv', 'op')])}"
        return f"input_blocks.{1 + first + layer}.{within}.{rest}"
    if within is None:  # on the way up it shares a block with the level's last layer
        attends = config["up_block_types"][level].startswith("CrossAttn")
        return f"output_blocks.{first + layers}.{2 if attends else 1}.{rest}"
    return f"output_blocks.{first + layer}.{within}.{rest}"


# The autoencoder


_VAE: Renames = [
    ("conv_norm_out", "norm_out"),
    ("conv_shortcut", "nin_shortcut"),
    ("mid_block.resnets.0", "mid.block_1"),
    ("mid_block.attentions.0", "mid.attn_1"),
    ("mid_block.resnets.1", "mid.block_2"),
    ("down_blocks", "down"),
    ("resnets", "block"),
    ("downsamplers.0", "downsample"),
    ("upsamplers.0", "upsample"),
]
_VAE_ATTENTION: Renames = [
    ("group_norm", "norm"),
    ("to_q", "q"),
    ("to_k", "k"),
    ("to_v", "v"),
    ("to_out.0", "proj_out"),
]


def _vae(folder: Path) -> State:
    """The decoder's levels count from the finest; attention is made of 1x1 convolutions."""
    finest = len(_config(folder)["up_block_types"]) - 1
    original = {}
    for name, tensor in _weights(folder).items():
        attends = ".attentions." in name
        renamed = _renamed(name, _VAE_ATTENTION + _VAE if attends else _VAE)
        renamed = re.sub(r"up_blocks\.(\d+)", lambda level: f"up.{finest - int(level[1])}", renamed)
        original[renamed] = tensor[:, :, None, None] if attends and tensor.ndim == 2 else tensor
    return original


# The text encoders


_OPEN_CLIP: Renames = [
    ("embeddings.token_embedding", "token_embedding"),
    ("embeddings.position_embedding.weight", "positional_embedding"),
    ("encoder.layers", "transformer.resblocks"),
    ("layer_norm1", "ln_1"),
    ("layer_norm2", "ln_2"),
    ("mlp.fc1", "mlp.c_fc"),
    ("mlp.fc2", "mlp.c_proj"),
    ("self_attn", "attn"),
    ("final_layer_norm", "ln_final"),
]


def _clip(folder: Path, prefix: str) -> State:
    """As transformers wrote it then, with the position ids that its old versions saved."""
    state = _text_weights(folder)
    state["embeddings.position_ids"] = torch.arange(len(state["embeddings.position_embedding.weight"]))[None]
    return {f"{prefix}text_model.{name}": tensor for name, tensor in state.items()}


def _open_clip(folder: Path, prefix: str) -> State:
    """OpenCLIP's layout: q, k and v in one matrix; the projection is multiplied from the right."""
    state = _text_weights(folder)
    state |= {"logit_scale": torch.tensor(1.0), "text_projection": state.pop("text_projection.weight").T}
    for name in [name for name in state if ".q_proj." in name]:
        parts = [state.pop(name.replace(".q_proj.", f".{letter}_proj.")) for letter in "qkv"]
        state[name.replace(".q_proj.", ".in_proj_")] = torch.cat(parts)
    return {prefix + _renamed(name, _OPEN_CLIP): tensor for name, tensor in state.items()}


def _text_weights(folder: Path) -> State:
    """Named alike whether transformers wrote them with its `text_model.` in front or, since 5.6, without."""
    return {name.removeprefix("text_model."): tensor for name, tensor in _weights(folder).items()}
