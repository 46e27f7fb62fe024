"""Numbers that go wrong in training: found at once, named, and nothing of them is kept."""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers.training_utils import EMAModel

from conftest import CUDA, train_command
from operations import Seen
from retipair.config import BenchConfig, TrainConfig
from retipair.data.layout import Layout
from retipair.generation.pair_generator import PairGenerator
from retipair.interfaces.cli import main
from retipair.models.base import open_base
from retipair.models.conditioning import encode_prompts
from retipair.models.denoiser import Denoiser
from retipair.models.lora import MovingAverage, add_adapter
from retipair.models.vae import Moments, decode
from retipair.runs.run_dir import Run
from retipair.runtime.atomic_io import verify_checksums
from retipair.runtime.distributed import SINGLE_PROCESS, DistributedState
from retipair.runtime.errors import UserError
from retipair.training import batches, nonfinite, optimizer
from retipair.training.divergence import check_bounded
from retipair.training.optimizer import LoraOptimizer
from retipair.training.plan import adapter_config
from retipair.training.step import build_training, describe_nonfinite_step, training_step
from retipair.trials.bench import planned

Folder = Callable[[str], Path]
QUICK = ("--num_samples", 0, "--augment_variants", 1, "--log_every", 2, "--max_steps", 6)


def run_of(results: Path) -> Path:
    return results / "out_joint_sd15_cffa_pairs/exp"


