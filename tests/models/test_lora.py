"""A new adapter has no effect, and an adapter predicts the same however it is loaded."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import StableDiffusionPipeline, StableDiffusionXLPipeline, UNet2DConditionModel
from peft import PeftModel, get_peft_model_state_dict
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from adapters import KINDS, PROMPT, config_of, description, generate_joint, with_adapter
from conftest import VIEW
from refusals import raises_file
from retipair.diffusion.noise import generator
from retipair.models.base import Base, open_base
from retipair.models.conditioning import encode_prompts
from retipair.models.denoiser import Denoiser
from retipair.models.lora import (
    DIFFUSERS_WEIGHTS,
    PEFT_WEIGHTS,
    TARGETS,
    adapter_parameters,
    adapter_sha256,
    add_adapter,
    load_adapter,
    merge_adapter,
    read_adapter_metadata,
    read_tensors,
    save_adapter,
)

NIGHTLY = pytest.mark.nightly


@pytest.fixture
def base(system: str, base_folder: Callable[[str], Path]) -> Base:
    return open_base(str(base_folder(system)))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("targets", TARGETS)
def test_a_fresh_adapter_changes_exactly_nothing(base: Base, kind: str, targets: str) -> None:
    fresh = base.unet().eval()
    add_adapter(fresh, config_of(kind, targets))
    latents, t = torch.randn(1, 4, 16, 32, generator=generator(0)), torch.tensor(500)
    conditioning = encode_prompts(base, [PROMPT], (VIEW, 2 * VIEW), "cpu").rows([0])
    unets = (base.unet().eval(), fresh)
    with torch.no_grad():
        outputs = [Denoiser(unet, torch.float32, "cpu")(latents, t, conditioning) for unet in unets]
    if kind == "dora":  # DoRA divides the weight by its norm and multiplies it again
        assert torch.allclose(*outputs, atol=1e-5)
    else:
        assert torch.equal(*outputs)


@pytest.mark.parametrize("kind", [pytest.param(k, marks=[] if k == "alpha" else NIGHTLY) for k in KINDS])
@pytest.mark.parametrize("targets", ["all", pytest.param("attention", marks=NIGHTLY)])
def test_the_same_image_through_ours_through_diffusers_and_through_peft(
    base: Base, kind: str, targets: str, tmp_path: Path
) -> None:
    unet = with_adapter(base, kind, targets)
    expected = generate_joint(base, unet)
    assert np.abs(expected.astype(int) - generate_joint(base, base.unet().eval())).mean() > 1, (
        "the adapter does nothing"
    )
    save_adapter(tmp_path, base, unet, description(base, kind))

    ours = base.unet().eval()
    load_adapter(tmp_path, ours, base)
    assert np.array_equal(generate_joint(base, ours), expected)

    loaded = loaded_by_diffusers(base, tmp_path)
    assert_same_tensors(get_peft_model_state_dict(loaded, adapter_name="default_0"), read_tensors(tmp_path))
    assert np.array_equal(generate_joint(base, loaded), expected)

    peft = PeftModel.from_pretrained(base.unet(), str(tmp_path)).eval()
    assert np.array_equal(generate_joint(base, peft), expected)


def loaded_by_diffusers(base: Base, folder: Path) -> UNet2DConditionModel:
    """Return the UNet of a diffusers pipeline after `load_lora_weights`."""
    kinds: dict[str, Any] = {"sdxl": StableDiffusionXLPipeline, "sd15": StableDiffusionPipeline}
    pipe = kinds[base.family.name].from_pretrained(base.source)
    pipe.load_lora_weights(str(folder))
    return pipe.unet.eval()


def assert_same_tensors(actual: dict[str, torch.Tensor], expected: dict[str, torch.Tensor]) -> None:
    assert actual.keys() == expected.keys()
    for name, tensor in expected.items():
        assert torch.equal(actual[name], tensor), name


@pytest.mark.parametrize("kind", KINDS)
def test_merged_it_predicts_the_same_and_leaves_no_layer_behind(base: Base, kind: str) -> None:
    unet = with_adapter(base, kind)
    expected = generate_joint(base, unet)
    merge_adapter(unet)
    assert {name for name, _ in unet.named_parameters()} == {name for name, _ in base.unet().named_parameters()}
    assert np.abs(expected.astype(int) - generate_joint(base, unet)).max() <= 1


def test_weights_are_fp32_on_a_bf16_base(base: Base) -> None:
    unet = base.unet(torch.bfloat16)
    add_adapter(unet, config_of("plain"))
    parameters = adapter_parameters(unet)
    assert {parameter.dtype for parameter in parameters.values()} == {torch.float32}
    assert {p.dtype for n, p in unet.named_parameters() if n not in parameters} == {torch.bfloat16}


def test_both_files_carry_the_description(base: Base, tmp_path: Path) -> None:
    expected = description(base, "alpha")
    save_adapter(tmp_path, base, with_adapter(base, "alpha"), expected)
    assert read_adapter_metadata(tmp_path) == expected
    with safe_open(tmp_path / DIFFUSERS_WEIGHTS, framework="pt") as file:
        metadata = file.metadata()
    assert json.loads(metadata["retipair"])["rank"] == 4
    assert json.loads(metadata["lora_adapter_metadata"])["unet.lora_alpha"] == 11


def test_the_hash_is_of_tensors_and_description_not_of_the_file(base: Base, tmp_path: Path) -> None:
    unet, expected = with_adapter(base, "plain"), description(base, "plain")
    for name in ("a", "b"):
        save_adapter(tmp_path / name, base, unet, expected)
    path = tmp_path / "b" / PEFT_WEIGHTS
    with safe_open(path, framework="pt") as file:
        metadata = file.metadata()
    tensors = load_file(path)
    save_file(tensors, path, dict(reversed(metadata.items())))
    assert adapter_sha256(tmp_path / "a") == adapter_sha256(tmp_path / "b")
    first = next(iter(tensors))
    save_file({**tensors, first: tensors[first] + 1e-6}, path, metadata)
    assert adapter_sha256(tmp_path / "a") != adapter_sha256(tmp_path / "b")


def test_an_adapter_of_the_other_system_does_not_fit(base_folder: Callable[[str], Path], tmp_path: Path) -> None:
    sdxl, sd15 = (open_base(str(base_folder(system))) for system in ("sdxl", "sd15"))
    save_adapter(tmp_path, sdxl, with_adapter(sdxl, "plain"), description(sdxl, "plain"))
    with raises_file(tmp_path):
        load_adapter(tmp_path, sd15.unet(), sd15)


def test_an_adapter_that_diverged_is_refused(base: Base, tmp_path: Path) -> None:
    save_adapter(tmp_path, base, with_adapter(base, "plain"), description(base, "plain"))
    tensors = load_file(tmp_path / PEFT_WEIGHTS)
    tensors[next(iter(tensors))][0, 0] = float("nan")
    save_file(tensors, tmp_path / PEFT_WEIGHTS)
    with raises_file(tmp_path):
        load_adapter(tmp_path, base.unet(), base)
