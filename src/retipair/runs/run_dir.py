"""The run directory: resolved config, environment, logs, checkpoints, and the state to resume from."""

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
    write_text,
)
from retipair.runtime.console import console
from retipair.runtime.errors import UserError
from retipair.runtime.schema import from_values, to_values

SaveAdapter = Callable[[Path], object]
"""Writes an adapter into a folder."""

METRICS_NAME = "metrics.jsonl"
KEPT_CHECKPOINTS = 3


@dataclass(frozen=True)
class Run:
    """One training's directory."""

    folder: Path

    @property
    def name(self) -> str:
        return self.folder.name

    @property
    def _latest(self) -> Path:
        return self.folder / "latest_checkpoints"

    @property
    def _stopped(self) -> Path:
        """Holds the state that a run was stopped in between two checkpoints, until the next of these."""
        return self.folder / "stopped_checkpoint"

    @property
    def _best(self) -> Path:
        return self.folder / "best_checkpoint"

    def checkpoints(self) -> list[Path]:
        """Those to go on from, oldest first; damaged ones too."""
        found = [*self._latest.glob("step_*"), *self._stopped.glob("step_*")]
        found = [path for path in found if re.fullmatch(r"step_\d{6,}", path.name)]
        return sorted(found, key=lambda path: (step_of(path), not self.is_stopped(path)))

    def is_stopped(self, checkpoint: Path) -> bool:
        """Whether it was written between two others: what is due at its step may not have been done."""
        return checkpoint.parent == self._stopped

    def latest(self, warn: Callable[[str], None] = lambda text: None) -> Path | None:
        """The last checkpoint that is as it was written; None if there is none. warn: told of those that are not."""
        for checkpoint in reversed(self.checkpoints()):
            if (wrong := verify_checksums(checkpoint) or _misnamed(checkpoint)) is None:
                return checkpoint
            warn(f"{checkpoint}: {wrong}")
        return None

    def adapter_folder(self, which: str) -> Path:
        """The adapter of "best" or "latest". Raises UserError if the run has none yet, or only damaged ones."""
        damaged: list[str] = []
        folder = self._best if which == "best" else self.latest(damaged.append)
        if folder is None or not folder.is_dir():
            why = f"; {damaged[0]}" if damaged else ""
            raise UserError(
                f"{self.folder}: no {which} checkpoint{why}; train it first: `retipair train -n {self.name} ...`"
            )
        if wrong := verify_checksums(folder):
            raise UserError(f"{folder}: {wrong}; draw with --checkpoint {'latest' if which == 'best' else 'best'}")
        return folder / "unet_lora"

    def read_config(self) -> TrainConfig:
        """The settings the run was started with."""
        path = self.folder / "config.json"
        saved = read_json(path)
        if not isinstance(saved.get("settings"), dict) or "name" not in saved["settings"]:
            raise UserError(f"{path}: not the config of a run; choose another --name")
        return from_values(TrainConfig, saved["settings"], where=str(path))

    def memory_strategy(self) -> str | None:
        """The name of the way to save memory that it last went with; None if it has not begun."""
        path = self.folder / "config.json"
        return read_json(path).get("memory_way") if path.is_file() else None

    def samples_folder(self, step: int) -> Path:
        return self.folder / f"step_{step:06d}_random_pairs"

    def log(self, name: str, text: str, values: Mapping[str, Any]) -> None:
        """Append a line to `{name}_log.txt` and its numbers to metrics.jsonl."""
        self.note(name, text)
        append_line(self.folder / METRICS_NAME, json.dumps({"kind": name, **values}) + "\n")

    def note(self, name: str, text: str) -> None:
        """Append a line to `{name}_log.txt`."""
        append_line(self.folder / f"{name}_log.txt", f"{text}\n")

    def read_metrics(self) -> list[dict[str, Any]]:
        """The lines of metrics.jsonl; a torn last one is dropped. Raises UserError, naming it, if it is damaged."""
        path = self.folder / METRICS_NAME
        lines = path.read_text(encoding="utf-8", errors="replace").splitlines(keepends=True)
        try:
            return [json.loads(line) for line in lines if line.endswith("\n")]
        except (ValueError, RecursionError) as error:
            raise UserError(f"{path}: damaged ({error}); mend that line or remove it") from None

    def cut_logs(self, checkpoint: Path | None) -> None:
        """Drop what was logged after a checkpoint, or all: a resumed run writes it again, the validation of one that it
        was stopped in too.
        """
        step = step_of(checkpoint) if checkpoint else -1
        validated = step - 1 if checkpoint and self.is_stopped(checkpoint) else step
        for path in (*self.folder.glob("*_log.txt"), *self.folder.glob(METRICS_NAME)):
            lines = path.read_text(encoding="utf-8", errors="replace").splitlines(keepends=True)
            ends = [validated if _is_validation(path, line) else step for line in lines]
            kept = [line for line, end in zip(lines, ends, strict=True) if _logged_step(line) <= end]
            write_text(path, "".join(line for line in kept if line.endswith("\n")))

    def save_checkpoint(
        self, step: int, save_adapter: SaveAdapter, tensors: Mapping[str, torch.Tensor], state: Any
    ) -> Path:
        """Write `latest_checkpoints/step_xxxxxx` whole or not at all, then drop all but the last three."""
        folder = atomic_write_dir(self._latest / f"step_{step:06d}", _state_of(step, save_adapter, tensors, state))
        shutil.rmtree(self._stopped, ignore_errors=True)
        for old in self.checkpoints()[:-KEPT_CHECKPOINTS]:
            shutil.rmtree(old)
        return folder

    def save_stopped(
        self, step: int, save_adapter: SaveAdapter, tensors: Mapping[str, torch.Tensor], state: Any
    ) -> Path:
        """The same between two checkpoints, which it does not count among: the next one replaces it."""
        if verify_checksums(checkpoint := self._latest / f"step_{step:06d}") is None:
            return checkpoint  # it has just been written
        folder = atomic_write_dir(self._stopped / f"step_{step:06d}", _state_of(step, save_adapter, tensors, state))
        for other in self._stopped.glob("step_*"):
            if other != folder:
                shutil.rmtree(other)
        return folder

    def save_best(self, save_adapter: SaveAdapter, reason: Mapping[str, Any]) -> None:
        """Write `best_checkpoint`, with the reason beside the adapter. Write the checkpoint of its step first."""

        def fill(folder: Path) -> None:
            save_adapter(folder / "unet_lora")
            write_json(folder / "reason.json", dict(reason))
            write_checksums(folder)

        atomic_write_dir(self._best, fill)

    def best_step(self) -> int:
        """The step of `best_checkpoint`."""
        return int(read_json(self._best / "reason.json")["step"])

    def restore_best(self, reason: Mapping[str, Any]) -> bool:
        """Make `best_checkpoint` that of the step which a resumed state names as the best; False if this is impossible.

        A kill between checkpoint and best, or a damaged last checkpoint, leaves them at different steps. The checkpoint
        of the best step holds the same adapter, as long as it is kept.
        """
        step, source = reason["step"], self._latest / f"step_{reason['step']:06d}"
        wrong = verify_checksums(self._best)
        if wrong is None and (found := self.best_step()) != step:
            wrong = f"is of step {found}, but the state that is resumed names step {step}"
        if wrong is None:
            return True
        possible = verify_checksums(source) is None
        if possible:
            self.save_best(lambda folder: shutil.copytree(source / "unet_lora", folder), reason)
        remedy = "made again from that step's checkpoint" if possible else "the next validated step is kept as the best"
        console.print(f"warning: {self._best}: {wrong}; {remedy}")
        return possible

    def recover(self) -> None:
        """Recover from an interrupted write. The caller must hold the run's lock.

        Raises UserError if a file stands where a folder of the run is: its checkpoints would be taken for none.
        """
        for path in (self._latest, self._stopped, self._best, *self.folder.glob("step_*_random_pairs")):
            check_folder_place(path)
        recover_dir(self._best)


