"""One-file checkpoints for tests: a diffusers folder in the layout SDXL and SD1.5 were first released in.

The way back is the library's `from_single_file`: this is its inverse, for any number of levels.
"""

import json
from math import prod
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file

from retipair.models.original_format import clip_state, open_clip_state, unet_state, vae_state

State = dict[str, torch.Tensor]


def write_single_file(folder: Path, target: Path) -> None:
    """A (tiny) SDXL or SD1.5 in the diffusers format -> `target`, one .safetensors in the original one."""
    state = unet_state(_weights(folder / "unet"), _config(folder / "unet"))
    state |= vae_state(_weights(folder / "vae"), _config(folder / "vae"))
    if (folder / "text_encoder_2").is_dir():
        widths = [_config(folder / name)["hidden_size"] for name in ("text_encoder", "text_encoder_2")]
        assert widths[0] != widths[1], "diffusers tells SDXL's text encoders apart by their width alone"
        state |= clip_state(_weights(folder / "text_encoder"), "conditioner.embedders.0.transformer.")
        state |= open_clip_state(_weights(folder / "text_encoder_2"), "conditioner.embedders.1.model.")
    else:
        state |= clip_state(_weights(folder / "text_encoder"), "cond_stage_model.transformer.")
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
