"""What only an accelerator shows; `make test-gpu` where there is one."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from conftest import train_command, write_prepared
from retipair.config import BenchConfig
from retipair.data.pair import load_image
from retipair.interfaces.cli import main
from retipair.models.lora import read_tensors
from retipair.runtime.atomic_io import verify_checksums
from retipair.runtime.distributed import SINGLE_PROCESS
from retipair.training.optimizer import LoraOptimizer
from retipair.training.step import build_training, training_step
from retipair.trials.bench import planned

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device here"),
]


def test_training_in_bf16_moves_an_fp32_adapter(
    system: str, base_folder: Callable[[str], Path], prepared: Path, tmp_path: Path
) -> None:
    assert main(train_command("exp", base_folder(system), prepared, tmp_path, "--device", "cuda")) == 0
    checkpoints = tmp_path / f"out_joint_{system}_cffa_pairs/exp/latest_checkpoints"
    first, last = (read_tensors(checkpoints / f"step_{step:06d}/unet_lora") for step in (0, 4))
    assert {tensor.dtype for tensor in last.values()} == {torch.float32}
    assert all(not torch.equal(first[name], last[name]) for name in last)


def test_pairs_do_not_depend_on_the_batch_by_more_than_a_grey_level(
    system: str, trained: Callable[[str], Path], tmp_path: Path
) -> None:
    common = ["generate", "-n", "exp", "--results", trained(system), "--amount", "4", "--steps", "4"]
    for size in (1, 4):
        more = ["--device", "cuda", "--precision", "fp32", "--batch_size", size, "--out", tmp_path / str(size)]
        assert main([str(part) for part in [*common, *more]]) == 0
    for index in range(1, 5):
        one, four = (load_image(tmp_path / size / f"{index}/joint.png", "RGB").astype(int) for size in ("1", "4"))
        assert np.abs(one - four).max() <= 1


def test_a_step_never_waits_for_the_gpu(tmp_path: Path) -> None:
    plan, data = planned(BenchConfig(what="train", base="random:tiny-sdxl", device="cuda", batch_size=2), tmp_path)
    training = build_training(plan, data, SINGLE_PROCESS)
    training_step(training)
    torch.cuda.set_sync_debug_mode("error")
    try:
        training_step(training)
    finally:
        torch.cuda.set_sync_debug_mode("default")


@pytest.mark.parametrize("base", ["random:sd15", "random:sdxl"])
def test_a_full_size_step_fits_the_memory_that_the_dry_run_tells(
    base: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data = write_prepared(tmp_path / "data", ["train", "val"])
    command = train_command("full", base, data, tmp_path, "--num_samples", 0, "--max_steps", 2, "--device", "cuda")
    assert main([*command, "--dry_run"]) == 0
    told = float(capsys.readouterr().out.split("memory (estimate)")[1].split()[0])
    torch.cuda.reset_peak_memory_stats()
    assert main(command) == 0
    peak = torch.cuda.max_memory_allocated() / 2**30
    print(f"{base}: told {told:.1f} GiB, took {peak:.1f} GiB")
    assert peak < 1.5 * told


def test_a_step_without_numbers_is_found_at_the_log_and_left_out_at_once(
    system: str,
    base_folder: Callable[[str], Path],
    prepared: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    step, before_and_after = LoraOptimizer.step, []

    def poisoned(self: LoraOptimizer) -> torch.Tensor:
        if self.step_count != 1:
            return step(self)
        next(iter(self.parameters.values())).grad.fill_(np.nan)  # type: ignore[union-attr]
        before_and_after.append([one.detach().clone() for one in self.parameters.values()])
        finite = step(self)
        before_and_after.append([one.detach().clone() for one in self.parameters.values()])
        return finite

    monkeypatch.setattr(LoraOptimizer, "step", poisoned)
    flags = ("--device", "cuda", "--on_nan", "skip", "--log_every", 4, "--num_samples", 0)
    assert main(train_command("exp", base_folder(system), prepared, tmp_path, *flags)) == 0
    assert all(torch.equal(a, b) for a, b in zip(*before_and_after, strict=True))
    run = tmp_path / f"out_joint_{system}_cffa_pairs/exp"
    assert "step 000002 skipped: NaN or infinity in the gradient of pair" in (run / "training_log.txt").read_text()
    assert verify_checksums(run / "latest_checkpoints/step_000004") is None
