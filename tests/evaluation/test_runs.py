"""`retipair runs`: one row for each run or evaluation, with the settings that differ."""

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from judging import Evaluated
from refusals import Refused
from retipair.evaluation.scores import read_scores
from retipair.interfaces.cli import main

Folder = Callable[[str], Path]
RUNS = "out_joint_sd15_cffa_pairs"


@pytest.fixture
def results(trained: Folder, tmp_path: Path) -> Path:
    """Two runs that differ in their learning rate and data; the second was stopped at step 2."""
    results = tmp_path / "results"
    for name in ("a", "b"):
        shutil.copytree(trained("sd15") / RUNS / "exp", results / RUNS / name)
    run = results / RUNS / "b"
    config = json.loads((run / "config.json").read_text())
    config["settings"] |= {"learning_rate": 1e-3, "name": "b"}
    (run / "config.json").write_text(json.dumps(config))
    lines = (run / "metrics.jsonl").read_text().splitlines(keepends=True)
    (run / "metrics.jsonl").write_text("".join(line for line in lines if json.loads(line)["step"] <= 2))
    return results


def rows(*words: object) -> list[dict[str, Any]]:
    out = Path(str(words[0])) / "runs.json"
    assert main(["runs", *map(str, words), "--json", str(out)]) == 0
    return json.loads(out.read_text())


def test_each_run_has_a_row_with_the_settings_that_differ(results: Path, capsys: pytest.CaptureFixture[str]) -> None:
    a, b = rows(results, "--evaluations", results)
    assert (a["run"], b["run"]) == ("a", "b")
    assert (a["learning_rate"], b["learning_rate"]) == (5e-5, 1e-3)
    assert set(a) == {"run", "learning_rate", "step", "best step", "loss", "consistency"}
    assert (a["step"], b["step"]) == (4, 2)
    reason = json.loads((results / RUNS / "a/best_checkpoint/reason.json").read_text())
    assert (a["best step"], a["loss"], a["consistency"]) == (reason["step"], reason["loss"], reason["consistency"])
    shown = capsys.readouterr().out
    assert "learning_rate" in shown
    assert "0.001" in shown


def test_scores_stand_beside_the_run_whose_pairs_they_are_about(results: Path, evaluated: Evaluated) -> None:
    folder = shutil.copytree(evaluated.out, results.parent / "evaluations/first")
    known = read_scores(folder)
    provenance = replace(known.provenance, generated=f"elsewhere/{RUNS}_preds/b/new")
    scores = replace(known, provenance=provenance).to_json()
    (folder / "scores.json").write_text(json.dumps(scores))
    a, b = rows(results, "--evaluations", folder.parent)
    assert a["evaluation"] is None
    assert (b["evaluation"], b["correlation"]) == ("first", scores["consistency"]["correlation"]["generated"]["mean"])
    assert b["copies"] == len(scores["memorisation"]["copies"])


def test_a_damaged_run_is_left_out_with_a_warning(results: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (results / RUNS / "a/config.json").write_text("{")
    [row] = rows(results, "--evaluations", results)
    assert row["run"] == "b"
    assert str(results / RUNS / "a/config.json") in capsys.readouterr().err


def test_paths_are_shortened_and_markup_is_shown_as_it_is(results: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Names of other folders may name patients, and brackets are markup for rich."""
    config = results / RUNS / "b/config.json"
    config.write_text(config.read_text().replace('"prompt": "', '"prompt": "[/b] '))
    rows(results, "--evaluations", results)
    shown = capsys.readouterr().out
    assert str(results.parent) not in shown + (results / "runs.json").read_text()
    assert "[/b]" in shown


def test_folders_without_runs_or_evaluations_are_refused(tmp_path: Path, refused: Refused) -> None:
    assert refused("runs", tmp_path).path == tmp_path
    assert refused("runs", tmp_path, "--evaluations", tmp_path / "none").path == tmp_path / "none"


def test_a_run_that_has_just_started_has_a_row(results: Path) -> None:
    (results / RUNS / "a/metrics.jsonl").unlink()
    assert rows(results, "--evaluations", results)[0]["step"] == 0
