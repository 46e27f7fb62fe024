"""`retipair train`: the original's tree, runs that are killed and go on bit for bit, settings that matter."""

import json
import re
import shutil
from collections.abc import Callable
from dataclasses import fields, replace
from pathlib import Path
from typing import Any, Literal, get_args, get_origin, get_type_hints

import numpy as np
import pytest
import torch
from msgspec import structs
from PIL import Image
from safetensors.torch import load_file, save_file

from compare import adapter, contents, files, same
from conftest import VIEW, train_command, write_prepared
from eyes import write_raw
from killing import Death, kill_all
from refusals import Refusal, Refused
from retipair.config import DEFAULT_PROMPT, BestBy, TrainConfig
from retipair.data.manifest import PreparedPair, read_manifest, write_manifest
from retipair.data.pair import load_image, save_image
from retipair.diffusion.losses import Losses
from retipair.interfaces.cli import main
from retipair.models.lora import read_adapter_metadata
from retipair.runs.resume import changed_settings, check_run
from retipair.runs.run_dir import Run, start_run, step_of
from retipair.runtime.atomic_io import verify_checksums
from retipair.runtime.distributed import SINGLE_PROCESS
from retipair.runtime.errors import DamagedError, MissingError, OccupiedError
from retipair.training.log import Tracker, log_training
from retipair.training.meters import LossMeter
from retipair.training.optimizer import learning_rate
from retipair.training.plan import choose_precision, with_samples
from retipair.vision.field_of_view import field_of_view
from retipair.vision.ridges import vesselness_correlation

Folder = Callable[[str], Path]
Capture = pytest.CaptureFixture[str]
JOINT = {"sdxl": (2 * VIEW, VIEW), "sd15": (VIEW, VIEW)}
"""(width, height) px"""
ADAPTER = {
    *("adapter_config.json", "adapter_model.safetensors"),
    *("pytorch_lora_weights.safetensors", "kohya_lora.safetensors"),
}
PEFT = "adapter_model.safetensors"
QUICK = ("--num_samples", 0)


@pytest.fixture(params=["sd15", pytest.param("sdxl", marks=pytest.mark.nightly)])
def system(request: pytest.FixtureRequest) -> str:
    """What the families share; what they do not is tested with both in tests/models."""
    return request.param


def run_folder(results: Path, system: str, name: str = "exp") -> Path:
    return results / f"out_joint_{system}_cffa_pairs" / name


def train(system: str, base: Path, data: Path, results: Path, *more: object) -> Path:
    """Train "exp" and return its folder."""
    assert main(train_command("exp", base, data, results, *more)) == 0
    return run_folder(results, system)


def losses(run: Path) -> list[dict[str, Any]]:
    """What validation says of unseen eyes, without what it says of samples."""
    return [{key: value for key, value in line.items() if key != "consistency"} for line in metrics(run, "validation")]


def metrics(run: Path, kind: str) -> list[dict[str, Any]]:
    """The lines of metrics.jsonl of one kind, without what a step cost: it differs from run to run."""
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return [
        {k: v for k, v in line.items() if k not in ("seconds", "memory_gib")} for line in lines if line["kind"] == kind
    ]


def logged(run: Path, kind: str) -> list[str]:
    """The lines of a log that tell of a step."""
    lines = (run / f"{kind}_log.txt").read_text().splitlines()
    return [line for line in lines if line.startswith("step ")]


# The tree


def test_the_tree_is_the_originals(system: str, trained: Folder) -> None:
    run = run_folder(trained(system), system)
    checkpoints = {
        f"latest_checkpoints/step_{step:06d}/{name}"
        for step in (0, 2, 4)
        for name in (
            "state.json",
            "log_lengths.json",
            "state.safetensors",
            "checksums.json",
            *(f"unet_lora/{part}" for part in ADAPTER),
        )
    }
    samples = {
        f"step_{step:06d}_random_pairs/{name}.png"
        for step in (0, 2, 4)
        for name in ("grid", *(f"pair_00/{view}" for view in ("cf", "fa", "joint")))
    }
    best = {
        "best_checkpoint/reason.json",
        "best_checkpoint/checksums.json",
        *(f"best_checkpoint/unet_lora/{part}" for part in ADAPTER),
    }
    logs = {"training_log.txt", "validation_log.txt", "metrics.jsonl", "config.json", "environment.json"}
    assert files(run) == checkpoints | samples | best | logs
    assert {path.name for path in trained(system).iterdir()} == {run.parent.name, "latents"}


def test_samples_are_views_of_one_size_and_the_angiogram_is_grey(system: str, trained: Folder) -> None:
    for step in (0, 2, 4):
        pair = run_folder(trained(system), system) / f"step_{step:06d}_random_pairs/pair_00"
        views = {name: Image.open(pair / f"{name}.png") for name in ("cf", "fa", "joint")}
        assert {name: view.mode for name, view in views.items()} == {"cf": "RGB", "fa": "L", "joint": "RGB"}
        assert views["cf"].size == views["fa"].size == (VIEW, VIEW)
        assert views["joint"].size == JOINT[system]
        assert all("yes: drawn by a diffusion model, from noise" in view.text["Synthetic"] for view in views.values())  # type: ignore[attr-defined]


@pytest.mark.parametrize(("log_every", "val_every"), [(3, 9), (9, 3)])
def test_training_that_diverges_stops_and_keeps_nothing_of_it(
    log_every: int, val_every: int, base_folder: Folder, prepared: Path, tmp_path: Path, capsys: Capture
) -> None:
    flags = ("--learning_rate", "1e30", "--lr_schedule", "constant", "--max_steps", 9, *QUICK)
    flags += ("--log_every", log_every, "--val_every", val_every)
    assert main(train_command("exp", base_folder("sdxl"), prepared, tmp_path, *flags)) == 2
    run, line = run_folder(tmp_path, "sdxl"), capsys.readouterr().err.splitlines()[-1]
    assert f"{run}: NaN or infinity at step 2: the prediction of pair eye" in line
    assert "--learning_rate" in line
    assert [path.name for path in (run / "latest_checkpoints").iterdir()] == ["step_000000"]
    assert "nan" not in (run / "metrics.jsonl").read_text().lower()


def test_only_the_last_three_checkpoints_are_kept(
    system: str, base_folder: Folder, prepared: Path, tmp_path: Path
) -> None:
    run = train(system, base_folder(system), prepared, tmp_path, "--max_steps", 5, "--val_every", 1, *QUICK)
    assert {path.name for path in (run / "latest_checkpoints").iterdir()} == {
        "step_000003",
        "step_000004",
        "step_000005",
    }
    assert [line["step"] for line in metrics(run, "validation")] == [0, 1, 2, 3, 4, 5]


def test_the_end_is_validated_and_saved_whatever_the_interval(
    base_folder: Folder, prepared: Path, tmp_path: Path
) -> None:
    run = train("sd15", base_folder("sd15"), prepared, tmp_path, "--max_steps", 5, "--log_every", 2, *QUICK)
    assert [line["step"] for line in metrics(run, "validation")] == [0, 2, 4, 5]
    assert [line["step"] for line in metrics(run, "training")] == [2, 4, 5]
    assert (run / "latest_checkpoints/step_000005/unet_lora").is_dir()


def test_the_best_is_the_lowest_validation_and_says_why(
    system: str, base_folder: Folder, prepared: Path, tmp_path: Path
) -> None:
    run = train(system, base_folder(system), prepared, tmp_path, "--learning_rate", "1e-2", "--val_every", 1, *QUICK)
    losses = {line["step"]: line["loss"] for line in metrics(run, "validation")}
    best, former, before = 0, None, None
    for step, loss in losses.items():  # a new best is one by more than 1e-4
        if step > 0 and loss < losses[best] - 1e-4:
            best, former, before = step, best, losses[best]
    assert best > 0
    reason = json.loads((run / "best_checkpoint/reason.json").read_text())
    assert reason == {
        **{"step": best, "by": "loss", "loss": losses[best], "consistency": None},
        "before": {"step": former, "loss": before, "consistency": None},
    }
    description = read_adapter_metadata(run / "best_checkpoint/unet_lora")
    assert description is not None
    assert description.step == best


