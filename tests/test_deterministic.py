"""`--deterministic`: the same bits from each run, on a GPU too."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from compare import same
from conftest import CUDA, train_command
from operations import Seen
from retipair.interfaces.cli import main
from retipair.models.lora import read_tensors
from retipair.training import loop

Folder = Callable[[str], Path]
# What torch.use_deterministic_algorithms refuses on a GPU, of all that networks of this kind might use.
WITHOUT_ORDER = {
    *(f"reflection_pad{n}d_backward" for n in (1, 2, 3)),
    *(f"upsample_{kind}_backward" for kind in ("linear1d", "bilinear2d", "bicubic2d", "trilinear3d")),
    *("_adaptive_avg_pool2d_backward", "avg_pool3d_backward", "adaptive_max_pool2d_backward"),
    *("grid_sampler_2d_backward", "cumsum", "histc", "bincount", "put_", "nll_loss_backward", "nll_loss2d_backward"),
    *("median", "kthvalue", "max_unpool2d", "_ctc_loss_backward"),
}


@pytest.fixture(params=["sd15", pytest.param("sdxl", marks=pytest.mark.nightly)])
def system(request: pytest.FixtureRequest) -> str:
    """What the families share; what they do not is tested with both in tests/models."""
    return request.param


def test_a_step_needs_nothing_that_a_gpu_sums_in_no_fixed_order(
    system: str, base_folder: Folder, prepared: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    take_step, seen = loop.training_step, Seen()

    def watched(*arguments: Any) -> float:
        assert torch.are_deterministic_algorithms_enabled()
        with seen:
            return take_step(*arguments)

    monkeypatch.setattr(loop, "training_step", watched)
    flags = ("--deterministic", "--num_samples", 0, "--hf_max_timestep", 1000)
    assert main(train_command("exp", base_folder(system), prepared, tmp_path, *flags)) == 0
    assert not torch.are_deterministic_algorithms_enabled()
    assert {"convolution", "convolution_backward"} <= seen.names
    assert not seen.names & WITHOUT_ORDER


@pytest.mark.parametrize("device", ["cpu", CUDA])
def test_two_runs_are_equal_to_the_bit(
    device: str, system: str, base_folder: Folder, prepared: Path, tmp_path: Path
) -> None:
    runs = []
    for results in ("a", "b"):
        flags = ("--deterministic", "--num_samples", 1, "--sample_steps", 2, "--device", device)
        assert main(train_command("exp", base_folder(system), prepared, tmp_path / results, *flags)) == 0
        runs.append(tmp_path / results / f"out_joint_{system}_cffa_pairs/exp")
    last = [read_tensors(run / "latest_checkpoints/step_000004/unet_lora") for run in runs]
    assert same(*last)
    losses = [[json.loads(line).get("loss") for line in (run / "metrics.jsonl").open()] for run in runs]
    assert losses[0] == losses[1]
    for image in (runs[0] / "step_000004_random_pairs").rglob("*.png"):
        assert image.read_bytes() == (runs[1] / image.relative_to(runs[0])).read_bytes()
