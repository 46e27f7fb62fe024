"""The header of a single file gives its model family and prediction type; other models are refused by name."""

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from diffusers import DiffusionPipeline
from safetensors.torch import load_file, save_file

from refusals import raises_setting
from retipair.models import hub
from retipair.models.base import open_base
from retipair.models.families import CONFIGS, SAMPLERS
from retipair.models.single_file import NOTHING_DECLARED
from retipair.runtime.errors import UserError
from single_file import SD15_SHAPES, SDXL_SHAPES, SHAPES, write_empty_file, write_single_file

Shapes = dict[str, tuple[int, ...]]
UNET = "model.diffusion_model."
STEM = f"{UNET}input_blocks.0.0.weight"
SD15_CONTEXT = f"{UNET}input_blocks.2.1.transformer_blocks.0.attn2.to_k.weight"
SDXL_CONTEXT = f"{UNET}input_blocks.4.1.transformer_blocks.0.attn2.to_k.weight"
REFINER = {
    **{name: shape for name, shape in SDXL_SHAPES.items() if not name.startswith("conditioner.")},
    SDXL_CONTEXT: (768, 1280),
    "conditioner.embedders.0.model.positional_embedding": (77, 1280),
}


def without(prefix: str, shapes: Shapes) -> Shapes:
    return {name: shape for name, shape in shapes.items() if not name.startswith(prefix)}


OTHERS: dict[str, tuple[Shapes, str]] = {  # tensor names and shapes as published -> what the refusal says
    "sd15 inpainting": (SD15_SHAPES | {STEM: (320, 9, 3, 3)}, "inpainting"),
    "sdxl inpainting": (SDXL_SHAPES | {STEM: (320, 9, 3, 3)}, "inpainting"),
    "sd2 inpainting": (SD15_SHAPES | {STEM: (320, 9, 3, 3), SD15_CONTEXT: (320, 1024)}, "inpainting"),
    "instruct-pix2pix": (SD15_SHAPES | {STEM: (320, 8, 3, 3)}, "InstructPix2Pix"),
    "depth": (SD15_SHAPES | {STEM: (320, 5, 3, 3), SD15_CONTEXT: (320, 1024)}, "depth"),
    "upscaler": (SD15_SHAPES | {STEM: (256, 7, 3, 3), SD15_CONTEXT: (512, 1024)}, "upscaler"),
    "other channels": (SD15_SHAPES | {STEM: (320, 6, 3, 3)}, "takes 6 channels"),
    "sd2": (SD15_SHAPES | {SD15_CONTEXT: (320, 1024)}, "Stable Diffusion 2"),
    "other context": (SD15_SHAPES | {SD15_CONTEXT: (320, 640)}, "text features 640 wide"),
    "no context": (without(SD15_CONTEXT, SD15_SHAPES), "text features 0 wide"),
    "refiner": (REFINER, "the SDXL refiner"),
    "refiner, without its text encoder": (without("conditioner.", REFINER), "the SDXL refiner"),
    "svd": (
        SD15_SHAPES | {STEM: (320, 8, 3, 3), f"{UNET}input_blocks.1.0.time_stack.emb_layers.1.bias": (320,)},
        "Stable Video Diffusion",
    ),
    "playground": (SDXL_SHAPES | {"edm_mean": (1, 4, 1, 1), "edm_std": (1, 4, 1, 1)}, "Playground"),
    "cosxl": (SDXL_SHAPES | {"edm_vpred.sigma_max": (), "edm_vpred.sigma_min": ()}, "CosXL"),
    "controlnet": ({"control_model.time_embed.0.weight": (1280, 320)}, "a ControlNet"),
    "sd3": ({f"{UNET}joint_blocks.0.context_block.adaLN_modulation.1.bias": (9216,)}, "Stable Diffusion 3"),
    "sd3, bare": ({"joint_blocks.0.context_block.adaLN_modulation.1.bias": (9216,)}, "Stable Diffusion 3"),
    "flux": ({"double_blocks.0.img_attn.norm.key_norm.scale": (128,)}, "Flux"),
    "flux, in a checkpoint": ({f"{UNET}double_blocks.0.img_attn.norm.key_norm.scale": (128,)}, "Flux"),
    "stable cascade": ({"clip_txt_mapper.weight": (2048, 1280)}, "Stable Cascade"),
    "kohya lora": ({"lora_unet_down_blocks_0_attentions_0_proj_in.lora_down.weight": (4, 320)}, "a LoRA"),
    "peft lora": ({"base_model.model.mid_block.attentions.0.proj_in.lora_A.weight": (4, 320)}, "a LoRA"),
    "diffusers lora": ({"unet.mid_block.attentions.0.proj_in.lora.down.weight": (4, 320)}, "a LoRA"),
    "vae": ({"decoder.conv_in.weight": (512, 4, 3, 3)}, "an autoencoder (VAE) alone"),
    "vae, as in a checkpoint": ({"first_stage_model.decoder.conv_in.weight": (512, 4, 3, 3)}, "(VAE) alone"),
    "text encoder": ({"text_model.embeddings.position_embedding.weight": (77, 768)}, "a text encoder alone"),
    "unet of a folder": ({"down_blocks.0.resnets.0.conv1.weight": (320, 320, 3, 3)}, "UNet of a diffusers folder"),
    "something else": ({"embeddings.weight": (3, 3)}, "no SDXL or SD1.5 base"),
    "nothing": ({}, "no SDXL or SD1.5 base"),
    "sd15 without autoencoder": (without("first_stage_model.", SD15_SHAPES), "has no autoencoder"),
    "sd15 without text encoder": (without("cond_stage_model.", SD15_SHAPES), "has no text encoder"),
    "sdxl with one text encoder": (without("conditioner.embedders.1.", SDXL_SHAPES), "has no text encoder"),
    "a stem without channels": (SD15_SHAPES | {STEM: (320,)}, "cannot be loaded"),
}


