"""The configs that ship build the published models: the same tensors, complete, by name and shape."""

import json
from functools import cache
from math import prod
from pathlib import Path

import pytest
import torch
from diffusers import AutoencoderKL, DDPMScheduler, UNet2DConditionModel
from safetensors.torch import load_file, save_file
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection

import retipair.models

CONFIGS = Path(retipair.models.__file__).parent / "configs"
PUBLISHED = Path(__file__).parent / "published"
POSITION_IDS = "text_model.embeddings.position_ids"

# Parameters and tensors
TOTALS = {
    ("sdxl", "unet"): (2_567_463_684, 1680),
    ("sdxl", "vae"): (83_653_863, 248),
    ("sdxl", "text_encoder"): (123_060_480, 196),
    ("sdxl", "text_encoder_2"): (694_659_840, 517),
    ("sd15", "unet"): (859_520_964, 686),
    ("sd15", "vae"): (83_653_863, 248),
    ("sd15", "text_encoder"): (123_060_480, 196),
}
COMPONENTS = sorted(TOTALS)

# Sizes of the .safetensors files on the hub
FILE_BYTES = {
    ("sdxl", "unet", "F32"): 10_270_077_736,
    ("sdxl", "unet", "F16"): 5_135_149_760,
    ("sdxl", "vae", "F32"): 334_643_268,
    ("sdxl", "vae", "F16"): 167_335_342,
    ("sdxl", "text_encoder", "F32"): 492_265_168,
    ("sdxl", "text_encoder", "F16"): 246_144_152,
    ("sdxl", "text_encoder_2", "F32"): 2_778_702_264,
    ("sdxl", "text_encoder_2", "F16"): 1_389_382_176,
    ("sd15", "unet", "F16"): 1_719_125_304,
    ("sd15", "vae", "F16"): 167_335_342,
    ("sd15", "text_encoder", "F16"): 246_144_864,
}


@cache
def published(system: str) -> dict[str, dict[str, list[int]]]:
    return json.loads((PUBLISHED / f"{system}.json").read_text())


def build(system: str, component: str) -> torch.nn.Module:
    """Build one full-size component from our config on the meta device."""
    folder = CONFIGS / system / component
    with torch.device("meta"):
        if component in ("unet", "vae"):
            kind = UNet2DConditionModel if component == "unet" else AutoencoderKL
            return kind.from_config(kind.load_config(folder))
        kind = CLIPTextModelWithProjection if component == "text_encoder_2" else CLIPTextModel
        return kind(CLIPTextConfig.from_pretrained(folder))


@pytest.mark.parametrize(("system", "component"), COMPONENTS)
def test_our_configs_build_the_published_models(system: str, component: str) -> None:
    ours = {name: list(tensor.shape) for name, tensor in build(system, component).state_dict().items()}
    expected = published(system)[component]
    if component == "text_encoder":  # transformers 5 flattened it; test_published_names_of_a_text_encoder_load
        ours = {f"text_model.{name.removeprefix('text_model.')}": shape for name, shape in ours.items()}
    assert ours == expected


@pytest.mark.parametrize(("system", "component"), COMPONENTS)
def test_the_lists_have_the_known_totals(system: str, component: str) -> None:
    tensors = published(system)[component]
    assert (sum(map(prod, tensors.values())), len(tensors)) == TOTALS[system, component]


@pytest.mark.parametrize(("system", "component", "dtype"), FILE_BYTES)
def test_the_lists_give_the_published_file_sizes(system: str, component: str, dtype: str) -> None:
    tensors = [(name, dtype, shape) for name, shape in published(system)[component].items()]
    if (system, component) == ("sd15", "text_encoder"):
        tensors.insert(0, (POSITION_IDS, "I64", [1, 77]))
    assert _file_bytes(tensors) == FILE_BYTES[system, component, dtype]


def _file_bytes(tensors: list[tuple[str, str, list[int]]]) -> int:
    """A .safetensors file: 8 bytes of length, a header padded to a multiple of 8, the data."""
    end = 0
    header: dict[str, dict] = {"__metadata__": {"format": "pt"}}
    for name, dtype, shape in tensors:
        start, end = end, end + prod(shape) * {"F16": 2, "F32": 4, "I64": 8}[dtype]
        header[name] = {"dtype": dtype, "shape": shape, "data_offsets": [start, end]}
    length = len(json.dumps(header, separators=(",", ":")))
    return 8 + -(-length // 8) * 8 + end


@pytest.mark.parametrize("system", ["sdxl", "sd15"])
def test_the_noise_schedule_is_the_published_one(system: str) -> None:
    """The published extreme sigmas of both models, 0.0292 and 14.6146."""
    alphas = DDPMScheduler.from_pretrained(CONFIGS / system, subfolder="scheduler").alphas_cumprod[[0, -1]]
    assert (1 / alphas - 1).sqrt().tolist() == pytest.approx([0.0292, 14.6146], abs=5e-5)


@pytest.mark.parametrize("kind", [CLIPTextModel, CLIPTextModelWithProjection])
def test_published_names_of_a_text_encoder_load(tmp_path: Path, kind: type) -> None:
    """`text_model.*`, with or without the position ids of old files: nothing missing, nothing unexpected."""
    torch.manual_seed(0)
    model = kind(CLIPTextConfig(vocab_size=9, hidden_size=8, intermediate_size=8, num_attention_heads=2))
    model.save_pretrained(tmp_path)
    file = tmp_path / "model.safetensors"
    bare = ("text_model.", "text_projection.")
    named = {n if n.startswith(bare) else f"text_model.{n}": t for n, t in load_file(file).items()}
    for extra in ({}, {POSITION_IDS: torch.arange(77)[None]}):
        save_file(named | extra, file, {"format": "pt"})
        loaded, report = kind.from_pretrained(tmp_path, output_loading_info=True)
        assert not any(report.values()), report
        assert_equal(loaded, model)


def test_old_attention_names_of_an_autoencoder_load(tmp_path: Path) -> None:
    """SD1.5's fp32 autoencoder was saved before diffusers renamed its attention."""
    torch.manual_seed(0)
    model = AutoencoderKL(block_out_channels=(8,), norm_num_groups=4)
    model.save_pretrained(tmp_path)
    file = tmp_path / "diffusion_pytorch_model.safetensors"
    old = {"to_q": "query", "to_k": "key", "to_v": "value", "to_out.0": "proj_attn"}
    state = load_file(file)
    for new, name in old.items():
        state = {key.replace(f"attentions.0.{new}.", f"attentions.0.{name}."): t for key, t in state.items()}
    assert sum(".proj_attn." in key for key in state) == 4
    save_file(state, file, {"format": "pt"})
    loaded, report = AutoencoderKL.from_pretrained(tmp_path, output_loading_info=True)
    assert not any(report.values()), report
    assert_equal(loaded, model)


def assert_equal(actual: torch.nn.Module, expected: torch.nn.Module) -> None:
    assert set(actual.state_dict()) == set(expected.state_dict())
    for name, tensor in expected.state_dict().items():
        assert torch.equal(actual.state_dict()[name], tensor), name