def _state_of(
    step: int, save_adapter: SaveAdapter, tensors: Mapping[str, torch.Tensor], state: Any
) -> Callable[[Path], None]:
    """What fills the folder of a checkpoint."""

    def fill(folder: Path) -> None:
        save_adapter(folder / "unet_lora")
        save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, folder / "state.safetensors")
        write_json(folder / "state.json", {"step": step, **state})
        write_checksums(folder)

    return fill


def _misnamed(checkpoint: Path) -> str | None:
    """What is wrong with the name of a whole checkpoint; None if it is that of its step."""
    step = read_json(checkpoint / "state.json").get("step")
    return None if step == step_of(checkpoint) else f"was renamed: its state is that of step {step}"


def step_of(checkpoint: Path) -> int:
    return int(checkpoint.name.removeprefix("step_"))


def read_state(checkpoint: Path) -> tuple[dict[str, torch.Tensor], dict[str, Any]]:
    """(tensors, values) of a checkpoint. Raises UserError, naming the file, if it is damaged."""
    path = checkpoint / "state.safetensors"
    try:
        tensors, values = load_file(path), read_json(checkpoint / "state.json")
        if not {"step", "best"} <= set(values) or "window" not in tensors:
            raise OSError("incomplete")
        if values["best"] is not None:
            validation_of(values["best"])
        return tensors, values
    except (SafetensorError, OSError, KeyError, TypeError) as error:
        raise UserError(f"{path}: damaged ({error}); delete {checkpoint} and resume from the one before") from None