def poison(results: Path) -> None:
    """No number in the FA of the second training pair's latents."""
    [path] = [one for one in (results / "latents").glob("*/mean.npy") if np.load(one).shape[0] == 3]
    mean = np.load(path)
    mean[1, :, :, :, mean.shape[-1] // 2] = np.nan
    np.save(path, mean)


def nan_gradients(monkeypatch: pytest.MonkeyPatch, *steps: int) -> None:
    """At these steps, counted from 1."""
    step = LoraOptimizer.step

    def poisoned(self: LoraOptimizer) -> torch.Tensor:
        if self.step_count + 1 in steps:
            next(iter(self.parameters.values())).grad.fill_(np.nan)  # type: ignore[union-attr]
        return step(self)

    monkeypatch.setattr(LoraOptimizer, "step", poisoned)


def clean(run: Path) -> bool:
    """Nothing that is kept has a number that is none."""
    whole = all(verify_checksums(checkpoint) is None for checkpoint in Run(run).checkpoints())
    return whole and "nan" not in (run / "metrics.jsonl").read_text().lower()


@pytest.fixture
def command(base_folder: Folder, prepared: Path, tmp_path: Path) -> Callable[..., list[str]]:
    """More flags -> the training "exp" of SD1.5 in tmp_path/r; its latents are there already."""
    make = lambda name, *more: train_command(name, base_folder("sd15"), prepared, tmp_path / "r", *QUICK, *more)  # noqa: E731
    assert main(make("first", "--max_steps", 1)) == 0
    return lambda *more: make("exp", *more)


def test_latents_are_named_by_pair_and_half(
    command: Callable[..., list[str]], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    poison(tmp_path / "r")
    assert main(command()) == 2
    line = capsys.readouterr().err.splitlines()[-1]
    assert "the latents of pair eye2, FA" in line
    assert "--on_nan skip" in line
    assert clean(run_of(tmp_path / "r"))


def test_steps_are_left_out_where_that_is_asked(
    command: Callable[..., list[str]], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    poison(tmp_path / "r")
    assert main(command("--on_nan", "skip")) == 0
    run = run_of(tmp_path / "r")
    assert "step skipped" in capsys.readouterr().err
    note = "skipped: NaN or infinity in the latents of pair eye2, FA"
    assert (run / "training_log.txt").read_text().count(note) == 2  # epochs
    assert clean(run)
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines if line["kind"] == "training"] == [2, 4, 6]


@pytest.mark.parametrize("flags", [(), ("--batch_size", 2, "--gradient_accumulation_steps", 2)])
def test_a_gradient_is_found_at_its_step(
    flags: tuple[object, ...],
    command: Callable[..., list[str]],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    nan_gradients(monkeypatch, 3)
    assert main(command(*flags)) == 2
    line = capsys.readouterr().err.splitlines()[-1]
    assert "NaN or infinity at step 3: the gradient of pair" in line
    assert clean(run_of(tmp_path / "r"))
    monkeypatch.undo()
    assert main(command(*flags, "--resume")) == 0  # the last checkpoint was good


def fused(config: TrainConfig, parameters: list[torch.nn.Parameter]) -> torch.optim.Optimizer:
    """What a GPU has: it leaves steps out by itself."""
    return torch.optim.AdamW(parameters, lr=config.learning_rate, fused=True)


@pytest.mark.parametrize("device", ["cpu", CUDA])
@pytest.mark.parametrize("build", [optimizer._build_optimizer, fused])
def test_a_step_left_out_changes_nothing_of_the_adapter(
    device: str, build: Callable[..., object], base_folder: Folder, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(optimizer, "_build_optimizer", build)
    config = TrainConfig(name="x", ema_decay=0.9)

    def learner_at(*gradients: float) -> LoraOptimizer:
        """After one step along each of these gradients."""
        unet = open_base(str(base_folder("sd15"))).unet(device=device)
        add_adapter(unet, adapter_config(config), 0)
        learning = LoraOptimizer(unet, config)
        for value in gradients:
            take(learning, value)
        return learning

    def take(learning: LoraOptimizer, value: float) -> None:
        for parameter in learning.parameters.values():
            parameter.grad = torch.full_like(parameter, value)
        assert bool(learning.step()) == np.isfinite(value)

    def assert_equal(one: LoraOptimizer, other: LoraOptimizer) -> None:
        ours, theirs = one.state(), other.state()
        assert ours.keys() == theirs.keys()
        assert [name for name in ours if not torch.equal(ours[name], theirs[name])] == []

    with_lost = learner_at(np.nan, 1.0, -0.5, 2.0, np.nan, np.inf, -np.inf)
    without = learner_at(1.0, -0.5, 2.0)
    assert_equal(with_lost, without)
    resumed = learner_at()
    resumed.restore(with_lost.step_count, {name: value.clone() for name, value in with_lost.state().items()})
    before = {name: value.clone() for name, value in resumed.state().items()}
    for learning in (with_lost, without, resumed):
        take(learning, 0.25)
    assert_equal(with_lost, without)
    assert_equal(with_lost, resumed)
    moved = [name for name, value in resumed.state().items() if not torch.equal(before[name], value)]
    assert {name.split(".")[0] for name in moved} == {"adapter", "optimizer", "average"}


@pytest.mark.parametrize("decay", [0.2, 0.9, 0.999])
def test_the_average_is_the_librarys(decay: float) -> None:
    parameter = torch.nn.Parameter(torch.zeros(50))
    ours, library = MovingAverage([parameter], decay), EMAModel([parameter], decay)
    for step in range(40):
        parameter.data = torch.randn(50, generator=torch.Generator().manual_seed(step))
        ours.update([parameter], torch.tensor(True))
        library.step([parameter])
        torch.testing.assert_close(ours.shadow_params, library.shadow_params, rtol=0, atol=1e-6)


def test_where_nobody_looks_at_each_step_it_is_found_before_a_checkpoint(
    command: Callable[..., list[str]],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """As on a GPU, where reading the count synchronises the device."""
    nan_gradients(monkeypatch, 2)
    never = property(lambda self: False, lambda self, value: None)
    monkeypatch.setattr(nonfinite.NonFiniteCounter, "sync_is_free", never, raising=False)
    assert main(command("--log_every", 6, "--val_every", 3)) == 2
    assert "NaN or infinity at step 2: the gradient of pair" in capsys.readouterr().err.splitlines()[-1]
    assert [path.name for path in Run(run_of(tmp_path / "r")).checkpoints()] == ["step_000000"]


def test_a_step_asks_the_device_for_no_value(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With the optimiser that a GPU has: to look for numbers that are none makes nobody wait."""
    monkeypatch.setattr(optimizer, "_build_optimizer", fused)
    plan, data = planned(BenchConfig(what="train", base="random:tiny-sd15", device="cpu", batch_size=2), tmp_path)
    training = build_training(replace(plan, config=replace(plan.config, ema_decay=0.9)), data, SINGLE_PROCESS)
    training_step(training)
    with Seen() as seen:
        training_step(training)
    assert "_fused_adamw_" in seen.names
    assert not seen.names & {"_local_scalar_dense", "item", "is_nonzero", "nonzero", "equal", "masked_select"}
    nan_gradients(monkeypatch, 3)
    training_step(training)
    assert training.nonfinite.read() == (1, 2)


@pytest.mark.nightly
def test_a_pair_of_another_process_is_named(tmp_path: Path) -> None:
    plan, data = planned(BenchConfig(what="train", base="random:tiny-sd15", device="cpu"), tmp_path)
    training = build_training(plan, data, SINGLE_PROCESS)
    [at] = training.batches.pairs_of([1])  # what the second of two processes draws in the first step
    training.batches.train.mean[at] = np.nan
    together = replace(training, dist=DistributedState(process_index=0, num_processes=2))
    assert describe_nonfinite_step(together, data, 0) == f"the latents of pair {data.train[at].id}, CF"


def test_an_optimiser_that_counts_without_tensors_is_kept(base_folder: Folder, monkeypatch: pytest.MonkeyPatch) -> None:
    config = TrainConfig(name="x")
    unet = open_base(str(base_folder("sd15"))).unet()
    add_adapter(unet, adapter_config(config), 0)
    learning = LoraOptimizer(unet, config)
    for parameter in learning.parameters.values():
        parameter.grad = torch.ones_like(parameter)
    learning.step()
    for entry in learning._optimizer.state.values():
        entry["step"] = 7  # as bitsandbytes does
    kept = learning.state()
    assert all(isinstance(value, torch.Tensor) for value in kept.values())
    loaded: dict[str, Any] = {}
    monkeypatch.setattr(learning._optimizer, "load_state_dict", loaded.update)  # torch's own would make tensors of them
    learning.restore(1, kept)
    assert [(type(entry["step"]), entry["step"]) for entry in loaded["state"].values()] == [(int, 7)] * len(
        learning.parameters
    )


def test_too_many_steps_left_out_end_the_training(
    command: Callable[..., list[str]],
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    nan_gradients(monkeypatch, *range(2, 100))
    assert main(command("--on_nan", "skip", "--max_steps", 40, "--log_every", 20, "--val_every", 40)) == 2
    assert "11 such steps since the last log line" in capsys.readouterr().err.splitlines()[-1]


def test_a_loss_that_explodes_is_said(tmp_path: Path) -> None:
    config = TrainConfig(name="x")
    check_bounded(Run(tmp_path), 5, 1.5, config)
    with pytest.raises(UserError, match="the loss at step 5 is 150 with --learning_rate 5e-05 "):
        check_bounded(Run(tmp_path), 5, 150.0, config)


# The autoencoder


def test_an_autoencoder_that_overflows_is_named_with_the_pair(
    base_folder: Folder,
    prepared: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    encode, calls = batches.encode_moments, 0

    def overflows(vae: object, images: np.ndarray) -> Moments:
        nonlocal calls
        calls += 1
        moments = encode(vae, images)  # type: ignore[arg-type]
        if calls == 2:
            moments.mean[..., 0] = 1e6  # more than 16 bits hold
        return moments

    monkeypatch.setattr(batches, "encode_moments", overflows)
    assert main(train_command("exp", base_folder("sd15"), prepared, tmp_path / "r", *QUICK)) == 2
    assert "pair eye2, CF: the base's autoencoder returns NaN" in capsys.readouterr().err.splitlines()[-1]
    assert not (tmp_path / "r/latents").exists()


def test_images_with_nan_or_infinity_are_refused(base_folder: Folder) -> None:
    base = open_base(str(base_folder("sd15")))
    vae, layout = base.vae(), Layout("squeezed", base.view_size)
    prompt = encode_prompts(base, ["an eye"], layout.joint_size, "cpu").rows([0])
    painter = PairGenerator(base, layout, Denoiser(base.unet().eval(), torch.float32, "cpu"), vae, "ddpm", 2)
    assert painter.sample(prompt, [torch.Generator()])
    latents = torch.zeros(1, vae.config.latent_channels, 8, 8)
    decode(vae, latents)
    with pytest.raises(UserError, match="the latents contain NaN"):
        decode(vae, latents + np.nan)
    for value in (np.inf, -np.inf, np.nan):  # clamping would make infinity white or black
        vae.decoder.conv_out.bias.data.fill_(value)
        for decodes in (lambda: decode(vae, latents), lambda: painter.sample(prompt, [torch.Generator()])):
            with pytest.raises(UserError, match="the autoencoder returns NaN or infinity"):
                decodes()
