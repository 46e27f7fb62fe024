"""Manifest -> adapter."""

import math
import signal
import time
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from retipair.config import TrainConfig
from retipair.models.captions import caption_warnings
from retipair.models.device import repeatable
from retipair.models.lora import save_adapter
from retipair.runs.model_selection import Validation, better, reason, validation_of
from retipair.runs.resume import changed_settings, check_name, check_run
from retipair.runs.run_dir import Run, read_state, start_run, step_of
from retipair.runtime.console import console, progress
from retipair.runtime.distributed import DistributedState, distributed_state
from retipair.runtime.errors import Stopped, UserError, printable, unless_out_of_memory
from retipair.runtime.lock import directory_lock
from retipair.runtime.profiling import GIB, memory_used, peak_memory
from retipair.runtime.signals import graceful_shutdown
from retipair.training.log import (
    log_training,
    log_validation,
    print_change,
    print_end,
    print_start,
    tracking,
    validation_text,
)
from retipair.training.plan import (
    Data,
    Plan,
    describe_adapter,
    make_plan,
    print_plan,
    read_data,
    smaller_flags,
    view_size_on_disk,
    views_text,
)
from retipair.training.step import Training, build_training, describe_nonfinite_step, training_step
from retipair.training.validation import validate, write_samples

_REMEDY = "the last checkpoint is good; a run with a lower --learning_rate (or, if in bf16, --precision fp32) may go on"
_EXPLODED = 100.0
_MOST_LOST = 10
"""Steps left out between two lines of the log, from which on something is wrong with more than a pair."""


def train(config: TrainConfig) -> Path | None:
    """Train an adapter; returns the run's folder (None after --dry_run)."""
    plan = make_plan(config)
    if config.dry_run:
        print_plan(plan)
        return None
    check_name(plan.folder, config)  # before raw views are prepared, which takes minutes
    dist = distributed_state(plan.device)
    with (
        directory_lock(plan.folder, dist.is_main_process),
        repeatable(config.deterministic),
        peak_memory(plan.device) as peak,
    ):
        steps = unless_out_of_memory(lambda: run_training(plan, dist))
    if steps is None:
        raise UserError(out_of_memory(plan))
    if dist.is_main_process:
        print_end(plan, steps, peak)
    return plan.folder


def run_training(plan: Plan, dist: DistributedState) -> int:
    """All of it; returns how many steps it took."""
    # Check: what can be wrong is found before anything is written
    config = plan.config
    with dist.main_process_first():  # raw views are prepared once
        data = read_data(plan)
    warnings = [*plan.base.warnings, *caption_warnings(plan.base, data.captions(config.prompt))]
    facts = run_fingerprint(plan, data, dist)
    run = Run(plan.folder)
    if dist.is_main_process:
        run.mend()
    dist.wait_for_everyone()
    checkpoint = check_run(plan.folder, config, facts)

    size, on_disk = plan.layout.view_size, view_size_on_disk(data.train)
    if dist.is_main_process and on_disk < size:
        console.print(f"warning: views: {views_text(size, on_disk)}")

    # Set up
    description = describe_adapter(plan, data)
    training = build_training(plan, data, dist)
    optimizer, window = training.optimizer, training.meter

    # Resume
    best = restore_checkpoint(training, checkpoint)
    began = optimizer.step
    if dist.is_main_process:
        if best and not run.restore_best(best):
            best = None
        init_run_dir(run, plan, facts, checkpoint)
    print_start(plan, data, training, warnings)

    def whole_state() -> dict[str, torch.Tensor]:
        """Everything that a resumed run needs, of all processes."""
        return {**optimizer.state(), "window": dist.reduce_sum(window.sums.clone())}

    def save_now(folder: Path) -> None:
        """The adapter as it is, and says that it is."""
        save_adapter(folder, plan.base, training.unet, replace(description, step=optimizer.step))

    def milestone() -> bool:
        """Validate, sample, save the state, keep the best: in this order, so that the best is never ahead of the state.

        All processes look, the first writes. False where the command was told to stop meanwhile: it is done again.
        """
        nonlocal best
        state = whole_state()
        with optimizer.ema_weights():
            losses = validate(training.denoise, training.scheduler, training.batches, dist)
            check_finite(run, optimizer.step, losses["loss"], config)
            if config.num_samples:
                folder = run.samples_folder(optimizer.step)
                matching = write_samples(
                    folder, plan, description, training, lambda: dist.num_processes == 1 and stop.requested
                )
                if matching is None:
                    return False
                losses["consistency"] = matching
            if dist.is_main_process:
                log_validation(run, optimizer.step, losses, track)
                judged = Validation(optimizer.step, losses["loss"], losses.get("consistency"))
                before = validation_of(best) if best else None
                if improved := better(judged, before, config.best_by):
                    best = reason(judged, before, config.best_by)
                run.save_checkpoint(optimizer.step, save_now, state, {"best": best})
                if best and improved:  # after the state: a kill in between leaves a state from which it is restored
                    run.save_best(save_now, best)
                    console.print(
                        f"best so far, by {config.best_by}: step {optimizer.step}, validation {validation_text(judged)}"
                    )
        dist.wait_for_everyone()
        return True

    def stop_here() -> Stopped:
        """Save the state between two checkpoints, and say how to go on."""
        handle_nonfinite_steps(run, training, data)
        state = whole_state()
        with optimizer.ema_weights():
            if dist.is_main_process:
                run.save_stopped(optimizer.step, save_now, state, {"best": best})
        dist.wait_for_everyone()
        text = f"stopped after step {optimizer.step}, which is saved; the same command with --resume goes on"
        return Stopped(text, stop.number or signal.SIGTERM)  # another process may have been told

    # Train
    with tracking(config, run, dist) as track, graceful_shutdown("this step is finished and saved") as stop:
        if (checkpoint is None or run.is_stopped(checkpoint)) and is_validation_step(config, began) and not milestone():
            raise stop_here()
        with progress("Training", config.max_steps, optimizer.step) as advance:
            started = time.monotonic()
            while optimizer.step < config.max_steps:
                rate = training_step(training)
                advance()
                logging = optimizer.step % config.log_every == 0 or optimizer.step == config.max_steps
                if training.nonfinite.free or logging or is_validation_step(config, optimizer.step):
                    handle_nonfinite_steps(run, training, data)
                if logging:
                    training.nonfinite.lately = 0
                    means = window.read(dist)
                    check_bounded(run, optimizer.step, means["mse"], config)
                    memory = memory_used(plan.device)
                    if dist.is_main_process:
                        log_training(run, optimizer.step, rate, means, time.monotonic() - started, memory, track)
                    advance(0, note=f"loss {window.last:.4f} lr {rate:.1e} {memory:.1f} GiB")
                if is_validation_step(config, optimizer.step) and not milestone():
                    raise stop_here()
                if optimizer.step < config.max_steps and dist.any_process(stop.requested, optimizer.step):
                    raise stop_here()
    return optimizer.step - began