def results_folder(results: Path, system: str, kind: str = "") -> Path:
    """The original's root for a system: `results/out_joint_sdxl_cffa_pairs`; kind "_preds" for what is generated."""
    return results / f"out_joint_{system}_cffa_pairs{kind}"


def find_run(results: Path, name: str, systems: Sequence[str]) -> Run:
    """Return the run of that name, of one of these systems. Raises UserError if there is none, or more than one."""
    found = [s for s in systems if (results_folder(results, s) / name / "config.json").is_file()]
    if not found:
        places = " or ".join(str(results_folder(results, s) / name) for s in systems)
        one = len(systems) == 1
        other = f" (--base is {systems[0]}: is the run of the other system? leave --base out)" if one else ""
        raise UserError(f"no run {name!r} in {places}{other}; `retipair train -n {name} --data FOLDER` makes one")
    if len(found) > 1:
        raise UserError(f"run {name!r} exists under both systems; say which with --base")
    return Run(results_folder(results, found[0]) / name)


def run_around(folder: Path) -> Run | None:
    """The run that a folder is, or lies in; None if it lies in none."""
    around = (one for one in (folder, *folder.resolve().parents) if (one / METRICS_NAME).is_file())
    return next(map(Run, around), None)


def start_run(run: Run, config: TrainConfig, facts: Mapping[str, Any]) -> None:
    """Make the run's folder and write what it was made with."""
    settings = to_values(config) | {"data": str(config.data.resolve()) if config.data else None}
    write_json(run.folder / "config.json", {"settings": settings, **facts})
    write_json(run.folder / "environment.json", environment())


def environment() -> dict[str, Any]:
    """What a reader needs to know of the machine to compare two runs."""
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


def _is_validation(path: Path, line: str) -> bool:
    return path.name == "validation_log.txt" or line.startswith('{"kind": "validation"')


def _logged_step(line: str) -> int:
    """The step of a log line; -1 for one that is not ours, which stays."""
    found = re.match(r'(?:step |\{.*?"step": )(\d{1,15})', line)
    return int(found[1]) if found else -1