def test_a_validation_that_is_no_better_leaves_the_best_alone(
    base_folder: Folder, prepared: Path, tmp_path: Path
) -> None:
    run = train("sd15", base_folder("sd15"), prepared, tmp_path, "--learning_rate", 0, "--max_steps", 2, *QUICK)
    losses = [line["loss"] for line in metrics(run, "validation")]
    assert losses == [losses[0]] * 2
    assert json.loads((run / "best_checkpoint/reason.json").read_text()) == {
        **{"step": 0, "by": "loss", "loss": losses[0], "consistency": None},
        "before": None,
    }


def test_each_validation_says_how_well_the_halves_of_its_samples_match(system: str, trained: Folder) -> None:
    run = run_folder(trained(system), system)
    for line in metrics(run, "validation"):
        folder = run / f"step_{line['step']:06d}_random_pairs/pair_00"
        cf, fa = load_image(folder / "cf.png", "RGB"), load_image(folder / "fa.png", "L")
        found = vesselness_correlation(cf, fa, field_of_view(cf) & field_of_view(fa))
        assert line["consistency"] == pytest.approx(found)


def test_the_best_by_consistency_is_the_one_whose_samples_match_best(
    base_folder: Folder, prepared: Path, tmp_path: Path
) -> None:
    flags = ["--learning_rate", "1e-2", "--val_every", 1, "--best_by", "consistency"]
    run = train("sd15", base_folder("sd15"), prepared, tmp_path, *flags)
    matches = {line["step"]: line["consistency"] for line in metrics(run, "validation")}
    reason = json.loads((run / "best_checkpoint/reason.json").read_text())
    assert (reason["by"], reason["consistency"]) == ("consistency", matches[reason["step"]])
    assert reason["consistency"] >= max(matches.values()) - 0.005 * len(matches)


def test_consistency_needs_samples(base_folder: Folder, prepared: Path, tmp_path: Path, refused: Refused) -> None:
    command = train_command("exp", base_folder("sd15"), prepared, tmp_path, "--best_by", "both", *QUICK)
    assert refused(*command).setting == "best_by"


def test_logs_in_words_and_numbers_agree(system: str, trained: Folder) -> None:
    run = run_folder(trained(system), system)
    for kind in ("training", "validation"):
        lines = logged(run, kind)
        numbers = metrics(run, kind)
        assert len(lines) == len(numbers) == {"training": 4, "validation": 3}[kind]
        for line, values in zip(lines, numbers, strict=True):
            assert line.startswith(f"step {values['step']:06d} ")
            assert f"loss {values['loss']:.6f}" in line
    first = logged(run, "training")[0]
    assert re.fullmatch(
        r"step 000001 lr \S+ loss \S+ mse \S+ \(cf \S+ fa \S+\) hf \S+ \(cf \S+ fa \S+\) t \S+ \S+ s", first
    )
    for values in metrics(run, "validation"):
        parts = {f"t{t}_{half}" for t in (200, 500, 800) for half in ("cf", "fa")}
        assert set(values) == {"kind", "step", "loss", "consistency", *parts}
        assert values["loss"] == pytest.approx(np.mean([values[part] for part in parts]))


def test_the_adapter_describes_its_training(system: str, base_folder: Folder, trained: Folder) -> None:
    run = run_folder(trained(system), system)
    description = read_adapter_metadata(run / "latest_checkpoints/step_000004/unet_lora")
    assert description is not None
    assert description.system == system
    assert description.layout == {"sdxl": "side_by_side", "sd15": "squeezed"}[system]
    assert (description.view_size, description.rank, description.alpha, description.step) == (VIEW, 4, 4, 4)
    assert description.base == base_folder(system).name
    assert description.prompts == [(DEFAULT_PROMPT, 3)]
    assert description.size_ids == {"sdxl": [VIEW, 2 * VIEW, 0, 0, VIEW, 2 * VIEW], "sd15": []}[system]
    assert description.data_sha256 == json.loads((run / "config.json").read_text())["data_sha256"]


# Killed and resumed

EVERYTHING = [
    *("--ema_decay", "0.9", "--gradient_accumulation_steps", "2", "--batch_size", "2", "--prompt_dropout", "0.3"),
    *("--dora", "--lora_targets", "all", "--min_snr_gamma", "5", "--lr_warmup_steps", "3", "--log_every", "3"),
    *("--half_clean_fraction", "0.5", "--num_samples", "0"),
]
CASES = {  # name -> more flags, where it is killed
    "plain": ([], "retipair.training.optimizer:LoraOptimizer.step", 6),
    "everything": (EVERYTHING, "retipair.training.optimizer:LoraOptimizer.step", 6),
    "in a checkpoint": (["--num_samples", "0"], "retipair.runs.run_dir:save_file", 3),
    "in the first": (["--num_samples", "0"], "retipair.runs.run_dir:save_file", 1),
}
KILLED = [
    ("sd15", "plain"),
    *(
        pytest.param(*case, marks=pytest.mark.nightly)
        for case in (("sdxl", "everything"), ("sd15", "in a checkpoint"), ("sd15", "in the first"))
    ),
]


def case_command(system: str, case: str, base: Path, data: Path, results: Path) -> list[str]:
    flags = ["--max_steps", 6, "--learning_rate", "1e-3", "--resume"]
    return train_command("exp", base, data, results, *flags, *CASES[case][0])


@pytest.mark.parametrize(("system", "case"), KILLED)
def test_a_killed_run_continues_bit_for_bit(
    system: str, case: str, base_folder: Folder, prepared: Path, tmp_path: Path
) -> None:
    """A run of 6 steps with a checkpoint every second."""
    killed, unbroken = (
        case_command(system, case, base_folder(system), prepared, tmp_path / name) for name in ("killed", "unbroken")
    )
    kill_all([Death(killed, *CASES[case][1:])])
    run = run_folder(tmp_path / "killed", system)
    reached = {path.name for path in (run / "latest_checkpoints").glob("step_*")}
    assert (
        reached
        == {
            "plain": {"step_000000", "step_000002", "step_000004"},
            "everything": {"step_000000", "step_000002", "step_000004"},
            "in a checkpoint": {"step_000000", "step_000002"},
            "in the first": set(),
        }[case]
    )
    if case == "plain":  # it had gone further than its last checkpoint, and died while writing a line
        assert [line["step"] for line in metrics(run, "training")] == [1, 2, 3, 4, 5]
        with (run / "training_log.txt").open("a") as log:
            log.write("step 0000")
        with (run / "metrics.jsonl").open("a") as log:
            log.write('{"kind": "train')

    assert main(killed) == main(unbroken) == 0
    whole = run_folder(tmp_path / "unbroken", system)
    assert files(run) == files(whole)
    for name in files(whole):
        ours, theirs = run / name, whole / name
        if name.endswith(".safetensors"):  # whose bytes differ from save to save
            assert same(load_file(ours), load_file(theirs)), name
        elif name.startswith("step_") or name.endswith(("state.json", "reason.json", "validation_log.txt")):
            assert ours.read_bytes() == theirs.read_bytes(), name
    for kind in ("training", "validation"):
        assert metrics(run, kind) == metrics(whole, kind)
    without_seconds = [[line.rsplit(" t ", 1)[0] for line in logged(folder, "training")] for folder in (run, whole)]
    assert without_seconds[0] == without_seconds[1]
    assert not same(adapter(whole, 4), adapter(whole, 6))


def test_the_average_is_what_is_saved_and_the_raw_adapter_what_continues(
    system: str, base_folder: Folder, prepared: Path, tmp_path: Path
) -> None:
    """Worked out again from the raw adapters of each step: the decay at step k is at most k / (9 + k), warming up."""
    flags = ("--max_steps", 3, "--val_every", 1, "--learning_rate", "1e-3", *QUICK)
    raw = train(system, base_folder(system), prepared, tmp_path / "raw", *flags)
    run = train(system, base_folder(system), prepared, tmp_path / "ema", *flags, "--ema_decay", "0.2")
    expected = adapter(raw, 1)
    for step, decay in ((2, 2 / 11), (3, 0.2)):
        now = adapter(raw, step)
        expected = {name: decay * old + (1 - decay) * now[name] for name, old in expected.items()}
    saved, last = adapter(run, 3), adapter(raw, 3)
    assert all(torch.allclose(saved[name], expected[name], atol=1e-7) for name in expected)
    assert max((saved[name] - last[name]).abs().max().item() for name in last) > 1e-5
    states = [load_file(folder / "latest_checkpoints/step_000003/state.safetensors") for folder in (raw, run)]
    adapters = [name for name in states[0] if name.startswith("adapter.")]
    assert adapters
    assert all(torch.equal(states[1][name], states[0][name]) for name in adapters)


