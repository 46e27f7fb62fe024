"""The directory of a run: resolved config, environment, logs, checkpoints and the state to resume from."""

import json
import os
import platform
import re
import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from retipair import __version__
from retipair.config import TrainConfig
from retipair.runs.logs import METRICS_NAME, cut_logs, lengths_by_step, log_lengths
from retipair.runs.model_selection import validation_of
from retipair.runtime.atomic_io import (
    append_line,
    atomic_write_dir,
    check_folder_place,
    read_json,
    recover_dir,
    verify_checksums,
    write_checksums,
    write_json,
)
from retipair.runtime.console import console
from retipair.runtime.errors import DamagedError, MissingError, OccupiedError, UserError
from retipair.runtime.schema import from_values, to_values

SaveAdapter = Callable[[Path], object]
"""save_adapter(folder): write the adapter into the folder."""

LENGTHS_NAME = "log_lengths.json"
KEPT_CHECKPOINTS = 3


@dataclass(frozen=True)
class Run:
    """The directory of one training."""

    folder: Path

    @property
    def name(self) -> str:
        return self.folder.name

    @property
    def _latest(self) -> Path:
        return self.folder / "latest_checkpoints"

    @property
    def _stopped(self) -> Path:
        """The state of a run that was stopped between two checkpoints; deleted at the next checkpoint."""
        return self.folder / "stopped_checkpoint"

    @property
    def _best(self) -> Path:
        return self.folder / "best_checkpoint"

    def checkpoints(self) -> list[Path]:
        """Return all checkpoints to resume from, oldest first, damaged ones included."""
        paths = [*self._latest.glob("step_*"), *self._stopped.glob("step_*")]
        paths = [path for path in paths if re.fullmatch(r"step_\d{6,}", path.name)]
        return sorted(paths, key=lambda path: (step_of(path), not self.is_stopped(path)))

    def is_stopped(self, checkpoint: Path) -> bool:
        """Return True if the run was stopped at this checkpoint; a validation due at its step may be missing."""
        return checkpoint.parent == self._stopped

    def latest(self, warn: Callable[[str], None] = lambda text: None) -> Path | None:
        """Return the newest intact checkpoint, or None; `warn` is called with the reason for each damaged one."""
        for checkpoint in reversed(self.checkpoints()):
            if (error := verify_checksums(checkpoint) or _find_misnaming(checkpoint)) is None:
                return checkpoint
            warn(f"{checkpoint}: {error}")
        return None

    def adapter_folder(self, which: str) -> Path:
        """Return the adapter of the "best" or "latest" checkpoint. Raises UserError if it is missing or damaged."""
        damaged: list[str] = []
        folder = self._best if which == "best" else self.latest(damaged.append)
        if folder is None or not folder.is_dir():
            reason = f"; {damaged[0]}" if damaged else ""
            raise MissingError(
                self.folder, f"no {which} checkpoint{reason}; train it first: `retipair train -n {self.name} ...`"
            )
        if error := verify_checksums(folder):
            raise DamagedError(folder, f"{error}; use --checkpoint {'latest' if which == 'best' else 'best'}")
        return folder / "unet_lora"

    def read_config(self) -> TrainConfig:
        """Return the settings that the run was started with. Raises UserError if config.json is not of a run."""
        path = self.folder / "config.json"
        saved = read_json(path)
        if not isinstance(saved.get("settings"), dict) or "name" not in saved["settings"]:
            raise OccupiedError(path, "not the config of a run; choose another --name")
        return from_values(TrainConfig, saved["settings"], str(path), "restore the file, or use another --name")

    def memory_strategy(self) -> str | None:
        """Return the name of the memory strategy that the run last used; None if it has not started."""
        path = self.folder / "config.json"
        return read_json(path).get("memory_way") if path.is_file() else None

    def samples_folder(self, step: int) -> Path:
        return self.folder / f"step_{step:06d}_random_pairs"

    def log(self, name: str, text: str, values: Mapping[str, Any]) -> None:
        """Append a line to `{name}_log.txt` and its values to metrics.jsonl."""
        self.note(name, text)
        append_line(self.folder / METRICS_NAME, json.dumps({"kind": name, **values}) + "\n")

    def note(self, name: str, text: str) -> None:
        """Append a line to `{name}_log.txt`."""
        append_line(self.folder / f"{name}_log.txt", f"{text}\n")

    def read_metrics(self) -> list[dict[str, Any]]:
        """Return the lines of metrics.jsonl without an incomplete last one. Raises UserError if it is damaged."""
        path = self.folder / METRICS_NAME
        lines = path.read_text(encoding="utf-8", errors="replace").splitlines(keepends=True)
        try:
            return [json.loads(line) for line in lines if line.endswith("\n")]
        except (ValueError, RecursionError) as error:
            raise DamagedError(path, f"damaged ({error}); fix or remove that line") from None

    def cut_logs(self, checkpoint: Path | None) -> None:
        """Cut the logs to their content at `checkpoint` (None: empty); the resumed run writes the rest again."""
        if checkpoint is None:
            lengths = {}
        elif (path := checkpoint / LENGTHS_NAME).is_file():
            lengths = read_json(path)
        else:
            lengths = lengths_by_step(self.folder, step_of(checkpoint), self.is_stopped(checkpoint))
        cut_logs(self.folder, lengths)

    def save_checkpoint(
        self, step: int, save_adapter: SaveAdapter, tensors: Mapping[str, torch.Tensor], state: Any
    ) -> Path:
        """Write `latest_checkpoints/step_xxxxxx` atomically and delete all but the last three checkpoints."""
        folder = atomic_write_dir(
            self._latest / f"step_{step:06d}", self._checkpoint_writer(step, save_adapter, tensors, state)
        )
        shutil.rmtree(self._stopped, ignore_errors=True)
        for old in self.checkpoints()[:-KEPT_CHECKPOINTS]:
            shutil.rmtree(old)
        return folder

    def save_stopped(
        self, step: int, save_adapter: SaveAdapter, tensors: Mapping[str, torch.Tensor], state: Any
    ) -> Path:
        """Write the state of a run that is stopped between two checkpoints; the next checkpoint replaces it."""
        if verify_checksums(checkpoint := self._latest / f"step_{step:06d}") is None:
            return checkpoint  # just written at this step
        folder = atomic_write_dir(
            self._stopped / f"step_{step:06d}", self._checkpoint_writer(step, save_adapter, tensors, state)
        )
        for other in self._stopped.glob("step_*"):
            if other != folder:
                shutil.rmtree(other)
        return folder

    def _checkpoint_writer(
        self, step: int, save_adapter: SaveAdapter, tensors: Mapping[str, torch.Tensor], state: Any
    ) -> Callable[[Path], None]:
        """Return the function that writes the files of a checkpoint into a folder."""

        def fill(folder: Path) -> None:
            save_adapter(folder / "unet_lora")
            save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, folder / "state.safetensors")
            write_json(folder / "state.json", {"step": step, **state})
            write_json(folder / LENGTHS_NAME, log_lengths(self.folder))
            write_checksums(folder)

        return fill

    def save_best(self, save_adapter: SaveAdapter, reason: Mapping[str, Any]) -> None:
        """Write `best_checkpoint`: the adapter and the reason. The checkpoint of its step must be written before."""

        def fill(folder: Path) -> None:
            save_adapter(folder / "unet_lora")
            write_json(folder / "reason.json", dict(reason))
            write_checksums(folder)

        atomic_write_dir(self._best, fill)

    def best_step(self) -> int:
        """Return the step of `best_checkpoint`."""
        return int(read_json(self._best / "reason.json")["step"])

    def restore_best(self, reason: Mapping[str, Any]) -> bool:
        """Make `best_checkpoint` match the best step of the resumed state; return False if this is impossible.

        They differ if the process was killed after it wrote a checkpoint and before it wrote `best_checkpoint`, or if
        the last checkpoint is damaged. The adapter is restored from the checkpoint of the best step, if that exists.
        """
        step, source = reason["step"], self._latest / f"step_{reason['step']:06d}"
        error = verify_checksums(self._best)
        if error is None and (best := self.best_step()) != step:
            error = f"is of step {best}, but the best step of the resumed state is {step}"
        if error is None:
            return True
        possible = verify_checksums(source) is None
        if possible:
            self.save_best(lambda folder: shutil.copytree(source / "unet_lora", folder), reason)
        remedy = "restored from the checkpoint of that step" if possible else "the next validated step becomes the best"
        console.print(f"warning: {self._best}: {error}; {remedy}")
        return possible

    def recover(self) -> None:
        """Recover from an interrupted write. The caller must hold the run's lock.

        Raises UserError if a file has the name of a folder of the run, because `checkpoints` would then find nothing.
        """
        for path in (self._latest, self._stopped, self._best, *self.folder.glob("step_*_random_pairs")):
            check_folder_place(path)
        recover_dir(self._best)


