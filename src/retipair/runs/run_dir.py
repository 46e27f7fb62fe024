"""The directory of a training run: settings, environment, logs, and checkpoints from which the run can be resumed."""

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
from retipair.runs.model_selection import Validation, validation_of
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
from retipair.runtime.errors import DamagedError, MissingError, OccupiedError, SettingError, UserError
from retipair.runtime.schema import from_values, to_values

SaveAdapter = Callable[[Path], object]
"""A function `save_adapter(folder)` that writes the adapter into the folder."""

LENGTHS_NAME = "log_lengths.json"
KEPT_CHECKPOINTS = 3


@dataclass(frozen=True)
class Run:
    """The directory of one training run."""

    folder: Path

    @property
    def name(self) -> str:
        return self.folder.name

    @property
    def _latest(self) -> Path:
        return self.folder / "latest_checkpoints"

    @property
    def _stopped(self) -> Path:
        """The state of a run that was stopped between two checkpoints. The next checkpoint deletes it."""
        return self.folder / "stopped_checkpoint"

    @property
    def _best(self) -> Path:
        return self.folder / "best_checkpoint"

    def checkpoints(self) -> list[Path]:
        """Return the folders of all checkpoints, including damaged ones and that of a stopped run, oldest first."""
        paths = [*self._latest.glob("step_*"), *self._stopped.glob("step_*")]
        paths = [path for path in paths if re.fullmatch(r"step_\d{6,}", path.name)]
        return sorted(paths, key=lambda path: (step_of(path), not self.is_stopped(path)))

    def is_stopped(self, checkpoint: Path) -> bool:
        """Return True if this checkpoint was saved because the run was stopped, maybe before its step was validated."""
        return checkpoint.parent == self._stopped

    def latest(self, warn: Callable[[str], None] = lambda text: None) -> Path | None:
        """Return the newest intact checkpoint, or None if there is none.

        `warn` is called for each damaged checkpoint that is newer than the returned one, or for all checkpoints if none
        is intact. Its argument is a text with the path of the checkpoint and the error.
        """
        for checkpoint in reversed(self.checkpoints()):
            if (error := verify_checksums(checkpoint) or _find_name_mismatch(checkpoint)) is None:
                return checkpoint
            warn(f"{checkpoint}: {error}")
        return None

    def adapter_folder(self, which: str) -> Path:
        """Return the folder of the adapter in the "best" or "latest" checkpoint.

        Raises UserError if the checkpoint is missing or damaged, and SettingError for any other value of `which`.
        """
        if which not in ("best", "latest"):
            raise SettingError("checkpoint", repr(which), "must be 'best' or 'latest'")
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

    def adapter_folders(self) -> list[Path]:
        """Return the folders of the adapters in all intact checkpoints."""
        folders = (folder for folder in (*self.checkpoints(), self._best) if verify_checksums(folder) is None)
        return [folder / "unet_lora" for folder in folders]

    def read_config(self) -> TrainConfig:
        """Return the settings of the last start or resume of the run. Raises UserError for an invalid config.json."""
        path = self.folder / "config.json"
        saved = read_json(path)
        if not isinstance(saved.get("settings"), dict) or "name" not in saved["settings"]:
            raise OccupiedError(path, "not the config of a run; choose another --name")
        return from_values(TrainConfig, saved["settings"], str(path), "restore the file, or use another --name")

    def memory_strategy(self) -> str | None:
        """Return the name of the memory strategy that the run used last; None if the run has not been started."""
        path = self.folder / "config.json"
        return read_json(path).get("memory_way") if path.is_file() else None

    def samples_folder(self, step: int) -> Path:
        return self.folder / f"step_{step:06d}_random_pairs"

    def sample_folders(self) -> dict[int, Path]:
        """Return the folders of the sample pairs of all validations, by step."""
        folders = sorted(self.folder.glob("step_*_random_pairs"))
        return {int(folder.name.split("_")[1]): folder for folder in folders}

    def log(self, name: str, text: str, values: Mapping[str, Any]) -> None:
        """Append the line `text` to `{name}_log.txt`, and `values` to metrics.jsonl as a line of JSON."""
        self.note(name, text)
        append_line(self.folder / METRICS_NAME, json.dumps({"kind": name, **values}) + "\n")

    def note(self, name: str, text: str) -> None:
        """Append the line `text` to `{name}_log.txt`."""
        append_line(self.folder / f"{name}_log.txt", f"{text}\n")

    def read_metrics(self) -> list[dict[str, Any]]:
        """Return the lines of metrics.jsonl; an incomplete last line is ignored. Raises UserError for damaged lines."""
        path = self.folder / METRICS_NAME
        metrics = []
        for number, line in enumerate(path.read_text(encoding="utf-8", errors="replace").split("\n")[:-1], start=1):
            try:
                metrics.append(json.loads(line))
            except (ValueError, RecursionError):
                raise DamagedError(path, "not JSON; fix or remove this line", number) from None
        return metrics

    def cut_logs(self, checkpoint: Path | None) -> None:
        """Cut the logs to their content at `checkpoint`, or at the start if None; the resumed run repeats the rest."""
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
        """Write the checkpoint `latest_checkpoints/step_xxxxxx` atomically, and return its folder.

        All but the last three checkpoints are deleted.
        """
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
        """Write the state of a run that is stopped between two checkpoints, and return the folder that holds it."""
        if verify_checksums(checkpoint := self._latest / f"step_{step:06d}") is None:
            return checkpoint  # at this step, a checkpoint was just written
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
        """Return a function that writes the files of a checkpoint into a given folder."""

        def fill(folder: Path) -> None:
            save_adapter(folder / "unet_lora")
            save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, folder / "state.safetensors")
            write_json(folder / "state.json", {"step": step, **state})
            write_json(folder / LENGTHS_NAME, log_lengths(self.folder))
            write_checksums(folder)

        return fill

    def save_best(self, save_adapter: SaveAdapter, reason: Mapping[str, Any]) -> None:
        """Write the adapter, and the record that says why its step is the best, to `best_checkpoint`.

        The checkpoint of the same step must be written first: `restore_best` needs it if this call is interrupted.
        """

        def fill(folder: Path) -> None:
            save_adapter(folder / "unet_lora")
            write_json(folder / "reason.json", dict(reason))
            write_checksums(folder)

        atomic_write_dir(self._best, fill)

    def best_step(self) -> int:
        """Return the step of `best_checkpoint`."""
        return int(read_json(self._best / "reason.json")["step"])

    def best_validation(self) -> Validation | None:
        """Return the validation of the step of `best_checkpoint`; None if there is no best checkpoint."""
        path = self._best / "reason.json"
        return validation_of(read_json(path)) if path.is_file() else None

    def restore_best(self, reason: Mapping[str, Any]) -> bool:
        """Make `best_checkpoint` match the best step of the resumed state; return False if this is impossible.

        The step of `best_checkpoint` can differ from the best step of the resumed state for two reasons: the process
        was killed after it wrote a checkpoint and before it wrote `best_checkpoint`, or the run resumes from an older
        checkpoint because the last one is damaged. If they differ, or if `best_checkpoint` is damaged, the adapter is
        copied from the checkpoint of the best step, provided that this checkpoint is intact.

        reason: the record of the best step in the resumed state.
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
        restored = f"restored from the checkpoint of step {step}"
        remedy = restored if possible else "the next validated step becomes the best"
        console.print(f"warning: {self._best}: {error}; {remedy}")
        return possible

    def recover(self) -> None:
        """Restore `best_checkpoint` if writing it was interrupted. The caller must hold the lock of the run.

        Raises UserError if there is a file in place of a folder of the run: the checkpoints would not be found.
        """
        for path in (self._latest, self._stopped, self._best, *self.folder.glob("step_*_random_pairs")):
            check_folder_place(path)
        recover_dir(self._best)


def _find_name_mismatch(checkpoint: Path) -> str | None:
    """Return an error text if the name of an intact checkpoint does not match its step, else None."""
    step = read_json(checkpoint / "state.json").get("step")
    return None if step == step_of(checkpoint) else f"was renamed: its state is that of step {step}"


def step_of(checkpoint: Path) -> int:
    return int(checkpoint.name.removeprefix("step_"))


def read_state(checkpoint: Path) -> tuple[dict[str, torch.Tensor], dict[str, Any]]:
    """Return (tensors, values), the state in a checkpoint. Raises UserError, naming the file, if it is damaged."""
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
    """Return the folder of all runs of a system, or of their generated pairs: `results/out_joint_sdxl_cffa_pairs`, ...

    system: "sdxl" or "sd15".
    kind: "" for runs, "_preds" for generated pairs.
    The names are those of the original scripts.
    """
    return results / f"out_joint_{system}_cffa_pairs{kind}"


def pairs_place(run: Path) -> tuple[str, str]:
    """Return the last two parts of the path of the folder to which `generate -n` writes the pairs of a run."""
    return f"{run.parent.name}_preds", run.name


def find_run(results: Path, name: str, systems: Sequence[str]) -> Run:
    """Return the run called `name` of one of these systems. Raises UserError if there is none, or more than one."""
    matches = [s for s in systems if (results_folder(results, s) / name / "config.json").is_file()]
    if not matches:
        places = " or ".join(str(results_folder(results, s) / name) for s in systems)
        hint = f" (--base is {systems[0]}; omit --base if the run has another base)" if len(systems) == 1 else ""
        raise UserError(f"no run {name!r} in {places}{hint}; `retipair train -n {name} --data FOLDER` creates it")
    if len(matches) > 1:
        raise UserError(f"run {name!r} exists for {' and '.join(matches)}; choose one with --base")
    return Run(results_folder(results, matches[0]) / name)


def run_around(folder: Path) -> Run | None:
    """Return the run whose directory is `folder` or one of the parents of `folder`; None if there is none."""
    runs = (path for path in (folder, *folder.resolve().parents) if (path / METRICS_NAME).is_file())
    return next(map(Run, runs), None)


def start_run(run: Run, config: TrainConfig, facts: Mapping[str, Any]) -> None:
    """Create the directory of the run and write its settings and environment."""
    settings = to_values(config) | {"data": str(config.data.resolve()) if config.data else None}
    write_json(run.folder / "config.json", {"settings": settings, **facts})
    write_json(run.folder / "environment.json", environment())


def environment() -> dict[str, Any]:
    """Return what can make two runs differ: the package versions, the platform, the GPU and the threads."""
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
