"""A base loads equally from a folder, one file or half precision, and its model family is detected."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from diffusers import EDMDPMSolverMultistepScheduler, EDMEulerScheduler, FlowMatchEulerDiscreteScheduler
from safetensors.torch import load_file, save_file

from conftest import VIEW
from refusals import raises_setting
from retipair.models.base import Base, open_base
from retipair.models.conditioning import encode_prompts
from retipair.models.families import SAMPLERS
from retipair.runtime.errors import UserError
from single_file import SHAPES, write_empty_file, write_single_file


@pytest.fixture
def folder(system: str, base_folder: Callable[[str], Path]) -> Path:
    return base_folder(system)


def same_weights(a: torch.nn.Module, b: torch.nn.Module) -> bool:
    left, right = a.state_dict(), b.state_dict()
    return left.keys() == right.keys() and all(torch.equal(left[name], right[name]) for name in left)


def test_a_file_loads_as_its_folder_does(system: str, folder: Path, tmp_path: Path) -> None:
    write_single_file(folder, tmp_path / "one.safetensors")
    one = open_base(str(tmp_path / "one.safetensors"), tokenizer=folder, configs=folder)
    whole = open_base(str(folder))
    assert one.family is whole.family
    assert same_weights(one.unet(), whole.unet())
    assert same_weights(one.vae(), whole.vae())
    ours, theirs = (encode_prompts(base, ["an eye"], (VIEW, VIEW), "cpu") for base in (one, whole))
    for encoder in one.family.text_encoders:
        assert same_weights(getattr(one.text_pipeline(), encoder), getattr(whole.text_pipeline(), encoder))
    # Another memory alignment of equal weights may change the rounding of products.
    torch.testing.assert_close(ours.embeddings, theirs.embeddings)
    torch.testing.assert_close(ours.pooled, theirs.pooled)


def test_a_file_takes_the_published_configs_and_says_what_it_lacks(system: str, tmp_path: Path) -> None:
    write_empty_file(tmp_path / "one.safetensors", SHAPES[system])
    base = open_base(str(tmp_path / "one.safetensors"))
    assert base.view_size == 512
    with pytest.raises(UserError, match="--tokenizer FOLDER"):
        base.text_pipeline()


def test_view_size_and_layout_are_the_bases(system: str, folder: Path) -> None:
    assert open_base(str(folder)).view_size == VIEW
    assert open_base(f"random:{system}").view_size == 512
    layout = {"sdxl": "side_by_side", "sd15": "squeezed"}[system]
    assert open_base(str(folder)).family.layout == layout


def edit(path: Path, **changes: object) -> None:
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def test_the_system_is_told_by_the_conditioning_not_by_channels(folder: Path, system: str, tmp_path: Path) -> None:
    copy = tmp_path / "copy"
    shutil.copytree(folder, copy)
    widths = {"sdxl": {"text_encoder": 256, "text_encoder_2": 512}, "sd15": {"text_encoder": 2048}}[system]
    edit(copy / "unet/config.json", cross_attention_dim=sum(widths.values()))
    for encoder, width in widths.items():
        edit(copy / encoder / "config.json", hidden_size=width)
    assert open_base(str(copy)).family.name == system


def test_random_weights_are_the_same_each_time(system: str) -> None:
    base = open_base(f"random:tiny-{system}")
    before = torch.get_rng_state()
    assert same_weights(base.unet(), base.unet())
    assert torch.equal(torch.get_rng_state(), before), "loading a base must not change the random state"


def test_a_folder_with_half_precision_files_alone_loads(folder: Path, tmp_path: Path) -> None:
    copy = tmp_path / "copy"
    shutil.copytree(folder, copy)
    for path in (copy / "unet").glob("*.safetensors"):
        half = {name: tensor.half() for name, tensor in load_file(path).items()}
        save_file(half, path.with_name("diffusion_pytorch_model.fp16.safetensors"), {"format": "pt"})
        path.unlink()
    unet = open_base(str(copy)).unet()
    assert unet.dtype == torch.float32
    assert all(not parameter.requires_grad for parameter in unet.parameters())


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_schedulers_are_the_bases_own_and_never_clip(folder: Path, sampler: str) -> None:
    base = open_base(str(folder))
    written = json.loads((folder / "scheduler/scheduler_config.json").read_text())
    scheduler = base.scheduler(sampler)
    for key in ("beta_start", "beta_end", "beta_schedule", "num_train_timesteps", "steps_offset"):
        assert scheduler.config[key] == written[key]
    assert not scheduler.config.get("clip_sample", False)


@pytest.mark.parametrize("sampler", SAMPLERS)
@pytest.mark.parametrize("kind", ["epsilon", "v_prediction"])
def test_noise_predicted_with_zero_terminal_snr_is_refused_by_name(
    folder: Path, tmp_path: Path, sampler: str, kind: str
) -> None:
    copy = shutil.copytree(folder, tmp_path / "copy")
    path = copy / "scheduler/scheduler_config.json"
    changes = {"prediction_type": kind, "rescale_betas_zero_snr": True}
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))
    if kind == "v_prediction":
        assert open_base(str(copy)).scheduler(sampler).config.prediction_type == kind
        return
    with raises_setting("base"):
        open_base(str(copy)).scheduler(sampler)


def test_a_text_encoder_without_its_vocabulary_is_refused(folder: Path, tmp_path: Path) -> None:
    copy = tmp_path / "copy"
    shutil.copytree(folder, copy)
    for name in ("vocab.json", "merges.txt", "tokenizer.json"):
        (copy / "tokenizer" / name).unlink(missing_ok=True)
    with pytest.raises(UserError, match="tokenizer"):
        open_base(str(copy)).text_pipeline()


def test_latent_shape_facts(base_folder: Callable[[str], Path]) -> None:
    base: Base = open_base(str(base_folder("sdxl")))
    assert (base.latent_factor, base.latent_channels) == (8, 4)


@pytest.mark.parametrize("kind", [EDMEulerScheduler, EDMDPMSolverMultistepScheduler, FlowMatchEulerDiscreteScheduler])
def test_a_folder_whose_schedule_has_no_betas_is_refused_by_its_name(folder: Path, tmp_path: Path, kind: type) -> None:
    """Playground v2.5, CosXL and flow-matching models as folders: diffusers would use default betas."""
    copy = shutil.copytree(folder, tmp_path / "copy")
    kind().save_pretrained(str(copy / "scheduler"))
    with raises_setting("base"):
        open_base(str(copy))


def scale(path: Path) -> None:
    save_file({name: tensor * 1.01 for name, tensor in load_file(path).items()}, path, {"format": "pt"})


def test_the_same_base_has_one_fingerprint_wherever_it_lies(folder: Path, tmp_path: Path) -> None:
    assert (
        open_base(str(shutil.copytree(folder, tmp_path / "copy"))).fingerprint() == open_base(str(folder)).fingerprint()
    )
    for name in ("one", "other"):
        write_single_file(folder, tmp_path / f"{name}.safetensors")
    one, other = (open_base(str(tmp_path / f"{name}.safetensors"), configs=folder) for name in ("one", "other"))
    assert one.fingerprint() == other.fingerprint()


def test_a_merged_lora_changes_the_fingerprint(system: str, tmp_path: Path) -> None:
    """Only attention layers change, at most a quarter of a UNet; the file's size, start and end stay the same."""
    path, side, layers = tmp_path / "one.safetensors", 1280, range(64)
    names = [f"model.diffusion_model.middle_block.1.transformer_blocks.{n}.attn1.to_q.weight" for n in layers]
    write_empty_file(path, SHAPES[system] | dict.fromkeys(names, (side, side)))
    before = open_base(str(path)).fingerprint()
    with path.open("r+b") as stream:
        for layer in layers[10:-10:8]:
            stream.seek(path.stat().st_size - 2 * side**2 * (len(layers) - layer))
            stream.write(b"1" * 2 * side**2)
    assert open_base(str(path)).fingerprint() != before


@pytest.mark.parametrize("part", ["unet", "vae", "text_encoder"])
def test_other_weights_of_any_part_change_the_fingerprint(part: str, folder: Path, tmp_path: Path) -> None:
    """Latents depend on the autoencoder, conditioning on the text encoder: a resumed run must find both as before."""
    copy = shutil.copytree(folder, tmp_path / "copy")
    for path in (copy / part).glob("*.safetensors"):
        scale(path)
    assert open_base(str(copy)).fingerprint() != open_base(str(folder)).fingerprint()
