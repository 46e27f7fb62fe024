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
from retipair.runtime.distributed import Processes, processes
from retipair.runtime.errors import Stopped, UserError, printable, unless_out_of_memory
from retipair.runtime.lock import owned
from retipair.runtime.profiling import GIB, memory_used, peak_memory
from retipair.runtime.signals import stoppable
from retipair.training.log import log_training, log_validation, said, say_change, say_end, say_start, tracking
from retipair.training.plan import (
    Data,
    Plan,
    describe,
    make_plan,
    print_plan,
    read_data,
    said_of_views,
    smaller_flags,
    view_size_on_disk,
)
from retipair.training.step import Training, named, set_up, take_step
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
    crew = processes(plan.device)
    with owned(plan.folder, crew.first), repeatable(config.deterministic), peak_memory(plan.device) as peak:
        steps = unless_out_of_memory(lambda: learn(plan, crew))
    if steps is None:
        raise UserError(out_of_memory(plan))
    if crew.first:
        say_end(plan, steps, peak)
    return plan.folder


def learn(plan: Plan, crew: Processes) -> int:
    """All of it; returns how many steps it took."""
    # Check: what can be wrong is found before anything is written
    config = plan.config
    with crew.first_alone():  # raw views are prepared once
        data = read_data(plan)
    warnings = [*plan.base.warnings, *caption_warnings(plan.base, data.captions(config.prompt))]
    facts = facts_of(plan, data, crew)
    run = Run(plan.folder)
    if crew.first:
        run.mend()
    crew.wait()
    checkpoint = check_run(plan.folder, config, facts)

    size, on_disk = plan.layout.view_size, view_size_on_disk(data.train)
    if crew.first and on_disk < size:
        console.print(f"warning: views: {said_of_views(size, on_disk)}")

    # Set up
    description = describe(plan, data)
    training = set_up(plan, data, crew)
    learner, window = training.learner, training.window

    # Resume
    best = take_up(training, checkpoint)
    began = learner.step
    if crew.first:
        if best and not run.restore_best(best):
            best = None
        begin(run, plan, facts, checkpoint)
    say_start(plan, data, training, warnings)

    def whole_state() -> dict[str, torch.Tensor]:
        """Everything that a resumed run needs, of all processes."""
        return {**learner.state(), "window": crew.total(window.sums.clone())}

    def save_now(folder: Path) -> None:
        """The adapter as it is, and says that it is."""
        save_adapter(folder, plan.base, training.unet, replace(description, step=learner.step))

    def milestone() -> bool:
        """Validate, sample, save the state, keep the best: in this order, so that the best is never ahead of the state.

        All processes look, the first writes. False where the command was told to stop meanwhile: it is done again.
        """
        nonlocal best
        state = whole_state()
        with learner.averaged():
            losses = validate(training.denoise, training.scheduler, training.batches, crew)
            check_finite(run, learner.step, losses["loss"], config)
            if config.num_samples:
                folder = run.samples_folder(learner.step)
                matching = write_samples(folder, plan, description, training, lambda: crew.count == 1 and stop.asked)
                if matching is None:
                    return False
                losses["consistency"] = matching
            if crew.first:
                log_validation(run, learner.step, losses, track)
                judged = Validation(learner.step, losses["loss"], losses.get("consistency"))
                before = validation_of(best) if best else None
                if improved := better(judged, before, config.best_by):
                    best = reason(judged, before, config.best_by)
                run.save_checkpoint(learner.step, save_now, state, {"best": best})
                if best and improved:  # after the state: a kill in between leaves a state from which it is restored
                    run.save_best(save_now, best)
                    console.print(f"best so far, by {config.best_by}: step {learner.step}, validation {said(judged)}")
        crew.wait()
        return True

    def stop_here() -> Stopped:
        """Save the state between two checkpoints, and say how to go on."""
        heed_lost(run, training, data)
        state = whole_state()
        with learner.averaged():
            if crew.first:
                run.save_stopped(learner.step, save_now, state, {"best": best})
        crew.wait()
        text = f"stopped after step {learner.step}, which is saved; the same command with --resume goes on"
        return Stopped(text, stop.number or signal.SIGTERM)  # another process may have been told

    # Train
    with tracking(config, run, crew) as track, stoppable("this step is finished and saved") as stop:
        if (checkpoint is None or run.is_stopped(checkpoint)) and is_milestone(config, began) and not milestone():
            raise stop_here()
        with progress("Training", config.max_steps, learner.step) as advance:
            started = time.monotonic()
            while learner.step < config.max_steps:
                rate = take_step(training)
                advance()
                logging = learner.step % config.log_every == 0 or learner.step == config.max_steps
                if training.lost.free or logging or is_milestone(config, learner.step):
                    heed_lost(run, training, data)
                if logging:
                    training.lost.lately = 0
                    means = window.read(crew)
                    check_bounded(run, learner.step, means["mse"], config)
                    memory = memory_used(plan.device)
                    if crew.first:
                        log_training(run, learner.step, rate, means, time.monotonic() - started, memory, track)
                    advance(0, note=f"loss {window.last:.4f} lr {rate:.1e} {memory:.1f} GiB")
                if is_milestone(config, learner.step) and not milestone():
                    raise stop_here()
                if learner.step < config.max_steps and crew.any_now_and_then(stop.asked, learner.step):
                    raise stop_here()
    return learner.step - began


def take_up(training: Training, checkpoint: Path | None) -> dict[str, Any] | None:
    """Go on from a checkpoint, if there is one; returns the best step so far and why it is the best."""
    if checkpoint is None:
        return None
    tensors, values = read_state(checkpoint)
    training.learner.restore(values["step"], tensors)
    if training.crew.first:
        training.window.sums.copy_(tensors["window"])
    return values["best"]


def begin(run: Run, plan: Plan, facts: Mapping[str, str], checkpoint: Path | None) -> None:
    """Make the run's folder, or take up its logs where it goes on."""
    before = run.memory_way()
    changes = changed_settings(run, plan.config) if checkpoint else []
    start_run(run, plan.config, {**facts, "memory_way": plan.way.name})
    run.cut_logs(checkpoint)
    if checkpoint is not None and changes:
        text = f"resumed from step {step_of(checkpoint)} with other settings: {', '.join(changes)}"
        run.note("training", text)
        console.print(text)
    if checkpoint is not None and before not in (None, plan.way.name):
        say_change(run, step_of(checkpoint), str(before), plan.way)


def facts_of(plan: Plan, data: Data, crew: Processes) -> dict[str, str]:
    """What the settings led to: a resumed run must find it unchanged."""
    return {
        "system": plan.base.family.name,
        "layout": plan.layout.name,
        "base_sha256": plan.base.fingerprint(),
        "data_sha256": data.sha256,
        "processes": str(crew.count),
    }


def is_milestone(config: TrainConfig, step: int) -> bool:
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


def heed_lost(run: Run, training: Training, data: Data) -> None:
    """Name the step whose gradient was no number, if there was one since the last look; go on only if told to."""
    count, first = training.lost.read()
    if not count:
        return
    config, crew = training.config, training.crew
    found = named(training, data, first)
    text = f"at step {first + 1} no number: {found}"
    if config.on_nan == "stop":
        raise UserError(f"{run.folder}: {text}; {_REMEDY}; --on_nan skip leaves such steps out")
    if training.lost.lately > _MOST_LOST:
        raise UserError(f"{run.folder}: {text}, as in {training.lost.lately} steps since the last log line; {_REMEDY}")
    more = f", and {count - 1} more" if count > 1 else ""
    console.print(f"warning: {printable(text)}; left out{more}")
    if crew.first:
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