def _find_misnaming(checkpoint: Path) -> str | None:
    """Return an error text if the name of an intact checkpoint does not match its step, else None."""
    step = read_json(checkpoint / "state.json").get("step")
    return None if step == step_of(checkpoint) else f"was renamed: its state is that of step {step}"


def step_of(checkpoint: Path) -> int:
    return int(checkpoint.name.removeprefix("step_"))


def read_state(checkpoint: Path) -> tuple[dict[str, torch.Tensor], dict[str, Any]]:
    """Return (tensors, values) of a checkpoint. Raises UserError, naming the file, if it is damaged."""
    path = checkpoint / "state.safetensors"
    try:
        tensors, values = load_file(path), read_json(checkpoint / "state.json")
        if not {"step", "best"} <= set(values) or "window" not in tensors:
            raise OSError("incomplete")
        if values["best"] is not None:
            validation_of(values["best"])
        return tensors, values
    except (SafetensorError, OSError, KeyError, TypeError) as error:
        raise DamagedError(path, f"damaged ({error}); delete {checkpoint} and resume from the previous one") from None


def results_folder(results: Path, system: str, kind: str = "") -> Path:
    """Return the output root of a system, named as in the original: `results/out_joint_sdxl_cffa_pairs`.

    kind: "_preds" for generated pairs.
    """
    return results / f"out_joint_{system}_cffa_pairs{kind}"