@pytest.mark.parametrize("kind", OTHERS)
def test_a_file_of_another_family_is_refused_by_what_it_is(kind: str, tmp_path: Path) -> None:
    shapes, words = OTHERS[kind]
    path = tmp_path / "model.safetensors"
    write_empty_file(path, shapes)
    with pytest.raises(UserError) as refusal:
        open_base(str(path))
    assert words in str(refusal.value)
    assert str(path) in str(refusal.value)


FOLDERS: dict[str, tuple[str, str, dict[str, object], str]] = {  # system, file, changes -> what the refusal says
    "sd15 inpainting": ("sd15", "unet/config.json", {"in_channels": 9}, "an inpainting model"),
    "sdxl inpainting": ("sdxl", "unet/config.json", {"in_channels": 9}, "an inpainting model"),
    "instruct-pix2pix": ("sd15", "unet/config.json", {"in_channels": 8}, "InstructPix2Pix"),
    "sd2": ("sd15", "unet/config.json", {"cross_attention_dim": 1024}, "Stable Diffusion 2"),
    "refiner": ("sdxl", "unet/config.json", {"cross_attention_dim": 1280}, "the SDXL refiner"),
    "other context": ("sdxl", "unet/config.json", {"cross_attention_dim": 77}, "77 wide"),
    "nonsense": ("sd15", "unet/config.json", {"cross_attention_dim": [1, 2]}, "cannot be loaded"),
    "flux": ("sd15", "model_index.json", {"_class_name": "FluxPipeline", "unet": None}, "a FluxPipeline"),
}


@pytest.mark.parametrize("kind", FOLDERS)
def test_a_folder_of_another_family_is_refused_by_what_it_is(kind: str, tmp_path: Path) -> None:
    system, name, changes, words = FOLDERS[kind]
    folder = tmp_path / "base"
    shutil.copytree(CONFIGS / system, folder)
    values = json.loads((folder / name).read_text()) | changes
    (folder / name).write_text(json.dumps({key: value for key, value in values.items() if value is not None}))
    with pytest.raises(UserError) as refusal:
        open_base(str(folder))
    assert words in str(refusal.value)
    assert str(folder) in str(refusal.value)


def test_a_hub_id_of_another_family_is_refused_before_its_weights_are_downloaded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "model_index.json").write_text('{"_class_name": "FluxPipeline", "transformer": ["diffusers", "x"]}')
    asked = []
    monkeypatch.setattr(hub, "snapshot_download", lambda source, **options: asked.append(options) or tmp_path)
    monkeypatch.setattr(DiffusionPipeline, "download", lambda *_, **__: pytest.fail("downloads the weights"))
    with raises_setting("base"):
        open_base("somebody/flux")
    assert asked[0]["allow_patterns"] == ["model_index.json", "*/config.json"]


