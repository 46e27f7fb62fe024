"""Full-size SDXL and SD1.5 with random weights on the CPU: the real shapes, one training step, one short generation."""

import json
import resource
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest
import torch
from PIL import Image

from conftest import write_prepared
from retipair.models.base import open_base
from retipair.models.empty import empty_unet
from retipair.models.lora import adapter_parameters, add_adapter, lora_config, read_tensors

LIMIT_GB = 20
TRAINABLE = {("sdxl", "attention"): 23_224_320, ("sdxl", "all"): 42_557_440, ("sd15", "attention"): 3_188_736}
LATENT = {"sdxl": "[1, 4, 64, 128]", "sd15": "[1, 4, 64, 64]"}
JOINT = {"sdxl": (1024, 512), "sd15": (512, 512)}


@pytest.mark.nightly
@pytest.mark.parametrize(("system", "targets"), TRAINABLE)
def test_trainable_parameters_at_rank_16(system: str, targets: str) -> None:
    unet = empty_unet(open_base(f"random:{system}"))
    add_adapter(unet, lora_config(16, 16, targets, dora=False, rslora=False))
    assert sum(parameter.numel() for parameter in adapter_parameters(unet).values()) == TRAINABLE[system, targets]


def retipair(*arguments: object) -> str:
    """Run a command in a process of its own, whose memory can be told."""
    command = [sys.executable, "-m", "retipair", *map(str, arguments)]
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout


def peak_gb() -> float:
    """The most memory any child process has used, in units of 10^9 bytes."""
    return resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss * 1024 / 1e9


@pytest.mark.slow
@pytest.mark.parametrize("system", ["sd15", "sdxl"])  # the smaller first: the peak is that of all so far
def test_one_step_and_one_generation_on_the_cpu(system: str, tmp_path: Path) -> None:
    data = write_prepared(tmp_path / "data", ["train", "val"])
    common: Sequence[object] = ["-n", "full", "--base", f"random:{system}", "--results", tmp_path, "--device", "cpu"]
    once = ["--data", data, "--max_steps", 1, "--num_samples", 0, "--augment_variants", 1, "--gradient_checkpointing"]
    assert f"latent                       {LATENT[system]}" in retipair("train", *common, *once, "--dry_run")
    retipair("train", *common, *once)
    print(f"\n{system}: training peaks at {peak_gb():.1f} GB")
    retipair("generate", *common, "--savedir", "a", "--amount", 1, "--steps", 2)
    print(f"{system}: training and generating peak at {peak_gb():.1f} GB")
    assert peak_gb() < LIMIT_GB

    run = tmp_path / f"out_joint_{system}_cffa_pairs/full"
    steps = [json.loads(line)["step"] for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert steps == [0, 1, 1]
    adapters = [run / f"latest_checkpoints/step_{step:06d}/unet_lora" for step in (0, 1)]
    moved = zip(*(read_tensors(adapter).values() for adapter in adapters), strict=True)
    assert all(not torch.equal(before, after) for before, after in moved), "a part of the adapter has not moved"
    pair = tmp_path / f"out_joint_{system}_cffa_pairs_preds/full/a/1"
    assert Image.open(pair / "joint.png").size == JOINT[system]
    assert Image.open(pair / "cf.png").size == Image.open(pair / "fa.png").size == (512, 512)