def find_run(results: Path, name: str, systems: Sequence[str]) -> Run:
    """Return the run of that name in one of these systems. Raises UserError if there is none or more than one."""
    matches = [s for s in systems if (results_folder(results, s) / name / "config.json").is_file()]
    if not matches:
        places = " or ".join(str(results_folder(results, s) / name) for s in systems)
        hint = f" (--base is {systems[0]}; omit --base if the run is of the other system)" if len(systems) == 1 else ""
        raise UserError(f"no run {name!r} in {places}{hint}; `retipair train -n {name} --data FOLDER` creates it")
    if len(matches) > 1:
        raise UserError(f"run {name!r} exists for both systems; choose one with --base")
    return Run(results_folder(results, matches[0]) / name)


def run_around(folder: Path) -> Run | None:
    """Return the run whose directory is `folder` or one of its parents; None if there is none."""
    runs = (path for path in (folder, *folder.resolve().parents) if (path / METRICS_NAME).is_file())
    return next(map(Run, runs), None)


def start_run(run: Run, config: TrainConfig, facts: Mapping[str, Any]) -> None:
    """Create the directory of the run and write its settings and environment."""
    settings = to_values(config) | {"data": str(config.data.resolve()) if config.data else None}
    write_json(run.folder / "config.json", {"settings": settings, **facts})
    write_json(run.folder / "environment.json", environment())


def environment() -> dict[str, Any]:
    """Return the versions, GPU and threads that are needed to compare two runs."""
    packages = ("torch", "diffusers", "transformers", "peft", "accelerate", "numpy", "pillow")
    return {
        "retipair": __version__,
        "python": platform.python_version(),
        "platform": platform.platform(),
        **{name: version(name) for name in packages},
        "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
        "threads": torch.get_num_threads(),
        "omp_wait_policy": os.environ.get("OMP_WAIT_POLICY"),
    }
