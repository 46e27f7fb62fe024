"""Cut the logs of a run back to their content at a checkpoint, so that a resumed run can continue them."""

import re
from collections.abc import Mapping
from pathlib import Path

from retipair.runtime.atomic_io import atomic_write

METRICS_NAME = "metrics.jsonl"
LOG_NAMES = ("training_log.txt", "validation_log.txt", METRICS_NAME)
_SESSION_NOTES = (b"memory:", b"resumed ")
"""Prefixes of log lines that describe a call of `train`, not a step: the memory that it used, and the settings that
changed on resuming. `cut_logs` keeps these lines."""


def log_lengths(folder: Path) -> dict[str, int]:
    """Return the length of each log in bytes, by file name; 0 if the log does not exist yet."""
    paths = {name: folder / name for name in LOG_NAMES}
    return {name: path.stat().st_size if path.is_file() else 0 for name, path in paths.items()}


def cut_logs(folder: Path, lengths: Mapping[str, int]) -> None:
    """Remove from each log what was written after its given length.

    An incomplete line at this length is removed too. Complete lines after this length are kept only if they
    start with one of `_SESSION_NOTES`.

    folder: the folder of the run.
    lengths: name of the log -> length in bytes; 0 for a log that is not listed.
    """
    for path in (folder / name for name in LOG_NAMES if (folder / name).is_file()):
        content = path.read_bytes()
        kept, later = content[: lengths.get(path.name, 0)], content[lengths.get(path.name, 0) :]
        kept = kept[: kept.rfind(b"\n") + 1]
        notes = [line for line in later.splitlines(keepends=True) if line.startswith(_SESSION_NOTES)]
        kept += b"".join(line for line in notes if line.endswith(b"\n"))
        if kept != content:
            with atomic_write(path) as stream:
                stream.write(kept)


def lengths_by_step(folder: Path, step: int, stopped: bool) -> dict[str, int]:
    """Find the length of each log, in bytes, at the checkpoint of `step`, from the step numbers in the log lines.

    Checkpoints of earlier versions, without log_lengths.json, need this. Each log ends before the first line of a later
    step. If the run was stopped at this step, the validation of this step is left out too, because the
    resumed run repeats it.
    """
    lengths = dict.fromkeys(LOG_NAMES, 0)
    for path in (folder / name for name in LOG_NAMES if (folder / name).is_file()):
        for line in path.read_bytes().splitlines(keepends=True):
            is_validation = path.name == "validation_log.txt" or line.startswith(b'{"kind": "validation"')
            number = re.match(rb'(?:step |\{.*?"step": )(\d{1,15})', line)
            if number and int(number[1]) > step - (stopped and is_validation):
                break
            lengths[path.name] += len(line)
    return lengths
