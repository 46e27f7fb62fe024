"""Read the loss curves, and the time and memory of a step, from the training run of an adapter."""

from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np

from retipair.data.dataset import PairFolder, read_with_content
from retipair.evaluation.scores import LogLine, StepCost, StepSettings, TrainingScores
from retipair.models.lora import adapter_sha256
from retipair.runs.run_dir import METRICS_NAME, Run, pairs_place, run_around
from retipair.runtime.atomic_io import read_json
from retipair.runtime.errors import FileError
from retipair.runtime.schema import from_values


def read_training(adapter: Path, real: PairFolder) -> TrainingScores:
    """Return loss curves, cost and settings of the training run of an adapter.

    Raises UserError if the adapter is not inside the folder of a run, or if the log of the run is empty or damaged.

    adapter: the folder of the adapter.
    real: the real pairs of the evaluation; the result tells whether the run was trained on these pairs.
    """
    run = _run_of(adapter)
    path, config, logged = run.folder / METRICS_NAME, run.read_config(), run.read_metrics()
    if not _is_valid(logged) or not any(line["kind"] == "training" for line in logged):
        raise FileError(path, "not a training log, or a log without training steps; omit --adapter")
    training, validation = (
        tuple(from_values(LogLine, line, str(path)) for line in logged if line["kind"] == kind)
        for kind in ("training", "validation")
    )
    settings = StepSettings(
        config.batch_size, config.gradient_accumulation_steps, config.precision, run.memory_strategy()
    )
    return TrainingScores(training, validation, _cost(training), settings, _was_trained_on(run, real))


def check_made_by(adapter: Path, folders: Sequence[Path]) -> None:
    """Raise FileError, naming the folder, if generated pairs were not made with an adapter of the run around `adapter`.

    The adapter may have been deleted since, with an older checkpoint. Its pairs are then recognised by the folder to
    which `generate` writes those of the run.
    """
    run = _run_of(adapter)
    kept = {adapter_sha256(folder) for folder in run.adapter_folders()}
    for folder in folders:
        path = folder / "settings.json"
        made = read_json(path).get("adapter_sha256") if path.is_file() else None
        if made not in kept and pairs_place(run.folder.resolve()) not in pairwise(folder.resolve().parts):
            problem = f"was not made with an adapter that is in the run {run.folder}"
            raise FileError(folder, f"{problem}, so --adapter does not describe it; omit --adapter, or this folder")


def _run_of(adapter: Path) -> Run:
    """Return the training run whose folder contains the adapter. Raises UserError if there is no such run."""
    if run := run_around(adapter):
        return run
    raise FileError(adapter, f"not inside a run of `retipair train` (a folder with {METRICS_NAME}); omit --adapter")


def _is_valid(logged: Sequence[Any]) -> bool:
    """Return whether the report can use the lines of a log, which were parsed as JSON.

    Each line must be an object with the key "kind" and with the keys that the report needs from lines of that kind.
    All values except that of "kind" must be numbers.
    """
    needed = {"training": {"step", "seconds", "mse_cf", "mse_fa"}, "validation": {"step", "loss"}}
    return all(
        isinstance(line, dict)
        and "kind" in line
        and needed.get(line["kind"], set()) <= set(line)
        and all(type(value) in (int, float) for key, value in line.items() if key != "kind")
        for line in logged
    )


def _was_trained_on(run: Run, real: PairFolder) -> bool | None:
    """Return whether the run was trained on these pairs, or None if the run does not record its pairs.

    The result is also True if the run was trained on all pairs of the folder, including those that are now rejected.
    """
    data = read_json(run.folder / "config.json").get("data_sha256")
    return read_with_content(real.path, data) is not None if data else None


def _cost(lines: Sequence[LogLine]) -> StepCost:
    """Return the cost of a step: the median time between consecutive log lines, per step, and the peak memory."""
    times = [(line.step, line.values["seconds"]) for line in lines]
    steps = [(b[1] - a[1]) / (b[0] - a[0]) for a, b in pairwise(times) if b[0] > a[0] and b[1] > a[1]]
    memory = [line.values["memory_gib"] for line in lines if "memory_gib" in line.values]
    return StepCost(float(np.median(steps)) if steps else None, max(memory) if memory else None)
