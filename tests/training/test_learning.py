"""Learning is real: training on a few pairs teaches their look, leaves the base alone, and starts from nothing."""

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from msgspec.structs import replace

from conftest import VIEW
from retipair.config import TrainConfig
from retipair.data.manifest import PreparedPair, Split, read_manifest, write_manifest
from retipair.diffusion.noise import generator
from retipair.interfaces.cli import main
from retipair.models.base import Base, open_base
from retipair.models.conditioning import encode_prompts
from retipair.models.denoiser import Denoiser
from retipair.models.lora import add_adapter, load_adapter, lora_config
from retipair.runs.run_dir import Run, find_run
from retipair.runtime.distributed import SINGLE_PROCESS
from retipair.training.batches import make_batches
from retipair.training.plan import make_plan, read_data
from retipair.training.validation import validate

STEPS = 16
SIDE = 192
"""px of a view: three quarters of what the bases were made for, in half the time."""


def loss_on(data: Path, base: str, adapter: Path, results: Path) -> float:
    """The fixed-noise validation loss of an adapter on the validation pairs of a folder."""
    plan = make_plan(TrainConfig(name="judge", data=data, base=base, size=SIDE, results=results, device="cpu"))
    batches = make_batches(plan, read_data(plan))
    unet = plan.base.unet().eval()
    load_adapter(adapter, unet, plan.base)
    return validate(Denoiser(unet, torch.float32, "cpu"), plan.base.schedule, batches, SINGLE_PROCESS)["loss"]


@pytest.mark.nightly
@pytest.mark.parametrize("system", ["sd15", pytest.param("sdxl", marks=pytest.mark.slow)])
def test_a_look_is_learnt_and_an_eye_that_was_shown_best_of_all(system: str, tmp_path: Path) -> None:
    """The trained base on eyes of a camera it never saw: one gets easier, and easier still when it was shown."""
    base = open_base(f"tiny-{system}")
    before = {path: path.read_bytes() for path in base.configs.rglob("*.safetensors")}
    looks = ["--camera", "teal", "--disease", "vein_occlusion", "--size", SIDE]
    assert main([str(part) for part in ("phantom", tmp_path / "others", "--amount", 5, *looks)]) == 0
    itself = swap_sides(tmp_path / "others", tmp_path / "itself")
    others = trained_on(tmp_path / "others", base, tmp_path)
    untrained, unseen = (line["loss"] for line in others.read_metrics() if line["kind"] == "validation")
    adapter = trained_on(itself, base, tmp_path).adapter_folder("latest")
    seen = loss_on(tmp_path / "others", base.source, adapter, tmp_path)
    print(f"{system}: loss {untrained:.3f}, after others {unseen:.3f}, after the eye itself {seen:.3f}")
    assert unseen <= 0.95 * untrained
    assert seen < unseen
    assert {path: path.read_bytes() for path in before} == before, "the base's files were touched"


def trained_on(data: Path, base: Base, results: Path) -> Run:
    """A short run on a prepared folder, validated before the first step and after the last."""
    command = ["train", "-n", data.name, "--data", data, "--base", base.source, "--results", results, "--size", SIDE]
    command += ["--max_steps", STEPS, "--val_every", STEPS, "--num_samples", 0, "--augment_variants", 1]
    command += ["--learning_rate", "1e-3", "--lora_targets", "all", "--batch_size", 1, "--device", "cpu"]
    assert main([str(part) for part in command]) == 0
    return find_run(results, data.name, [base.family.name])


def swap_sides(folder: Path, swapped: Path) -> Path:
    """A copy of a prepared folder that trains on what validates there, and the other way round."""
    shutil.copytree(folder, swapped)
    other: dict[Split, Split] = {"train": "val", "val": "train"}
    records = [one for one in read_manifest(folder) if isinstance(one, PreparedPair)]
    write_manifest(swapped, [replace(one, split=other[one.split]) for one in records])
    return swapped


def test_training_leaves_every_weight_of_the_base_as_it_was(system: str, base_folder: Callable[[str], Path]) -> None:
    base = open_base(str(base_folder(system)))
    unet = base.unet()
    before = {name: parameter.clone() for name, parameter in unet.named_parameters()}
    add_adapter(unet, lora_config(4, 4, "all", dora=False, rslora=False))
    trainable = [parameter for parameter in unet.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(trainable, lr=1e-2)
    latents = torch.randn(1, 4, 16, 16, generator=generator(0))
    heard = encode_prompts(base, [""], (VIEW, VIEW), "cpu").rows([0])
    for _ in range(2):
        Denoiser(unet, torch.float32, "cpu")(latents, torch.tensor([500]), heard).square().mean().backward()
        optimizer.step()
    after = {name.replace(".base_layer", ""): parameter for name, parameter in unet.named_parameters()}
    assert all(torch.equal(after[name], weights) for name, weights in before.items())
    assert any(parameter.grad is not None and parameter.grad.any() for parameter in trainable)
