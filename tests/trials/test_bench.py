"""`retipair bench` measures the commands themselves and writes JSON that can be read back."""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from statistics import median
from typing import Any

import pytest
import torch

from conftest import VIEW
from refusals import Refused
from retipair.config import BenchConfig, TrainConfig
from retipair.data.dataset import read_dataset
from retipair.data.layout import Layout
from retipair.diffusion.guidance import NO_GUIDANCE
from retipair.interfaces.cli import main
from retipair.models.base import open_base
from retipair.training.plan import make_plan
from retipair.training.step import PARTS
from retipair.trials import baseline
from retipair.trials.baseline import PHASES, BaselineStep
from retipair.trials.bench import flop_of_step, make_generation_plan, planned
from retipair.trials.summary import Cost, print_figures, summarize_cost

Capture = pytest.CaptureFixture[str]
ALWAYS = {"schema", "what", "unit", "milliseconds", "pairs_per_second", "seconds", "memory_gib", "matrix_tflops"} | {
    *("start_seconds", "shares", "operators", "settings", "machine")
}
COUNTED = {"tflop", "tflops", "share_of_matrix"}
COMPARED = {"ratio", "ratios", "against_milliseconds", "against_phases_milliseconds"}


@pytest.fixture(autouse=True)
def _few_eyes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("retipair.trials.bench.EYES", 2)


def bench(folder: Path, *words: object) -> dict[str, Any]:
    """Measure once or twice, and return the content of --json."""
    path = folder / "figures.json"
    common = ["--repeats", 1 if "evaluate" in words else 2, "--warmup", 0, "--json", path]
    assert main([str(word) for word in ["bench", *words, *common]]) == 0
    return json.loads(path.read_text())


@pytest.mark.nightly
@pytest.mark.parametrize(
    ("system", "against"), [("sdxl", "original"), pytest.param("sd15", "bare", marks=pytest.mark.slow)]
)
def test_a_step_beside_another(system: str, against: str, tmp_path: Path, capsys: Capture) -> None:
    figures = bench(tmp_path, "train", "--base", f"random:tiny-{system}", "--against", against, "--batch_size", 2)
    assert set(figures) == ALWAYS | COUNTED | COMPARED
    assert figures["milliseconds"] == pytest.approx(1000 * median(figures["seconds"]), rel=0.01)
    assert figures["pairs_per_second"] == pytest.approx(2000 / figures["milliseconds"], rel=0.01)
    assert figures["ratio"] == pytest.approx(median(figures["ratios"]), rel=0.01)
    assert set(figures["shares"]) == set(PARTS)
    assert sum(figures["shares"].values()) == pytest.approx(1, abs=0.01)
    assert set(figures["against_phases_milliseconds"]) == (set(PHASES) if against == "original" else set())
    assert set(figures["memory_gib"]) == {"encode and load", "step"}
    said = capsys.readouterr().out
    assert f"{against} takes" in said
    assert "time by part of the step" in said


@pytest.mark.nightly
def test_two_pairs_in_a_step_are_twice_the_arithmetic(prepared: Path) -> None:
    plan = make_plan(TrainConfig(name="x", data=prepared, base="random:tiny-sdxl"))
    one, two = (flop_of_step(replace(plan, config=replace(plan.config, batch_size=n))) for n in (1, 2))
    assert two == pytest.approx(2 * one, rel=0.02)


@pytest.mark.nightly
def test_pairs_are_drawn_beside_the_librarys_pipeline(base_folder: Callable[[str], Path], tmp_path: Path) -> None:
    figures = bench(tmp_path, "generate", "--base", base_folder("sdxl"), "--steps", 3, "--against", "diffusers")
    assert set(figures) == ALWAYS | COUNTED | COMPARED
    assert set(figures["start_seconds"]) == {"ours", "other"}
    assert set(figures["memory_gib"]) == {"load", "draw"}
    assert figures["settings"]["steps"] == 3


def test_generation_is_measured_without_guidance_which_the_librarys_pipeline_lacks(tmp_path: Path) -> None:
    """`tflop` counts one prediction in each step, too."""
    config = BenchConfig(what="generate", base="random:tiny-sd15", steps=1)
    assert make_generation_plan(config, *planned(config, tmp_path), tmp_path).guidance == NO_GUIDANCE


@pytest.mark.nightly
def test_encoding(tmp_path: Path) -> None:
    figures = bench(tmp_path, "encode", "--base", "random:tiny-sd15", "--batch_size", 2)
    assert set(figures) == ALWAYS | COUNTED
    assert figures["unit"] == "pairs"


@pytest.mark.slow
def test_judging(tmp_path: Path) -> None:
    figures = bench(tmp_path, "evaluate")
    assert set(figures) == ALWAYS
    assert figures["pairs_per_second"] > 0


def test_nothing_is_left_behind(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    assert main(["bench", "encode", "--base", "random:tiny-sdxl", "--repeats", "1", "--warmup", "0"]) == 0
    assert list(tmp_path.iterdir()) == []


def test_the_table_names_pairs_and_programs_in_words(capsys: Capture) -> None:
    config = BenchConfig(what="generate", batch_size=2, against="diffusers")
    cost = Cost("pairs", 2, seconds=[1.0], other=[2.0], start={"ours": 3.0, "other": 4.0})
    print_figures(summarize_cost(config, cost, 1e9))
    said = [" ".join(line.split()) for line in capsys.readouterr().out.splitlines()]
    assert "the pairs of a repeat 1000.0 ms; 2 pairs/s" in said
    assert "loading and first result retipair 3.00 s, diffusers 4.00 s" in said


@pytest.mark.parametrize(
    ("what", "setting", "value"),
    [
        ("train", "against", "diffusers"),
        ("encode", "against", "bare"),
        ("generate", "repeats", 0),
        ("generate", "json", "no/where.json"),
        ("train", "base", "nowhere"),
    ],
)
def test_what_cannot_work_is_said_first(what: str, setting: str, value: object, refused: Refused) -> None:
    assert refused("bench", what, f"--{setting}", value).setting == setting


# The baseline


def test_the_originals_step_learns_and_tells_each_phase(prepared: Path) -> None:
    base = open_base("random:tiny-sdxl")
    run = BaselineStep(base, Layout("side_by_side", VIEW), read_dataset(prepared), "eyes", 1, "cpu")
    before = [p.detach().clone() for p in run.unet.parameters() if p.requires_grad]
    for _ in range(2):
        run.step()
    after = [p for p in run.unet.parameters() if p.requires_grad]
    assert {phase: len(seconds) for phase, seconds in run.seconds.items()} == dict.fromkeys(PHASES, 2)
    assert any(not torch.equal(a, b) for a, b in zip(before, after, strict=True))


def test_its_high_pass_sees_an_edge_at_the_border_and_none_inside() -> None:
    flat = torch.ones(1, 4, 16, 32)
    high = baseline._high_pass(flat)
    assert high[..., 3:-3, 3:-3].abs().max() < 1e-6
    assert high[..., 0, :].min() > 0.3
