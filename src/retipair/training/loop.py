"""The training loop of a run: train, log, validate, checkpoint, stop."""

import signal
import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from retipair.models.lora import AdapterMetadata, save_adapter
from retipair.runs.model_selection import Validation, better, reason, validation_of
from retipair.runs.run_dir import Run
from retipair.runtime.console import console, progress
from retipair.runtime.errors import Stopped
from retipair.runtime.profiling import memory_used
from retipair.runtime.signals import Stop
from retipair.training.divergence import check_bounded, check_finite, handle_nonfinite_steps
from retipair.training.log import Tracker, log_training, log_validation, validation_text
from retipair.training.plan import Data, Plan
from retipair.training.sample_grid import write_grid
from retipair.training.step import Training, training_step
from retipair.training.validation import validate, write_samples


@dataclass
class TrainingLoop:
    """Train a run from its current step to `max_steps`.

    All processes run the loop and write their part of the sample pairs; only the main process writes other files and
    prints.

    best: the best step so far with its scores, as `model_selection.reason` returns them; None if there is
        none.
    tracker: sends metrics and sample pairs to the experiment tracker.
    stop: records whether a signal such as Ctrl-C requested a stop.
    """

    plan: Plan
    data: Data
    run_dir: Run
    training: Training
    metadata: AdapterMetadata
    best: dict[str, Any] | None
    tracker: Tracker
    stop: Stop

    @property
    def step(self) -> int:
        """Number of optimiser steps taken so far, those before a resume included."""
        return self.training.optimizer.step_count

    def run(self, validate_first: bool) -> None:
        """Train up to `max_steps`. If `validate_first` is True, validate before the first step.

        Raises Stopped if a signal requests a stop; the state is saved first. Raises UserError if training diverges.
        """
        config, dist = self.plan.config, self.training.dist
        if validate_first and not self.validate_and_checkpoint():
            raise self.save_and_stop()
        with progress("Training", config.max_steps, self.step) as advance:
            started = time.monotonic()
            while self.step < config.max_steps:
                rate = training_step(self.training)
                advance()
                log_due = self.step % config.log_every == 0 or self.step == config.max_steps
                if self.training.nonfinite.sync_is_free or log_due or self.validation_due:
                    handle_nonfinite_steps(self.run_dir, self.training, self.data)
                if log_due:
                    advance(0, note=self.log(rate, time.monotonic() - started))
                if self.validation_due and not self.validate_and_checkpoint():
                    raise self.save_and_stop()
                if self.step < config.max_steps and dist.any_process(self.stop.requested, self.step):
                    raise self.save_and_stop()

    @property
    def validation_due(self) -> bool:
        """True if a validation follows the current step."""
        config = self.plan.config
        return self.step % config.val_every == 0 or self.step == config.max_steps

    def log(self, rate: float, seconds: float) -> str:
        """Log the mean losses since the last log line, and return a short text for the progress bar.

        rate: the learning rate.
        seconds: the time since the loop started.
        """
        self.training.nonfinite.since_last_log = 0
        means = self.training.meter.read(self.training.dist)
        check_bounded(self.run_dir, self.step, means["mse"], self.plan.config)
        memory = memory_used(self.plan.device)
        if self.training.dist.is_main_process:
            log_training(self.run_dir, self.step, rate, means, seconds, memory, self.tracker)
        return f"loss {self.training.meter.last:.4f} lr {rate:.1e} {memory:.1f} GiB"

    def validate_and_checkpoint(self) -> bool:
        """Validate, generate sample pairs, save the state, and then save the adapter if it is the best so far.

        Returns False, without saving, if a signal interrupts the generation of the samples; the caller then saves the
        state, and a resumed run repeats this validation. The state is saved before the best adapter, so that the best
        step is never later than the step of the saved state.
        """
        state = self.state_dict()
        with self.training.optimizer.ema_weights():
            losses = validate(self.training.denoise, self.training.schedule, self.training.batches, self.training.dist)
            check_finite(self.run_dir, self.step, losses["loss"], self.plan.config)
            if self.plan.config.num_samples:
                consistency = self.sample()
                if consistency is None:
                    return False
                losses["consistency"] = consistency
            if self.training.dist.is_main_process:
                self.checkpoint(losses, state)
        self.training.dist.wait_for_everyone()
        return True

    def sample(self) -> float | None:
        """Generate and write sample pairs, and return the mean consistency of CF and FA in these pairs.

        Returns None if a signal interrupts the generation.
        """
        single_process = self.training.dist.num_processes == 1
        folder = self.run_dir.samples_folder(self.step)
        return write_samples(
            folder, self.plan, self.metadata, self.training, lambda: single_process and self.stop.requested
        )

    def checkpoint(self, losses: dict[str, float], state: dict[str, torch.Tensor]) -> None:
        """Log a validation with its sample pairs, save the state, and save the adapter if it is the best so far.

        Only the main process calls this.

        losses: the results of the validation.
        state: the tensors that a resumed run needs.
        """
        log_validation(self.run_dir, self.step, losses, self.tracker)
        if self.plan.config.num_samples:
            self.tracker.log_image("samples", write_grid(self.run_dir.samples_folder(self.step)), self.step)
        by = self.plan.config.best_by
        current = Validation(self.step, losses["loss"], losses.get("consistency"))
        best = validation_of(self.best) if self.best else None
        if improved := better(current, best, by):
            self.best = reason(current, best, by)
        self.run_dir.save_checkpoint(self.step, self.save_adapter, state, {"best": self.best})
        if self.best and improved:
            # If the run is killed between these two writes, a resumed run copies the best adapter from the checkpoint.
            self.run_dir.save_best(self.save_adapter, self.best)
            console.print(f"new best, by {by}: step {self.step}, validation {validation_text(current)}")

    def save_and_stop(self) -> Stopped:
        """Save the state of a run that was asked to stop, and return the exception for the caller to raise."""
        handle_nonfinite_steps(self.run_dir, self.training, self.data)
        state = self.state_dict()
        with self.training.optimizer.ema_weights():
            if self.training.dist.is_main_process:
                self.run_dir.save_stopped(self.step, self.save_adapter, state, {"best": self.best})
        self.training.dist.wait_for_everyone()
        text = f"stopped after step {self.step}, which is saved; run the same command with --resume to continue"
        # the number is 0 if the signal was sent only to another process
        return Stopped(text, self.stop.number or signal.SIGTERM)

    def state_dict(self) -> dict[str, torch.Tensor]:
        """Return the tensors that a resumed run needs. The sums of the loss meter are added up over all processes."""
        sums = self.training.dist.reduce_sum(self.training.meter.sums.clone())
        return {**self.training.optimizer.state(), "window": sums}

    def save_adapter(self, folder: Path) -> None:
        """Save the adapter to `folder`. Its metadata contain the current step."""
        save_adapter(folder, self.plan.base, self.training.unet, replace(self.metadata, step=self.step))
