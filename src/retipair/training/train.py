"""`retipair train`: train an adapter on prepared pairs."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from retipair.config import TrainConfig
from retipair.models.captions import caption_warnings
from retipair.models.device import repeatable
from retipair.runs.resume import changed_settings, check_name, check_run
from retipair.runs.run_dir import Run, read_state, start_run, step_of
from retipair.runtime.console import console
from retipair.runtime.distributed import DistributedState, distributed_state
from retipair.runtime.errors import UserError, unless_out_of_memory
from retipair.runtime.lock import directory_lock
from retipair.runtime.profiling import GIB, peak_memory
from retipair.runtime.schema import json_sha256
from retipair.runtime.signals import graceful_shutdown
from retipair.training.description import describe_adapter
from retipair.training.dry_run import print_plan
from retipair.training.initial_adapter import InitialAdapter, initial_sha256, read_initial_adapter
from retipair.training.log import print_change, print_end, print_start, tracking
from retipair.training.loop import TrainingLoop
from retipair.training.plan import (
    Data,
    Plan,
    make_plan,
    read_data,
    size_warnings,
    smaller_flags,
    with_prompt,
)
from retipair.training.step import Training, build_training


def train(config: TrainConfig) -> Path | None:
    """Train an adapter, and return the folder of the run. With --dry_run, print the plan and return None."""
    plan = make_plan(config)
    initial = read_initial_adapter(plan)
    if config.dry_run:
        print_plan(plan, initial.warnings if initial else [])
        return None
    check_name(plan.folder, config)  # before raw views are prepared, which takes minutes
    dist = distributed_state(plan.device)
    with (
        directory_lock(plan.folder, dist.is_main_process),
        repeatable(config.deterministic),
        peak_memory(plan.device) as peak,
    ):
        steps = unless_out_of_memory(lambda: run_training(plan, dist, initial))
    if steps is None:
        raise UserError(out_of_memory(plan))
    if dist.is_main_process:
        print_end(plan, steps, peak)
    return plan.folder


def run_training(plan: Plan, dist: DistributedState, initial: InitialAdapter | None) -> int:
    """Check the inputs, load the networks, resume an earlier run if any, and train. Return the number of new steps."""
    # Check the inputs, prepare raw views, and restore the best checkpoint if writing it was interrupted
    with dist.main_process_first():  # the main process prepares raw views
        data = read_data(plan)
    plan = with_prompt(plan, data.modalities)
    config = plan.config
    of_initial = initial.warnings if initial else []
    warnings = [*plan.base.warnings, *of_initial, *caption_warnings(plan.base, data.captions(config.prompt))]
    fingerprint = run_fingerprint(plan, data, dist)
    run = Run(plan.folder)
    if dist.is_main_process:
        run.recover()
    dist.wait_for_everyone()
    checkpoint = check_run(plan.folder, config, fingerprint)
    if dist.is_main_process:
        for warning in size_warnings(plan, data.train):  # before pairs are encoded, which takes minutes
            console.print(f"warning: {warning}")

    # Set up
    metadata = describe_adapter(plan, data, initial_sha256(initial, checkpoint))
    training = build_training(plan, data, dist, initial)

    # Resume
    best = restore_checkpoint(training, checkpoint)
    first_step = training.optimizer.step_count
    if dist.is_main_process:
        if best and not run.restore_best(best):
            best = None
        init_run_dir(run, plan, fingerprint, checkpoint)
    print_start(plan, data, training, warnings)

    # Train
    with tracking(config, run, dist) as tracker, graceful_shutdown("this step is finished and saved") as stop:
        loop = TrainingLoop(plan, data, run, training, metadata, best, tracker, stop)
        loop.run(validate_first=loop.validation_due and (checkpoint is None or run.is_stopped(checkpoint)))
    return loop.step - first_step


def restore_checkpoint(training: Training, checkpoint: Path | None) -> dict[str, Any] | None:
    """Load the optimiser, the adapter and the loss sums from `checkpoint`, if it is not None.

    Returns the best step so far with its scores, or None if no step was validated.
    """
    if checkpoint is None:
        return None
    tensors, values = read_state(checkpoint)
    training.optimizer.restore(values["step"], tensors)
    if training.dist.is_main_process:
        training.meter.sums.copy_(tensors["window"])
    return values["best"]


def init_run_dir(run: Run, plan: Plan, fingerprint: Mapping[str, str], checkpoint: Path | None) -> None:
    """Create the folder of a run, or update that of a resumed run.

    For a resumed run, log lines after the checkpoint are removed, and changed settings are reported.

    fingerprint: the values that must be unchanged when the run is resumed.
    checkpoint: the checkpoint to resume from, or None for a new run.
    """
    previous = run.memory_strategy()
    changes = changed_settings(run, plan.config) if checkpoint else []
    start_run(run, plan.config, {**fingerprint, "memory_way": plan.strategy.name})
    run.cut_logs(checkpoint)
    if checkpoint is not None and changes:
        text = f"resumed from step {step_of(checkpoint)} with other settings: {', '.join(changes)}"
        run.note("training", text)
        console.print(text)
    if checkpoint is not None and previous not in (None, plan.strategy.name):
        print_change(run, step_of(checkpoint), str(previous), plan.strategy)


def run_fingerprint(plan: Plan, data: Data, dist: DistributedState) -> dict[str, str]:
    """Return the values that must be unchanged when the run is resumed."""
    values = {
        "system": plan.base.family.name,
        "layout": plan.layout.name,
        "base_sha256": plan.base.fingerprint(),
        "data_sha256": data.sha256,
        "processes": str(dist.num_processes),
    }
    for name, texts in data.modalities.recorded.items():
        if texts:
            values[name] = " ".join(texts)
    if plan.config.size_ids == "native":
        sizes = [plan.original_sizes(entries) for entries in (data.train, data.val)]
        values["native_sizes_sha256"] = json_sha256(sizes)
    return values


def out_of_memory(plan: Plan) -> str:
    """Return the message after an out-of-memory error: the last checkpoint, and flags that reduce the memory."""
    latest = Run(plan.folder).latest()
    saved = f"the last checkpoint, step {step_of(latest)}, is intact" if latest else "nothing was saved yet"
    estimated = plan.memory_of(plan.strategy) / GIB
    return (
        f"out of memory, with {plan.strategy.name} ({estimated:.1f} GiB were estimated); {saved}: "
        f"try {smaller_flags(plan, resume=latest is not None)}"
    )