def restore_checkpoint(training: Training, checkpoint: Path | None) -> dict[str, Any] | None:
    """Go on from a checkpoint, if there is one; returns the best step so far and why it is the best."""
    if checkpoint is None:
        return None
    tensors, values = read_state(checkpoint)
    training.optimizer.restore(values["step"], tensors)
    if training.dist.is_main_process:
        training.meter.sums.copy_(tensors["window"])
    return values["best"]


def init_run_dir(run: Run, plan: Plan, facts: Mapping[str, str], checkpoint: Path | None) -> None:
    """Make the run's folder, or take up its logs where it goes on."""
    before = run.memory_strategy()
    changes = changed_settings(run, plan.config) if checkpoint else []
    start_run(run, plan.config, {**facts, "memory_strategy": plan.way.name})
    run.cut_logs(checkpoint)
    if checkpoint is not None and changes:
        text = f"resumed from step {step_of(checkpoint)} with other settings: {', '.join(changes)}"
        run.note("training", text)
        console.print(text)
    if checkpoint is not None and before not in (None, plan.way.name):
        print_change(run, step_of(checkpoint), str(before), plan.way)


def run_fingerprint(plan: Plan, data: Data, dist: DistributedState) -> dict[str, str]:
    """What the settings led to: a resumed run must find it unchanged."""
    return {
        "system": plan.base.family.name,
        "layout": plan.layout.name,
        "base_sha256": plan.base.fingerprint(),
        "data_sha256": data.sha256,
        "processes": str(dist.num_processes),
    }


def is_validation_step(config: TrainConfig, step: int) -> bool:
    return step % config.val_every == 0 or step == config.max_steps


def check_finite(run: Run, step: int, loss: float, config: TrainConfig) -> None:
    """Raise UserError when training has diverged, before anything of it is kept."""
    if math.isfinite(loss):
        return
    if step == 0:
        raise UserError(f"{config.base}: the base alone predicts values that are no numbers; try --precision fp32")
    raise UserError(f"{run.folder}: validation at step {step} gives no number; {_REMEDY}")


def check_bounded(run: Run, step: int, mse: float, config: TrainConfig) -> None:
    """Raise UserError when the loss explodes: predicting nothing at all has one of about 1."""
    if mse > _EXPLODED:
        raise UserError(
            f"{run.folder}: by step {step} the loss is {mse:.3g}, where predicting nothing has 1; {_REMEDY}, "
            f"lower than {config.learning_rate:g}"
        )


# Steps that give no number


def handle_nonfinite_steps(run: Run, training: Training, data: Data) -> None:
    """Name the step whose gradient was no number, if there was one since the last look; go on only if told to."""
    count, first = training.nonfinite.read()
    if not count:
        return
    config, dist = training.config, training.dist
    found = describe_nonfinite_step(training, data, first)
    text = f"at step {first + 1} no number: {found}"
    if config.on_nan == "stop":
        raise UserError(f"{run.folder}: {text}; {_REMEDY}; --on_nan skip leaves such steps out")
    if training.nonfinite.lately > _MOST_LOST:
        raise UserError(
            f"{run.folder}: {text}, as in {training.nonfinite.lately} steps since the last log line; {_REMEDY}"
        )
    more = f", and {count - 1} more" if count > 1 else ""
    console.print(f"warning: {printable(text)}; left out{more}")
    if dist.is_main_process:
        run.note("training", f"step {first + 1:06d} left out: {found}{more}")


# Validate and sample


# Log


def out_of_memory(plan: Plan) -> str:
    """What to do, and what is left."""
    whole = Run(plan.folder).latest()
    kept = f"the last checkpoint, step {step_of(whole)}, is intact" if whole else "nothing was saved yet"
    return (
        f"out of memory, with {plan.way.name} ({plan.memory_of(plan.way) / GIB:.1f} GiB were estimated); {kept}: "
        f"try {smaller_flags(plan)}{' --resume' if whole else ''}"
    )