@pytest.mark.parametrize("part", ["model.diffusion_model.middle_block.", "first_stage_model.decoder.mid.", ".0.mlp."])
def test_a_file_that_lacks_tensors_is_refused_when_they_are_loaded(
    part: str, system: str, base_folder: Callable[[str], Path], tmp_path: Path
) -> None:
    """Distilled models, for example, have fewer blocks."""
    path, folder = tmp_path / "one.safetensors", base_folder(system)
    write_single_file(folder, path)
    remaining = {name: tensor for name, tensor in load_file(path).items() if part not in name}
    assert len(remaining) < len(load_file(path))
    save_file(remaining, path, {"format": "pt"})
    base = open_base(str(path), tokenizer=folder, configs=folder)
    with raises_setting("base"):
        base.pipeline()


DECLARED: dict[str, tuple[tuple[str, ...], str | None, tuple[str, bool]]] = {  # keys, metadata -> (predicts, zero SNR)
    "nothing": ((), None, ("epsilon", False)),
    "v_pred": (("v_pred",), None, ("v_prediction", False)),
    "v_pred and ztsnr": (("v_pred", "ztsnr"), None, ("v_prediction", True)),
    "metadata v": ((), "v", ("v_prediction", False)),
    "metadata v_prediction": ((), "v_prediction", ("v_prediction", False)),
    "metadata in capitals": ((), "V", ("v_prediction", False)),
    "metadata epsilon": ((), "epsilon", ("epsilon", False)),
    "metadata eps": ((), "eps", ("epsilon", False)),
    "metadata v and ztsnr": (("ztsnr",), "v", ("v_prediction", True)),
    "both": (("v_pred",), "v", ("v_prediction", False)),
    "the key outweighs metadata": (("v_pred", "ztsnr"), "epsilon", ("v_prediction", True)),
}


@pytest.mark.parametrize("kind", DECLARED)
@pytest.mark.parametrize("sampler", SAMPLERS)
def test_what_a_file_declares_is_what_every_scheduler_does(
    kind: str, sampler: str, system: str, tmp_path: Path
) -> None:
    keys, metadata, (predicts, zero) = DECLARED[kind]
    path = tmp_path / "model.safetensors"
    more = {"modelspec.prediction_type": metadata} if metadata else {}
    write_empty_file(path, SHAPES[system] | dict.fromkeys(keys, (0,)), more)
    base = open_base(str(path))
    config = base.scheduler(sampler).config
    assert (config.prediction_type, config.rescale_betas_zero_snr) == (predicts, zero)
    assert (config.timestep_spacing == "trailing") == zero
    assert all(key in base.prediction for key in keys)
    assert base.prediction.startswith(predicts)
    assert ("zero terminal SNR" in base.prediction) == zero


@pytest.mark.parametrize(
    ("keys", "metadata", "words"),
    [
        (("ztsnr",), None, "ztsnr"),
        (("ztsnr",), "epsilon", "ztsnr"),
        ((), "sample", "modelspec.prediction_type = sample"),
        (("v_pred",), "flow", "modelspec.prediction_type = flow"),
    ],
)
def test_a_schedule_that_cannot_be_is_refused(
    keys: tuple[str, ...], metadata: str | None, words: str, tmp_path: Path
) -> None:
    path = tmp_path / "model.safetensors"
    more = {"modelspec.prediction_type": metadata} if metadata else {}
    write_empty_file(path, SD15_SHAPES | dict.fromkeys(keys, (0,)), more)
    with pytest.raises(UserError) as refusal:
        open_base(str(path))
    assert words in str(refusal.value)
    assert str(path) in str(refusal.value)


def test_what_a_file_declares_is_part_of_its_fingerprint(system: str, tmp_path: Path) -> None:
    """An adapter differs from one of the same file whose keys were ignored."""
    path = tmp_path / "one.safetensors"
    write_empty_file(path, SHAPES[system] | {"v_pred": (0,)})
    base = open_base(str(path))
    assert base.fingerprint() != replace(base, declared=NOTHING_DECLARED).fingerprint()