# Resuming


@pytest.fixture(scope="module")
def killed_at_the_best(tmp_path_factory: pytest.TempPathFactory, base_folder: Folder, prepared: Path) -> Path:
    """RESULTS for each function: runs whose step 4 is the best so far, killed just before that function runs there."""
    root = tmp_path_factory.mktemp("killed_at_the_best")
    flags = ["--learning_rate", "1e-2", "--max_steps", 6, *QUICK]
    kill_all(
        [
            Death(
                train_command("exp", base_folder("sd15"), prepared, root / name, *flags),
                f"retipair.runs.run_dir:{name}",
                3,
            )
            for name in SAVING
        ]
    )
    return root


SAVING = ("Run.save_checkpoint", "Run.save_best")


@pytest.mark.nightly
@pytest.mark.parametrize("function", SAVING)
def test_the_best_is_never_later_than_the_state_that_is_resumed(
    function: str, killed_at_the_best: Path, base_folder: Folder, prepared: Path
) -> None:
    results = killed_at_the_best / function
    run = run_folder(results, "sd15")
    losses = [line["loss"] for line in metrics(run, "validation")]
    assert losses == sorted(losses, reverse=True)  # each was the best so far
    flags = ["--learning_rate", "1e-2", "--max_steps", 6, *QUICK, "--val_every", 6, "--resume"]
    command = train_command("exp", base_folder("sd15"), prepared, results, *flags)
    kill_all(
        [Death(command, "retipair.training.optimizer:LoraOptimizer.step", 2)]
    )  # after it has resumed, before it validates
    checkpoint = Run(run).latest()
    assert checkpoint is not None
    best = json.loads((checkpoint / "state.json").read_text())["best"]
    assert json.loads((run / "best_checkpoint/reason.json").read_text()) == best
    assert best["step"] == step_of(checkpoint)
    assert read_adapter_metadata(run / "best_checkpoint/unet_lora").step == best["step"]  # type: ignore[union-attr]
    same_adapter = (load_file(folder / f"unet_lora/{PEFT}") for folder in (run / "best_checkpoint", checkpoint))
    assert same(*same_adapter)


@pytest.mark.nightly
def test_resume_where_nothing_is_starts(base_folder: Folder, prepared: Path, tmp_path: Path, trained: Folder) -> None:
    run = train("sd15", base_folder("sd15"), prepared, tmp_path, "--resume")
    assert same(adapter(run, 4), adapter(run_folder(trained("sd15"), "sd15"), 4))


def test_resume_of_a_finished_run_changes_nothing(
    base_folder: Folder, prepared: Path, tmp_path: Path, trained: Folder
) -> None:
    shutil.copytree(trained("sd15"), tmp_path / "r")
    before = contents(tmp_path / "r")
    train("sd15", base_folder("sd15"), prepared, tmp_path / "r", "--resume")
    after = contents(tmp_path / "r")
    mine = run_folder(Path(), "sd15").as_posix()
    assert {name for name in before if before[name] != after[name]} <= {f"{mine}/config.json"}
    assert set(after) == set(before)


def test_an_existing_run_is_not_touched_without_resume(
    system: str, refused: Refused, base_folder: Folder, prepared: Path, trained: Folder
) -> None:
    before = contents(trained(system))
    line = refused(*train_command("exp", base_folder(system), prepared, trained(system)))
    assert (line.kind, line.path) == (OccupiedError, run_folder(trained(system), system))
    assert "--resume" in line
    assert contents(trained(system)) == before


@pytest.mark.parametrize(
    "change",
    [
        ("--learning_rate", "1e-3"),
        ("--seed", 1),
        ("--batch_size", 2),
        ("--gradient_accumulation_steps", 2),
        ("--unet_lora_rank", 8),
        ("--lora_targets", "all"),
        ("--hf_lambda", 0.1),
        ("--hf_max_timestep", 1000),
        ("--offset_noise_strength", 0),
        ("--prompt", "another"),
        ("--prompt_dropout", 0.1),
        ("--half_clean_fraction", 0.1),
        ("--augment_variants", 1),
        ("--ema_decay", 0.9),
        ("--size", 64),
        ("--lr_schedule", "cosine"),
        ("--max_steps", 3),
        ("--dora",),
    ],
    ids=lambda change: change[0],
)
def test_a_resumed_run_keeps_its_settings(
    change: tuple[object, ...], refused: Refused, base_folder: Folder, prepared: Path, trained: Folder
) -> None:
    before = contents(trained("sd15"))
    command = train_command("exp", base_folder("sd15"), prepared, trained("sd15"), "--resume", *change)
    assert str(change[0]) in refused(*command)
    assert contents(trained("sd15")) == before


def test_a_resumed_run_keeps_its_pairs(refused: Refused, base_folder: Folder, tmp_path: Path, trained: Folder) -> None:
    other = write_prepared(tmp_path / "data", ["train", "train", "train", "test", "val"])
    line = refused(*train_command("exp", base_folder("sd15"), other, trained("sd15"), "--resume"))
    assert (line.kind, line.path) == (OccupiedError, run_folder(trained("sd15"), "sd15"))
    assert "--data" in line


def test_the_same_pairs_elsewhere_are_the_same_pairs(
    base_folder: Folder, prepared: Path, tmp_path: Path, trained: Folder
) -> None:
    shutil.copytree(trained("sd15"), tmp_path / "r")
    shutil.copytree(prepared, tmp_path / "moved")
    train("sd15", base_folder("sd15"), tmp_path / "moved", tmp_path / "r", "--resume")


def test_more_steps_continue_as_if_they_had_been_asked_for_at_once(
    system: str, base_folder: Folder, prepared: Path, tmp_path: Path
) -> None:
    base, flags = base_folder(system), (*QUICK, "--lr_schedule", "constant", "--learning_rate", "1e-3")
    train(system, base, prepared, tmp_path / "raised", *flags)
    raised = train(system, base, prepared, tmp_path / "raised", *flags, "--max_steps", 6, "--resume")
    once = train(system, base, prepared, tmp_path / "once", *flags, "--max_steps", 6)
    assert same(adapter(raised, 6), adapter(once, 6))
    assert metrics(raised, "training") == metrics(once, "training")
    assert json.loads((raised / "config.json").read_text())["settings"]["max_steps"] == 6


def test_an_unknown_setting_in_a_runs_config_is_refused(
    refused: Refused, base_folder: Folder, prepared: Path, tmp_path: Path, trained: Folder
) -> None:
    shutil.copytree(trained("sd15"), tmp_path / "r")
    path = run_folder(tmp_path / "r", "sd15") / "config.json"
    values = json.loads(path.read_text())
    values["settings"]["unet_lora_rnak"] = 4
    path.write_text(json.dumps(values))
    before = contents(tmp_path / "r")
    line = refused(*train_command("exp", base_folder("sd15"), prepared, tmp_path / "r", "--resume"))
    assert "config.json" in line
    assert "unet_lora_rnak" in line
    assert contents(tmp_path / "r") == before


@pytest.mark.parametrize("harm", ["cut off", "one bit", "gone", "no checksums"])
def test_a_damaged_checkpoint_is_said_and_the_one_before_it_used(
    harm: str, base_folder: Folder, prepared: Path, tmp_path: Path, trained: Folder, capsys: Capture
) -> None:
    shutil.copytree(trained("sd15"), tmp_path / "r")
    run = run_folder(tmp_path / "r", "sd15")
    path = run / "latest_checkpoints/step_000004/state.safetensors"
    if harm == "cut off":
        path.write_bytes(path.read_bytes()[:-20])
    elif harm == "one bit":
        content = bytearray(path.read_bytes())
        content[-5] ^= 1
        path.write_bytes(content)
    else:
        (path if harm == "gone" else path.with_name("checksums.json")).unlink()
    intact = adapter(run_folder(trained("sd15"), "sd15"), 4)
    assert main(train_command("exp", base_folder("sd15"), prepared, tmp_path / "r", "--resume")) == 0
    said = capsys.readouterr().err
    assert f"warning: {path.parent}: " in said
    assert "at step 2" in said
    assert same(adapter(run, 4), intact)
    assert verify_checksums(path.parent) is None


