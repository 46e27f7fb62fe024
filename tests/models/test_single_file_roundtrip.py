"""What `write_single_file` writes, the library's `from_single_file` reads back bit for bit, offline."""

from pathlib import Path

import pytest
import torch
from diffusers import (
    AutoencoderKL,
    EulerDiscreteScheduler,
    PNDMScheduler,
    StableDiffusionPipeline,
    StableDiffusionXLPipeline,
    UNet2DConditionModel,
)
from safetensors.torch import load_file
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection

from retipair.models.byte_tokenizer import byte_tokenizer
from single_file import write_single_file

TEXT = {
    "vocab_size": 514,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "bos_token_id": 0,
    "eos_token_id": 2,
}


def unet(attends: list[bool], layers: int, **options: object) -> UNet2DConditionModel:
    down = ["CrossAttnDownBlock2D" if level else "DownBlock2D" for level in attends]
    return UNet2DConditionModel(
        sample_size=8,
        block_out_channels=[32 * (1 + level) for level in range(len(attends))],
        down_block_types=down,
        up_block_types=[kind.replace("Down", "Up") for kind in reversed(down)],
        layers_per_block=layers,
        **options,
    )


def vae(levels: int) -> AutoencoderKL:
    return AutoencoderKL(
        block_out_channels=[32 * (1 + level) for level in range(levels)],
        down_block_types=["DownEncoderBlock2D"] * levels,
        up_block_types=["UpDecoderBlock2D"] * levels,
        norm_num_groups=16,
    )


def text_config(width: int, projection: int) -> CLIPTextConfig:
    return CLIPTextConfig(hidden_size=width, intermediate_size=width, projection_dim=projection, **TEXT)


def sdxl(attends: list[bool], layers: int) -> StableDiffusionXLPipeline:
    sdxl_unet = unet(
        attends,
        layers,
        attention_head_dim=[2 + level for level in range(len(attends))],
        transformer_layers_per_block=[1 + level for level in range(len(attends))],
        cross_attention_dim=16 + 24,
        use_linear_projection=True,
        addition_embed_type="text_time",
        addition_time_embed_dim=8,
        projection_class_embeddings_input_dim=24 + 6 * 8,
    )
    return StableDiffusionXLPipeline(
        vae=vae(2),
        text_encoder=CLIPTextModel(text_config(16, 16)),
        text_encoder_2=CLIPTextModelWithProjection(text_config(24, 24)),
        tokenizer=byte_tokenizer(),
        tokenizer_2=byte_tokenizer("!"),
        unet=sdxl_unet,
        scheduler=EulerDiscreteScheduler(),
        add_watermarker=False,
    )


def sd15(attends: list[bool], layers: int) -> StableDiffusionPipeline:
    return StableDiffusionPipeline(
        vae=vae(4),
        text_encoder=CLIPTextModel(text_config(16, 16)),
        tokenizer=byte_tokenizer(),
        unet=unet(attends, layers, attention_head_dim=4, cross_attention_dim=16),
        scheduler=PNDMScheduler(),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )


CASES = {
    "sdxl-2x1": lambda: sdxl([False, True], 1),
    "sdxl-3x2": lambda: sdxl([False, True, True], 2),
    "sd15-2x2": lambda: sd15([True, False], 2),
    "sd15-4x2": lambda: sd15([True, True, True, False], 2),
}


def assert_same(actual: torch.nn.Module, expected: torch.nn.Module) -> None:
    ours, theirs = expected.state_dict(), actual.state_dict()
    assert set(ours) == set(theirs)
    for name, tensor in ours.items():
        assert not theirs[name].is_meta, f"{name} was never loaded"
        assert torch.equal(tensor, theirs[name]), name


@pytest.mark.parametrize("case", CASES)
def test_every_component_comes_back(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, case: str) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    torch.manual_seed(0)
    base = CASES[case]()
    folder, file = tmp_path / "base", tmp_path / "base.safetensors"
    base.save_pretrained(folder)
    write_single_file(folder, file)

    where = {"config": str(folder), "local_files_only": True}
    assert_same(UNet2DConditionModel.from_single_file(file, subfolder="unet", **where), base.unet)
    assert_same(AutoencoderKL.from_single_file(file, subfolder="vae", **where), base.vae)

    texts = type(base).from_single_file(file, unet=None, vae=None, **where)
    assert texts.unet is None
    assert texts.vae is None
    assert_same(texts.text_encoder, base.text_encoder)
    if "xl" in case:
        assert_same(texts.text_encoder_2, base.text_encoder_2)
        assert (texts.tokenizer.pad_token, texts.tokenizer_2.pad_token) == ("<|endoftext|>", "!")
    assert texts.tokenizer("an eye").input_ids == base.tokenizer("an eye").input_ids


def test_keys_are_those_of_the_published_files(tmp_path: Path) -> None:
    """A few names from the released SDXL and SD1.5 files, and the fused matrix of OpenCLIP."""
    sdxl([False, True, True], 2).save_pretrained(tmp_path / "sdxl")
    write_single_file(tmp_path / "sdxl", tmp_path / "sdxl.safetensors")
    state = load_file(tmp_path / "sdxl.safetensors")
    assert {
        "model.diffusion_model.input_blocks.3.0.op.weight",
        "model.diffusion_model.input_blocks.8.1.transformer_blocks.2.attn2.to_out.0.bias",
        "model.diffusion_model.output_blocks.5.2.conv.weight",
        "model.diffusion_model.label_emb.0.2.bias",
        "first_stage_model.encoder.down.0.downsample.conv.weight",
        "first_stage_model.decoder.up.1.upsample.conv.bias",
        "first_stage_model.decoder.mid.attn_1.proj_out.weight",
        "conditioner.embedders.0.transformer.text_model.embeddings.position_ids",
        "conditioner.embedders.1.model.text_projection",
        "conditioner.embedders.1.model.transformer.resblocks.1.mlp.c_proj.bias",
    } <= set(state)
    fused = "conditioner.embedders.1.model.transformer.resblocks.0.attn.in_proj_weight"
    assert state[fused].shape == (3 * 24, 24)
    assert state["first_stage_model.encoder.mid.attn_1.q.weight"].shape == (64, 64, 1, 1)

    sd15([True, True, True, False], 2).save_pretrained(tmp_path / "sd15")
    write_single_file(tmp_path / "sd15", tmp_path / "sd15.safetensors")
    assert {
        "model.diffusion_model.output_blocks.2.1.conv.weight",
        "model.diffusion_model.output_blocks.11.0.skip_connection.weight",
        "cond_stage_model.transformer.text_model.embeddings.position_embedding.weight",
    } <= set(load_file(tmp_path / "sd15.safetensors"))
