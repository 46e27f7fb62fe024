"""Check whether a run can be started or resumed with the given settings."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from retipair.config import TrainConfig
from retipair.runs.run_dir import Run
from retipair.runtime.atomic_io import read_json
from retipair.runtime.console import console
from retipair.runtime.errors import OccupiedError, UserError
from retipair.runtime.schema import to_values
from retipair.vision.modality import RECORDED

MAY_MOVE = frozenset({"resume", "dry_run", "offline", "results", "data", "base", "tokenizer"})
"""Settings that may differ in a resumed run, without a notice. Of --data and --base, only the path may differ."""
MAY_CHANGE = frozenset(
    {"device", "tracker", "max_steps", "val_every", "log_every", "on_nan", "memory", "gradient_checkpointing"}
)
"""Settings that may differ in a resumed run, with a notice.

--max_steps may only be raised; the learning rate of the next steps then follows the schedule of the longer run.
"""
SAMPLING = frozenset({"num_samples", "sample_steps", "sample_pair_guidance"})
"""Settings of the sample pairs, which may differ in a resumed run, with a notice, if --best_by is "loss".

A change of any setting that is in none of these three sets is refused.
"""


def check_name(folder: Path, config: TrainConfig) -> None:
    """Raise UserError if the run folder contains files but no run, or if it contains a run and --resume is not given.

    A folder contains a run if it contains config.json. Files whose names start with "." are ignored.
    """
    if not (folder / "config.json").is_file():
        if folder.exists() and any(not path.name.startswith(".") for path in folder.iterdir()):
            raise OccupiedError(folder, "contains files, but no config.json of `retipair train`; choose another --name")
    elif not config.resume:
        raise OccupiedError(folder, "this run exists; add --resume to continue it, or choose another --name")


def check_run(folder: Path, config: TrainConfig, facts: Mapping[str, Any]) -> Path | None:
    """Check that the run can be started or resumed; return the checkpoint to resume from, or None if there is none.

    facts: values derived from the settings (system, layout, SHA-256 of data and base, ...). They must equal those of
    the run that is resumed.

    This function writes nothing. Raises UserError if the run exists and --resume is not given, if a fact or a setting
    that must not change differs from that of the run, or if all checkpoints of the run are damaged.
    """
    check_name(folder, config)
    run = Run(folder)
    if not (folder / "config.json").is_file():
        return None
    _check_same(run, config, facts)
    damaged: list[str] = []
    checkpoint = run.latest(damaged.append)
    if damaged and checkpoint is None:
        raise UserError(f"{damaged[0]}; no checkpoint is intact: start again with another --name")
    for text in damaged:
        console.print(f"warning: {text}")
    return checkpoint


_FACT_NAMES = {
    "data_sha256": "the content of --data (pairs added, rejected or prepared with other settings)",
    "base_sha256": "the weights of --base",
    "native_sizes_sha256": "the native size of pairs in --data",
    "processes": "the number of processes",
}


def may_change(config: TrainConfig) -> frozenset[str]:
    """Return the names of the settings that may differ in a resumed run, with a notice."""
    return MAY_CHANGE | (SAMPLING if config.best_by == "loss" else frozenset())


def changed_settings(run: Run, config: TrainConfig) -> list[str]:
    """List the settings that differ from those of the resumed run, each as "--val_every 100 (500 before)"."""
    before, now = to_values(run.read_config()), to_values(config)
    changed = [name for name in now if name not in MAY_MOVE and now[name] != before.get(name)]
    return [f"--{name} {now[name]} ({before.get(name)} before)" for name in changed]


def _check_same(run: Run, config: TrainConfig, facts: Mapping[str, Any]) -> None:
    before, now = to_values(run.read_config()), to_values(config)
    for key, value in before.items():
        if key not in MAY_MOVE | may_change(config) and now[key] != value:
            how = f"with --{key} {value}, not {now[key]}" if not isinstance(value, bool) else ""
            how = how or f"{'with' if value else 'without'} --{key}"
            raise OccupiedError(run.folder, f"was started {how}; use the same setting, or another --name")
    if config.max_steps < run.read_config().max_steps:
        raise OccupiedError(
            run.folder, f"was started with --max_steps {before['max_steps']}; it can be raised, not lowered"
        )
    saved = read_json(run.folder / "config.json")
    for key in (*facts, *RECORDED):
        if saved.get(key) != facts.get(key):
            raise OccupiedError(
                run.folder, f"{_FACT_NAMES.get(key, key)} has changed since the run started; use another --name"
            )