def test_generate_refuses_a_damaged_adapter(refused: Refused, tmp_path: Path, trained: Folder) -> None:
    shutil.copytree(trained("sd15"), tmp_path / "r")
    best = run_folder(tmp_path / "r", "sd15") / "best_checkpoint"
    path = best / "unet_lora/adapter_model.safetensors"
    content = bytearray(path.read_bytes())
    content[-5] ^= 1
    path.write_bytes(content)
    line = refused("generate", "-n", "exp", "--results", tmp_path / "r", "--savedir", "s", "--device", "cpu")
    assert (line.kind, line.path) == (DamagedError, best)


def test_a_best_checkpoint_that_a_kill_had_put_aside_comes_back(
    base_folder: Folder, prepared: Path, tmp_path: Path, trained: Folder
) -> None:
    shutil.copytree(trained("sd15"), tmp_path / "r")
    run = run_folder(tmp_path / "r", "sd15")
    before = contents(run / "best_checkpoint")
    (run / "best_checkpoint").rename(run / ".best_checkpoint.before")
    assert main(train_command("exp", base_folder("sd15"), prepared, tmp_path / "r", "--resume")) == 0
    assert contents(run / "best_checkpoint") == before
    assert not (run / ".best_checkpoint.before").exists()


# What counts


def test_the_seed_decides_and_nothing_else(
    base_folder: Folder, prepared: Path, tmp_path: Path, trained: Folder
) -> None:
    first = run_folder(trained("sd15"), "sd15")
    torch.manual_seed(123)
    again = train("sd15", base_folder("sd15"), prepared, tmp_path / "again")
    other = train("sd15", base_folder("sd15"), prepared, tmp_path / "other", "--seed", 1, *QUICK)
    assert same(adapter(first, 4), adapter(again, 4))
    assert not same(adapter(first, 4), adapter(other, 4))
    for name in ("cf", "fa", "joint"):
        sample = f"step_000004_random_pairs/pair_00/{name}.png"
        assert (first / sample).read_bytes() == (again / sample).read_bytes()


def test_the_first_validation_is_the_bases_alone(
    system: str, base_folder: Folder, prepared: Path, tmp_path: Path, trained: Folder
) -> None:
    """Fixed noise, fixed timesteps, no offset, no weights, no variants: nothing of the training settings is in it."""
    flags = ("--seed", 7, "--offset_noise_strength", 0.5, "--hf_lambda", 0, "--min_snr_gamma", 5, "--max_steps", 1)
    flags += ("--augment_variants", 1, "--lora_targets", "all", "--batch_size", 2, "--half_clean_fraction", 1, *QUICK)
    run = train(system, base_folder(system), prepared, tmp_path, *flags)
    assert losses(run)[0] == losses(run_folder(trained(system), system))[0]


def test_test_eyes_teach_nothing(base_folder: Folder, prepared: Path, tmp_path: Path, trained: Folder) -> None:
    data = tmp_path / "data"
    shutil.copytree(prepared, data)
    (test_eye,) = (pair for pair in read_manifest(data) if isinstance(pair, PreparedPair) and pair.split == "test")
    for path in (test_eye.cf, test_eye.fa):
        save_image(data / path, 255 - np.asarray(Image.open(data / path)))
    run = train("sd15", base_folder("sd15"), data, tmp_path, *QUICK)
    assert same(adapter(run, 4), adapter(run_folder(trained("sd15"), "sd15"), 4))
    assert losses(run) == losses(run_folder(trained("sd15"), "sd15"))


def test_gradient_checkpointing_saves_memory_and_nothing_else(
    system: str, base_folder: Folder, prepared: Path, tmp_path: Path, trained: Folder
) -> None:
    precision = json.loads((run_folder(trained(system), system) / "config.json").read_text())["settings"]["precision"]
    flags = ("--gradient_checkpointing", "--precision", precision, *QUICK)
    run = train(system, base_folder(system), prepared, tmp_path, *flags)
    losses = [
        [line["loss"] for line in metrics(folder, "training")] for folder in (run, run_folder(trained(system), system))
    ]
    assert losses[0] == pytest.approx(losses[1], rel=1e-5)


def test_accumulation_is_a_larger_batch(base_folder: Folder, prepared: Path, tmp_path: Path) -> None:
    """Two passes of one pair, or one of two: the same samples, the same mean, the same step."""
    flags = ("--hf_max_timestep", 1000, "--max_grad_norm", 0, "--optimizer", "adamw", "--precision", "fp32", *QUICK)
    parts = train("sd15", base_folder("sd15"), prepared, tmp_path / "a", "--gradient_accumulation_steps", 2, *flags)
    whole = train("sd15", base_folder("sd15"), prepared, tmp_path / "b", "--batch_size", 2, *flags)
    for first, second in zip(metrics(parts, "training"), metrics(whole, "training"), strict=True):
        assert first["t"] == second["t"]
        assert first["loss"] == pytest.approx(second["loss"], rel=1e-4)
        assert first["hf"] == pytest.approx(second["hf"], rel=1e-4)


def test_the_adapter_is_fp32_and_moves_on_a_bf16_base(
    system: str, base_folder: Folder, prepared: Path, tmp_path: Path
) -> None:
    flags = ("--precision", "bf16", "--learning_rate", "1e-4", "--max_steps", 6, *QUICK)
    run = train(system, base_folder(system), prepared, tmp_path, *flags)
    first, last = adapter(run, 2), adapter(run, 6)
    assert {tensor.dtype for tensor in last.values()} == {torch.float32}
    moved = torch.cat([(last[name] != first[name]).flatten() for name in last])
    assert moved.float().mean() > 0.95  # a bf16 adapter leaves most weights where they were
    assert json.loads((run / "config.json").read_text())["settings"]["precision"] == "bf16"


@pytest.mark.parametrize(("speed", "precision"), [(0.01, "fp32"), (1.2, "fp32"), (1.3, "bf16")])
def test_auto_chooses_the_precision_with_faster_matrix_products(
    speed: float, precision: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("retipair.training.plan.cpu_bf16_speed", lambda: speed)
    auto = TrainConfig(name="x")
    chosen, reason = choose_precision(auto, "cpu", previous=None)
    assert chosen == precision
    assert f"{speed} times as fast" in reason
    assert choose_precision(replace(auto, precision="fp32"), "cpu", previous=None) == ("fp32", "")
    assert choose_precision(auto, "cpu", previous=auto) == ("auto", ""), "a run of an earlier version"
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert choose_precision(auto, "cpu", previous=None) == ("fp32", "")


def test_a_resumed_run_keeps_the_precision_that_auto_chose(
    refused: Refused,
    base_folder: Folder,
    prepared: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    reason = "precision: bf16, because matrix products in bf16 are 2 times as fast as in fp32 on this CPU"
    monkeypatch.setattr("retipair.training.plan.cpu_bf16_speed", lambda: 2.0)
    run = train("sd15", base_folder("sd15"), prepared, tmp_path, "--max_steps", 2, *QUICK)
    assert reason in capsys.readouterr().err
    monkeypatch.setattr("retipair.training.plan.cpu_bf16_speed", lambda: 0.1)
    train("sd15", base_folder("sd15"), prepared, tmp_path, "--max_steps", 4, *QUICK, "--resume")
    assert "precision: " not in capsys.readouterr().err
    assert json.loads((run / "config.json").read_text())["settings"]["precision"] == "bf16"
    before = contents(tmp_path)
    command = train_command("exp", base_folder("sd15"), prepared, tmp_path, "--resume")
    assert "was started with --precision bf16" in refused(*command, "--precision", "fp32", "--max_steps", 4, *QUICK)
    assert contents(tmp_path) == before


@pytest.mark.parametrize("system", ["sd15"])
@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (("--dora",), {"use_dora": True}),
        (("--rslora",), {"use_rslora": True}),
        (("--unet_lora_rank", 8, "--unet_lora_alpha", 2.5), {"r": 8, "lora_alpha": 2.5}),
    ],
    ids=["dora", "rslora", "rank"],
)
def test_kinds_of_adapter_train_and_say_what_they_are(
    system: str, flags: tuple[object, ...], said: dict[str, object], base_folder: Folder, prepared: Path, tmp_path: Path
) -> None:
    run = train(system, base_folder(system), prepared, tmp_path, "--learning_rate", "1e-3", *flags, *QUICK)
    config = json.loads((run / "latest_checkpoints/step_000004/unet_lora/adapter_config.json").read_text())
    assert {key: config[key] for key in said} == said
    if config["use_dora"]:
        assert any("magnitude" in name for name in adapter(run, 4))
    assert not same(adapter(run, 2), adapter(run, 4))
    losses = [line["loss"] for line in metrics(run, "validation")]
    assert losses[-1] != losses[0]


def test_all_targets_are_more_than_attention(
    base_folder: Folder, prepared: Path, tmp_path: Path, trained: Folder
) -> None:
    run = train("sd15", base_folder("sd15"), prepared, tmp_path, "--lora_targets", "all", "--max_steps", 1, *QUICK)
    attention, everything = set(adapter(run_folder(trained("sd15"), "sd15"), 0)), set(adapter(run, 0))
    assert attention < everything
    more = " ".join(everything - attention)
    assert all(f".{target}.lora_" in more for target in ("ff.net.0.proj", "ff.net.2", "proj_in", "proj_out"))
    assert all(re.search(r"\.(to_q|to_k|to_v|to_out\.0)\.lora_", name) for name in attention)


def test_min_snr_changes_what_is_learnt_and_not_what_is_logged(
    base_folder: Folder, prepared: Path, tmp_path: Path, trained: Folder
) -> None:
    plain = run_folder(trained("sd15"), "sd15")
    run = train("sd15", base_folder("sd15"), prepared, tmp_path, "--min_snr_gamma", 0.01, *QUICK)
    first, second = metrics(plain, "training")[0], metrics(run, "training")[0]
    assert second["mse"] == pytest.approx(first["mse"])
    assert second["loss"] < 0.5 * first["loss"]
    assert not same(adapter(plain, 4), adapter(run, 4))


def test_captions_are_heard_and_recorded(system: str, base_folder: Folder, tmp_path: Path) -> None:
    splits = ["train", "val", "train", "train"]
    silent = write_prepared(tmp_path / "silent", splits)
    spoken = write_prepared(tmp_path / "spoken", splits, {0: "early phase", 2: "late phase", 3: "late phase"})
    runs = [train(system, base_folder(system), data, tmp_path / f"to_{data.name}", *QUICK) for data in (silent, spoken)]
    descriptions = [read_adapter_metadata(run / "best_checkpoint/unet_lora") for run in runs]
    assert [d.prompts for d in descriptions if d] == [
        [(DEFAULT_PROMPT, 3)],
        [("early phase", 1), ("late phase", 2)],
    ]
    assert metrics(runs[0], "training")[0]["mse"] != metrics(runs[1], "training")[0]["mse"]


def test_a_validation_pair_hears_its_own_caption(base_folder: Folder, tmp_path: Path) -> None:
    """Also one that no training pair has."""
    losses = []
    for caption in ("early phase", "late phase"):
        data = write_prepared(tmp_path / caption, ["train", "val"], {1: caption})
        run = train("sd15", base_folder("sd15"), data, tmp_path / f"to {caption}", "--max_steps", 1, *QUICK)
        losses.append(metrics(run, "validation")[0]["loss"])
        description = read_adapter_metadata(run / "best_checkpoint/unet_lora")
        assert description is not None
        assert description.prompts == [(DEFAULT_PROMPT, 1)]
    assert losses[0] != losses[1]


def test_prompt_dropout_is_recorded_and_trains_some_samples_without(
    base_folder: Folder, prepared: Path, tmp_path: Path
) -> None:
    still = ("--learning_rate", 0, *QUICK)  # so that steps differ by what they hear alone
    run = train("sd15", base_folder("sd15"), prepared, tmp_path / "some", "--prompt_dropout", 0.5, *still)
    description = read_adapter_metadata(run / "best_checkpoint/unet_lora")
    assert description is not None
    assert description.prompt_dropout == 0.5
    plain = train("sd15", base_folder("sd15"), prepared, tmp_path / "none", *still)
    pairs = zip(metrics(run, "training"), metrics(plain, "training"), strict=True)
    differs = [with_["mse"] != without["mse"] for with_, without in pairs]
    assert any(differs)
    assert not all(differs)


def test_half_clean_samples_count_and_are_logged_for_one_view_and_others_for_both(
    base_folder: Folder, prepared: Path, tmp_path: Path
) -> None:
    still = ("--learning_rate", 0, "--hf_lambda", 0, "--max_steps", 6, *QUICK)
    half = train("sd15", base_folder("sd15"), prepared, tmp_path / "half", "--half_clean_fraction", 0.6, *still)
    plain = train("sd15", base_folder("sd15"), prepared, tmp_path / "plain", "--half_clean_fraction", 0, *still)
    kinds = set()
    for ours, theirs in zip(metrics(half, "training"), metrics(plain, "training"), strict=True):
        counted = tuple(view for view in ("cf", "fa") if ours[f"mse_{view}"] > 0)
        assert ours["mse"] == pytest.approx(np.mean([ours[f"mse_{view}"] for view in counted]))
        assert ours["loss"] == pytest.approx(ours["mse"])
        assert (ours["mse_cf"] == theirs["mse_cf"]) == (len(counted) == 2)
        kinds.add(counted)
    assert kinds == {("cf",), ("fa",), ("cf", "fa")}
    assert metrics(half, "validation") == metrics(plain, "validation")


def test_losses_of_a_half_are_means_over_the_samples_it_counts_in() -> None:
    meter, t = LossMeter(("mse", "hf"), "cpu"), torch.tensor([100, 500])
    mse, hf = torch.tensor([[0.0, 2.0], [3.0, 4.0]]), torch.tensor([[0.0, 0.5], [0.0, 0.0]])
    values = {"mse": mse, "hf": hf}
    counts = {name: (value > 0).float() for name, value in values.items()}
    meter.add(Losses(torch.tensor(1.5), values, counts), t)
    meter.add(Losses(torch.tensor(2.5), values, counts), t)
    assert meter.sums.tolist() == [8.0, 1200.0, 4.0, 6.0, 12.0, 0.0, 1.0, 2.0, 4.0, 0.0, 2.0]  # as states of 0.1.0
    assert meter.read(SINGLE_PROCESS) == {
        **{"loss": 2.0, "mse": 3.0, "mse_cf": 3.0, "mse_fa": 3.0, "hf": 0.5, "hf_cf": 0.0, "hf_fa": 0.5, "t": 300.0},
    }


def test_the_log_line_has_every_loss_that_the_meter_holds(tmp_path: Path) -> None:
    meter = LossMeter(("mse", "edges"), "cpu")
    ones = torch.ones(1, 2)
    meter.add(Losses(torch.tensor(3.0), {"mse": ones, "edges": 2 * ones}, {"mse": ones, "edges": ones}), torch.ones(1))
    log_training(Run(tmp_path), 7, 1e-4, meter.read(SINGLE_PROCESS), 2.0, 0.5, Tracker())
    assert (tmp_path / "training_log.txt").read_text() == (
        "step 000007 lr 1.000e-04 loss 3.000000 mse 1.000000 (cf 1.000000 fa 1.000000) "
        "edges 2.000000 (cf 2.000000 fa 2.000000) t 1.0 2.0 s\n"
    )
    assert {"mse_cf": 1.0, "edges": 2.0, "edges_fa": 2.0}.items() <= metrics(tmp_path, "training")[0].items()


def test_either_family_can_have_either_layout(system: str, base_folder: Folder, prepared: Path, tmp_path: Path) -> None:
    """And generation takes the layout that the adapter was trained with."""
    other = {"sdxl": "squeezed", "sd15": "side_by_side"}[system]
    run = train(system, base_folder(system), prepared, tmp_path, "--layout", other, "--max_steps", 1)
    size = {"squeezed": (VIEW, VIEW), "side_by_side": (2 * VIEW, VIEW)}[other]
    with Image.open(run / "step_000000_random_pairs/pair_00/joint.png") as joint:
        assert joint.size == size
    words = ["generate", "-n", "exp", "--results", tmp_path, "--out", tmp_path / "o", "--amount", 1, "--steps", 1]
    assert main([str(word) for word in (*words, "--device", "cpu")]) == 0
    with Image.open(tmp_path / "o/1/joint.png") as joint:
        assert joint.size == size


def test_a_smaller_size_is_smaller_everywhere(system: str, base_folder: Folder, prepared: Path, tmp_path: Path) -> None:
    run = train(system, base_folder(system), prepared, tmp_path, "--size", 64, "--max_steps", 1)
    joint = Image.open(run / "step_000001_random_pairs/pair_00/joint.png")
    assert joint.size == tuple(side // 2 for side in JOINT[system])
    description = read_adapter_metadata(run / "best_checkpoint/unet_lora")
    assert description is not None
    assert description.view_size == 64
    assert description.size_ids == {"sdxl": [64, 128, 0, 0, 64, 128], "sd15": []}[system]


@pytest.mark.nightly
def test_the_tracker_gets_metrics_and_sample_pairs(base_folder: Folder, prepared: Path, tmp_path: Path) -> None:
    pytest.importorskip("tensorboard")
    run = train("sd15", base_folder("sd15"), prepared, tmp_path, "--tracker", "tensorboard", *QUICK)
    events = list(run.rglob("events.out.tfevents.*"))
    assert events
    written = b"".join(path.read_bytes() for path in events)
    for name in (b"training/loss", b"training/mse_cf", b"validation/loss", b"validation/t500_fa", b"samples"):
        assert name in written
    for private in (str(tmp_path), str(prepared), str(base_folder("sd15"))):
        assert private.encode() not in written


def schedule(**values: object) -> Callable[[int], float]:
    config = replace(TrainConfig(name="x"), **values)  # type: ignore[arg-type]
    return lambda step: learning_rate(step, config)


def test_the_learning_rate_is_the_originals() -> None:
    rate = schedule()
    assert rate(0) == rate(3999) == 5e-5
    assert rate(4000) == pytest.approx(5e-5)
    assert rate(9500) == pytest.approx((5e-5 + 1e-5) / 2)  # half-way through the cosine
    assert rate(15_000) == pytest.approx(1e-5)
    falling = [rate(step) for step in range(4000, 15_001, 500)]
    assert falling == sorted(falling, reverse=True)


def test_short_runs_fall_in_proportion_and_warm_up_is_linear() -> None:
    short = schedule(max_steps=30)
    assert short(7) == 5e-5
    assert short(9) < 5e-5
    assert short(30) == pytest.approx(1e-5)
    warm = schedule(lr_warmup_steps=10, lr_schedule="constant")
    assert [warm(step) for step in (0, 4, 9, 500)] == pytest.approx([5e-6, 2.5e-5, 5e-5, 5e-5])


# Raw pairs


def test_a_name_that_is_taken_is_refused_before_raw_pairs_are_prepared(
    base_folder: Folder, trained: Folder, tmp_path: Path, refused: Refused
) -> None:
    results = shutil.copytree(trained("sd15"), tmp_path / "results")
    write_raw(tmp_path / "raw", n=2, size=128)
    command = train_command("exp", base_folder("sd15"), tmp_path / "raw", results)
    assert refused(*command).kind is OccupiedError
    assert not (results / "prepared").exists()


@pytest.mark.nightly
def test_raw_pairs_are_prepared_once(
    base_folder: Folder, tmp_path: Path, capsys: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_raw(tmp_path / "raw", n=2, size=128)
    results, base = tmp_path / "results", base_folder("sd15")
    flags = ("--max_steps", 1, *QUICK)
    run = train("sd15", base, tmp_path / "raw", results, *flags)
    (folder,) = (results / "prepared").iterdir()
    said = capsys.readouterr()
    assert str(folder) in said.err
    assert "Next: retipair train" not in said.out + said.err
    before = contents(folder)
    assert {record.id for record in read_manifest(folder)} == {"001", "002"}

    def never(settings: object) -> Path:
        raise AssertionError("prepared again")

    with monkeypatch.context() as patched:
        patched.setattr("retipair.preparation.prepare.prepare_pairs", never)
        assert main(train_command("second", base, tmp_path / "raw", results, *flags)) == 0
    assert contents(folder) == before
    second = run_folder(results, "sd15", "second")
    assert same(adapter(run, 1), adapter(second, 1))
    direct = train("sd15", base, folder, tmp_path / "direct", *flags)
    assert same(adapter(run, 1), adapter(direct, 1))
    capsys.readouterr()
    assert main(["generate", "-n", "exp", "--results", str(results), "--mode", "from_data", "--amount", "1"]) == 0


# --dry_run


def test_dry_run_says_what_would_be_and_touches_nothing(
    system: str,
    base_folder: Folder,
    prepared: Path,
    tmp_path: Path,
    capsys: Capture,
    trained: Folder,
) -> None:
    command = train_command("exp", base_folder(system), prepared, tmp_path / "results", "--dry_run", "--batch_size", 3)
    assert main(command) == 0
    said = capsys.readouterr().out
    assert not (tmp_path / "results").exists()
    assert re.search(rf"system +{system}", said)
    latents = {"sdxl": "[3, 4, 16, 32]", "sd15": "[3, 4, 16, 16]"}[system]
    assert re.search(rf"latent +{re.escape(latents)}", said)
    learnt = adapter(run_folder(trained(system), system), 0)
    assert re.search(rf"trainable parameters +{sum(t.numel() for t in learnt.values()):,}", said)
    assert re.search(r"pairs +3 for training, 1 for validation, 1 for testing", said)
    assert re.search(r"memory.* \d+\.\d\d GiB", said)
    for name, value in (
        ("max_steps", "4"),
        ("unet_lora_rank", "4"),
        ("offset_noise_strength", "0.1"),
        ("device", "cpu"),
    ):
        assert re.search(rf"^{name} +{value}$", said, re.MULTILINE)


def test_dry_run_leaves_an_existing_run_alone(base_folder: Folder, prepared: Path, trained: Folder) -> None:
    before = contents(trained("sd15"))
    assert main(train_command("exp", base_folder("sd15"), prepared, trained("sd15"), "--dry_run")) == 0
    assert contents(trained("sd15")) == before


# Bad input: one line, status 2, nothing written


@pytest.fixture
def refuses(refused: Refused, base_folder: Folder, prepared: Path, tmp_path: Path) -> Refused:
    """Refuse a training with these flags instead of the usual ones; nothing is written under RESULTS."""

    def run(*more: object, base: object = None, data: Path | None = None) -> Refusal:
        results = tmp_path / "results"
        line = refused(*train_command("exp", base or base_folder("sd15"), data or prepared, results, *more))
        left = files(results) if results.exists() else set()
        # Latents of whole sets of pairs are kept for the next try; there is no run, and nothing half-written.
        assert all(re.fullmatch(r"latents/[0-9a-f]+/(mean.npy|std.npy|done.json)", name) for name in left)
        assert not left or base is not None
        return line

    return run


@pytest.mark.parametrize(
    "flag",
    [
        *("max_steps", "batch_size", "gradient_accumulation_steps", "unet_lora_rank", "augment_variants"),
        *("val_every", "log_every", "sample_steps", "hf_max_timestep", "sample_pair_guidance"),
    ],
)
@pytest.mark.parametrize("value", [0, -1])
def test_counts_start_at_one(flag: str, value: int, refuses: Refused) -> None:
    assert refuses(f"--{flag}", value).setting == flag


@pytest.mark.parametrize(
    "flag",
    [
        *("learning_rate", "lr_end", "lr_warmup_steps", "weight_decay", "max_grad_norm", "hf_lambda", "seed"),
        *("offset_noise_strength", "min_snr_gamma", "num_samples", "ema_decay", "prompt_dropout"),
        "half_clean_fraction",
    ],
)
def test_amounts_are_not_negative(flag: str, refuses: Refused) -> None:
    assert refuses(f"--{flag}", -1).setting == flag


@pytest.mark.parametrize(
    ("flag", "value"),
    [
        ("size", 96),
        ("size", 0),
        ("size", -64),
        ("ema_decay", 1),
        ("prompt_dropout", 1),
        ("half_clean_fraction", 1.1),
        ("half_clean_fraction", "nan"),
        ("unet_lora_alpha", "nan"),
        ("hf_kernel", 4),
        ("hf_kernel", 1),
        ("hf_kernel", 65),
        ("learning_rate", "nan"),
        ("device", "abacus"),
        ("tracker", "wandb"),
    ],
)
def test_values_that_cannot_work_are_named(
    flag: str, value: object, refuses: Refused, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("retipair.training.plan.find_spec", lambda name: None)  # as if no tracker were installed
    assert refuses(f"--{flag}", value).setting == flag


@pytest.mark.parametrize("flag", ["unet_lora_alpha", "hf_sigma"])
def test_factors_are_above_zero(flag: str, refuses: Refused) -> None:
    assert f"--{flag}" in refuses(f"--{flag}", 0)


@pytest.mark.parametrize("name", ["", "a/b", "..", "/tmp/x", ".hidden"])
def test_a_name_is_one_folder(name: str, refused: Refused, base_folder: Folder, prepared: Path, tmp_path: Path) -> None:
    line = refused("train", "-n", name, "--data", prepared, "--base", base_folder("sd15"), "--results", tmp_path / "r")
    assert line.setting == "name"
    assert not (tmp_path / "r").exists()


def test_an_unknown_flag_writes_nothing(refuses: Refused) -> None:
    assert "--max_stepz" in refuses("--max_stepz", 3)


def test_without_data_it_says_how_to_get_some(refused: Refused, tmp_path: Path) -> None:
    line = refused("train", "-n", "x", "--results", tmp_path / "r")
    assert "--data" in line
    assert "retipair prepare" in line
    assert not (tmp_path / "r").exists()


def test_data_that_is_not_there_or_nothing_is_named(refuses: Refused, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    assert refuses(data=tmp_path / "nowhere").setting == "data"
    line = refuses(data=tmp_path / "empty")
    assert (line.kind, line.path) == (MissingError, tmp_path / "empty")


@pytest.mark.parametrize("fault", ["empty", "torn", "unknown key", "missing image", "no val", "no train"])
def test_a_manifest_that_cannot_be_trained_on_is_named(fault: str, refuses: Refused, tmp_path: Path) -> None:
    splits = {"no val": ["train", "train"], "no train": ["val", "test"]}.get(fault, ["train", "val"])
    data = write_prepared(tmp_path / "data", splits)
    manifest, said = data / "manifest.jsonl", str(data)
    if fault == "empty":
        write_manifest(data, [])
    elif fault == "torn":
        manifest.write_text(manifest.read_text()[:-30])
        said = "manifest.jsonl, line 2"
    elif fault == "unknown key":
        manifest.write_text(manifest.read_text().replace('"eye":', '"eyes":'))
        said = "manifest.jsonl, line 1"
    elif fault == "missing image":
        (data / "fa/eye0.png").unlink()
        said = "fa/eye0.png"
    assert said in refuses(data=data)


def test_a_broken_image_is_named_and_leaves_no_half_cache(refuses: Refused, tmp_path: Path) -> None:
    data = write_prepared(tmp_path / "data", ["train", "train", "val"])
    path = data / "cf/eye1.png"
    path.write_bytes(path.read_bytes()[:500])
    assert refuses(data=data).path == path


def test_a_base_that_is_neither_system_is_refused(refuses: Refused, base_folder: Folder, tmp_path: Path) -> None:
    base = tmp_path / "base"
    shutil.copytree(base_folder("sdxl"), base)
    config = base / "unet/config.json"
    config.write_text(config.read_text().replace('"text_time"', '"image"'))
    assert refuses(base=base).setting == "base"


def test_an_inpainting_base_is_refused(refuses: Refused, base_folder: Folder, tmp_path: Path) -> None:
    base = tmp_path / "base"
    shutil.copytree(base_folder("sd15"), base)
    config = base / "unet/config.json"
    config.write_text(config.read_text().replace('"in_channels": 4', '"in_channels": 9'))
    assert refuses(base=base).setting == "base"


@pytest.mark.parametrize("missing", ["model_index.json", "unet/config.json", "vae/config.json", "text_encoder"])
def test_half_a_base_is_refused(missing: str, refuses: Refused, base_folder: Folder, tmp_path: Path) -> None:
    base = tmp_path / "base"
    shutil.copytree(base_folder("sd15"), base)
    (base / missing).rename(tmp_path / "elsewhere")
    assert str(base) in refuses(base=base)


@pytest.mark.parametrize("part", ["unet", "vae", "text_encoder"])
@pytest.mark.parametrize("harm", ["cut off", "gone"])
def test_a_base_with_broken_weights_is_refused(
    part: str, harm: str, refuses: Refused, base_folder: Folder, tmp_path: Path
) -> None:
    base = tmp_path / "base"
    shutil.copytree(base_folder("sd15"), base)
    (weights,) = (base / part).glob("*.safetensors")
    if harm == "gone":
        weights.unlink()
    else:
        weights.write_bytes(weights.read_bytes()[:-1000])
    assert str(base) in refuses(base=base)


@pytest.mark.parametrize("kind", ["ckpt", "no unet", "truncated", "not safetensors"])
def test_a_file_that_is_no_base_is_refused(kind: str, refuses: Refused, base_folder: Folder, tmp_path: Path) -> None:
    weights = base_folder("sd15") / "vae/diffusion_pytorch_model.safetensors"
    path = tmp_path / ("model.ckpt" if kind == "ckpt" else "model.safetensors")
    content = weights.read_bytes()
    path.write_bytes({"truncated": content[:-100], "not safetensors": b"PK" + content[:300]}.get(kind, content))
    assert str(path) in refuses(base=path)


def test_a_hub_id_without_network_says_what_to_do(refuses: Refused) -> None:
    line = refuses(base="nobody/no-such-model")
    assert line.setting == "base"
    assert "--base FOLDER" in line
    assert "--base tiny-sdxl" in line


def test_a_random_base_that_does_not_exist_lists_those_that_do(refuses: Refused) -> None:
    line = refuses(base="random:sdxxl")
    assert "random:sdxl" in line
    assert "random:sd15" in line


def test_a_missing_file_is_not_taken_for_a_hub_id(refuses: Refused, tmp_path: Path) -> None:
    line = refuses(base=tmp_path / "nowhere" / "model.safetensors")
    assert line.setting == "base"
    assert "no such file or folder" in line


# What is there already


def test_a_folder_that_is_no_run_of_ours_is_left_alone(
    refused: Refused, base_folder: Folder, prepared: Path, tmp_path: Path
) -> None:
    """A run of the original scripts, say: its adapters and logs must survive."""
    old = tmp_path / "out_joint_sd15_cffa_pairs/exp"
    (old / "latest_checkpoints/step_014500/unet_lora").mkdir(parents=True)
    (old / "training_log.txt").write_text("Step 100 | lr=5e-5\n")
    before = contents(old)
    for more in ([], ["--resume"]):
        line = refused(*train_command("exp", base_folder("sd15"), prepared, tmp_path, *more))
        assert (line.kind, line.path) == (OccupiedError, old)
    assert contents(old) == before


def test_a_resume_that_is_refused_changes_nothing(
    refused: Refused, base_folder: Folder, prepared: Path, tmp_path: Path
) -> None:
    run = train("sd15", base_folder("sd15"), prepared, tmp_path, *QUICK)
    for state in run.rglob("state.safetensors"):
        state.write_bytes(state.read_bytes()[:100])
    before = contents(run)
    more = [*QUICK, "--max_steps", 6, "--resume"]
    line = refused(*train_command("exp", base_folder("sd15"), prepared, tmp_path, *more))
    assert "step_000004" in line
    assert contents(run) == before


def test_other_weights_under_the_same_path_are_not_resumed(
    refused: Refused, base_folder: Folder, prepared: Path, tmp_path: Path
) -> None:
    base = shutil.copytree(base_folder("sd15"), tmp_path / "base")
    train("sd15", base, prepared, tmp_path, *QUICK)
    path = next((base / "unet").glob("*.safetensors"))
    tensors = load_file(path)
    first = next(iter(tensors))
    save_file({**tensors, first: tensors[first] + 1}, path, {"format": "pt"})
    line = refused(*train_command("exp", base, prepared, tmp_path, *QUICK, "--resume"))
    assert (line.kind, line.path) == (OccupiedError, run_folder(tmp_path, "sd15"))
    assert "weights of --base" in line


def test_latents_cut_off_on_disk_are_made_again(base_folder: Folder, prepared: Path, tmp_path: Path) -> None:
    first = train("sd15", base_folder("sd15"), prepared, tmp_path, *QUICK)
    for path in (tmp_path / "latents").rglob("mean.npy"):
        path.write_bytes(path.read_bytes()[:200])
    assert main(train_command("again", base_folder("sd15"), prepared, tmp_path, *QUICK)) == 0
    assert metrics(first.with_name("again"), "validation") == metrics(first, "validation")


@pytest.mark.parametrize(
    ("flag", "value"),
    [("learning_rate", "inf"), ("hf_lambda", "nan"), ("sample_steps", 1000), ("seed", 10**30), ("size", 8192)],
)
def test_numbers_that_cannot_be_meant_are_refused(refuses: Refused, flag: str, value: object) -> None:
    assert refuses(f"--{flag}", value).setting == flag


# What a resume may change

MOVED = {"resume", "dry_run", "offline", "results", "data", "base", "tokenizer"}
SAID = {"device", "tracker", "max_steps", "val_every", "log_every", "on_nan", "memory", "gradient_checkpointing"}
SAMPLES = {"num_samples", "sample_steps", "sample_pair_guidance"}


def another(value: Any, hint: Any) -> Any:
    """Another value of the same setting."""
    if get_origin(hint) is Literal:
        return next(choice for choice in get_args(hint) if choice != value)
    if isinstance(value, bool):
        return not value
    if isinstance(value, int | float):
        return value + 1
    return Path("elsewhere") if Path in (hint, *get_args(hint)) else f"{value}x" if isinstance(value, str) else 64


@pytest.mark.parametrize("best_by", ["loss", "both"])
@pytest.mark.parametrize("name", [field.name for field in fields(TrainConfig) if field.name not in ("name", "best_by")])
def test_every_setting_is_kept_changed_and_said_or_refused(name: str, best_by: BestBy, tmp_path: Path) -> None:
    began = TrainConfig(name="x", best_by=best_by, num_samples=4, sample_steps=8)
    start_run(Run(tmp_path), began, {})
    value = another(getattr(began, name), get_type_hints(TrainConfig)[name])
    now = replace(began, **{"resume": True, name: value})
    if name in MOVED | SAID or (name in SAMPLES and best_by == "loss"):
        check_run(tmp_path, now, {})
        expected = [] if name in MOVED else [f"--{name} {value} ({getattr(began, name)} before)"]
        assert changed_settings(Run(tmp_path), now) == expected
    else:
        with pytest.raises(OccupiedError, match=f"--{name}"):
            check_run(tmp_path, now, {})


def test_what_a_resume_changes_is_said_and_logged(
    base_folder: Folder, prepared: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    flags = ("--max_steps", 2, "--val_every", 2)
    run = train("sd15", base_folder("sd15"), prepared, tmp_path, *flags)
    capsys.readouterr()
    train("sd15", base_folder("sd15"), prepared, tmp_path, "--val_every", 2, "--sample_steps", 3, "--resume")
    said = "resumed from step 2 with other settings: --max_steps 4 (2 before), --sample_steps 3 (2 before)"
    assert said in capsys.readouterr().err
    assert said in (run / "training_log.txt").read_text()


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({}, (10, 50)),
        ({"max_steps": 500}, (10, 50)),
        ({"max_steps": 250}, (5, 25)),
        ({"max_steps": 20}, (2, 10)),
        ({"max_steps": 1}, (2, 10)),
        ({"max_steps": 20, "best_by": "both"}, (10, 50)),
        ({"max_steps": 20, "num_samples": 0}, (0, 10)),
        ({"max_steps": 20, "num_samples": 12, "sample_steps": 70}, (12, 70)),
        ({"sample_steps": 20}, (10, 20)),
    ],
)
def test_short_runs_sample_less_unless_asked(settings: dict[str, Any], expected: tuple[int, int]) -> None:
    config = with_samples(TrainConfig(name="x", **settings), previous=None)
    assert (config.num_samples, config.sample_steps) == expected
    resumed = with_samples(TrainConfig(name="x", resume=True, max_steps=15_000), previous=config)
    assert (resumed.num_samples, resumed.sample_steps) == expected, "it keeps its own"


def test_sample_pairs_can_be_guided_and_the_adapter_is_the_same(
    trained: Folder, base_folder: Folder, prepared: Path, tmp_path: Path
) -> None:
    plain = run_folder(trained("sd15"), "sd15")
    guided = train("sd15", base_folder("sd15"), prepared, tmp_path, "--sample_pair_guidance", 4)
    images = [Image.open(run / "step_000004_random_pairs/pair_00/cf.png") for run in (plain, guided)]
    assert images[0].tobytes() != images[1].tobytes()
    assert ["Pair guidance" in image.text for image in images] == [False, True]  # type: ignore[attr-defined]
    assert same(adapter(plain, 4), adapter(guided, 4))


def test_a_dry_run_says_what_is_enlarged_and_sampled(
    base_folder: Folder, prepared: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    command = train_command("exp", base_folder("sd15"), prepared, tmp_path, "--size", 2 * VIEW)
    assert main([*command, "--dry_run"]) == 0
    said = capsys.readouterr().out
    assert re.search(rf"views +{2 * VIEW} px, enlarged from {VIEW}: prepare them with --size {2 * VIEW}", said)
    assert re.search("samples +1 pairs of 2 denoising steps at each validation", said)
    assert re.findall("^layout +(.*)", said, re.MULTILINE) == [f"squeezed, joint image {2 * VIEW}x{2 * VIEW}"]
    assert main([*command, "--max_steps", "1", "--val_every", "1", "--num_samples", "0"]) == 0
    said = capsys.readouterr().err
    assert said.index("warning: views: ") < said.index("trainable parameters")


def test_native_size_ids_are_kept_by_a_resumed_run_and_advised_for_enlarged_pairs(
    base_folder: Folder, tmp_path: Path, refused: Refused, capsys: Capture
) -> None:
    """The advice is for bases with size ids only. Sizes that have changed since the run started are refused."""
    data = write_prepared(tmp_path / "data", ["train", "train", "val"])

    def with_sizes(side: int) -> None:
        write_manifest(data, [structs.replace(record, native_size=[VIEW, side]) for record in read_manifest(data)])

    with_sizes(50)
    warning = f"2 of 2 training pairs were enlarged to {VIEW} px (smallest: 50 px)"
    for system, size_ids, advised in (("sdxl", "full", True), ("sdxl", "native", False), ("sd15", "full", False)):
        command = train_command(size_ids, base_folder(system), data, tmp_path, *QUICK, "--size_ids", size_ids)
        assert main([*command, "--max_steps", "1", "--val_every", "1"]) == 0
        said = capsys.readouterr().err
        assert (warning in said) == (size_ids == "full"), system
        assert ("--size_ids native" in said) == advised, system
    command = train_command("native", base_folder("sdxl"), data, tmp_path, *QUICK, "--size_ids", "native")
    longer = [*command, "--max_steps", "2", "--val_every", "1", "--resume"]
    with_sizes(51)
    assert refused(*longer).kind is OccupiedError
    with_sizes(50)
    assert main(longer) == 0
    command = train_command("other", base_folder("sd15"), data, tmp_path, "--size_ids", "native")
    assert refused(*command).setting == "size_ids"
