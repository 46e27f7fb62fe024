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
from retipair.training.log import Track, log_training, log_validation, validation_text
from retipair.training.plan import Data, Plan
from retipair.training.step import Training, training_step
from retipair.training.validation import validate, write_samples


@dataclass
class TrainingLoop:
    """Train a run from its current step to `max_steps`.

    best: the best step so far and its scores (`reason`), or None. track: sends metrics to a tracker. stop: whether a
    signal requested a stop. All processes run the loop; only the main process writes and prints.
    """

    plan: Plan
    data: Data
    run_dir: Run
    training: Training
    metadata: AdapterMetadata
    best: dict[str, Any] | None
    track: Track
    stop: Stop

    @property
    def step(self) -> int:
        """Optimiser steps taken so far."""
        return self.training.optimizer.step_count

    def run(self, validate_first: bool) -> None:
        """Train up to `max_steps`, after a validation if `validate_first`.

        Raises Stopped, after saving the state, if a signal requests it; UserError if training diverges.
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
        """Whether to validate after the current step."""
        config = self.plan.config
        return self.step % config.val_every == 0 or self.step == config.max_steps

    def log(self, rate: float, seconds: float) -> str:
        """Log the means since the last log line; returns the note for the progress bar."""
        self.training.nonfinite.since_last_log = 0
        means = self.training.meter.read(self.training.dist)
        check_bounded(self.run_dir, self.step, means["mse"], self.plan.config)
        memory = memory_used(self.plan.device)
        if self.training.dist.is_main_process:
            log_training(self.run_dir, self.step, rate, means, seconds, memory, self.track)
        return f"loss {self.training.meter.last:.4f} lr {rate:.1e} {memory:.1f} GiB"

    def validate_and_checkpoint(self) -> bool:
        """Validate, sample, save the state and the best adapter; returns False if a signal interrupts the sampling.

        This order ensures that the best step is never later than the saved state. A resumed run repeats an interrupted
        validation.
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
        """Write sample pairs; returns the mean consistency of their halves, None if a signal interrupts."""
        single_process = self.training.dist.num_processes == 1
        folder = self.run_dir.samples_folder(self.step)
        return write_samples(
            folder, self.plan, self.metadata, self.training, lambda: single_process and self.stop.requested
        )

    def checkpoint(self, losses: dict[str, float], state: dict[str, torch.Tensor]) -> None:
        """Log a validation and save the state, and the adapter if it is the best so far. Main process only."""
        log_validation(self.run_dir, self.step, losses, self.track)
        by = self.plan.config.best_by
        current = Validation(self.step, losses["loss"], losses.get("consistency"))
        best = validation_of(self.best) if self.best else None
        if improved := better(current, best, by):
            self.best = reason(current, best, by)
        self.run_dir.save_checkpoint(self.step, self.save_adapter, state, {"best": self.best})
        if self.best and improved:
            # Written after the checkpoint: if the run is killed in between, resuming copies the adapter from it
            self.run_dir.save_best(self.save_adapter, self.best)
            console.print(f"new best, by {by}: step {self.step}, validation {validation_text(current)}")

    def save_and_stop(self) -> Stopped:
        """Save the state between two checkpoints; returns the exception to raise."""
        handle_nonfinite_steps(self.run_dir, self.training, self.data)
        state = self.state_dict()
        with self.training.optimizer.ema_weights():
            if self.training.dist.is_main_process:
                self.run_dir.save_stopped(self.step, self.save_adapter, state, {"best": self.best})
        self.training.dist.wait_for_everyone()
        text = f"stopped after step {self.step}, which is saved; run the same command with --resume to continue"
        return Stopped(text, self.stop.number or signal.SIGTERM)  # another process may have received the signal

    def state_dict(self) -> dict[str, torch.Tensor]:
        """Return the tensors that a resumed run needs; the meter's sums are added over all processes."""
        sums = self.training.dist.reduce_sum(self.training.meter.sums.clone())
        return {**self.training.optimizer.state(), "window": sums}

    def save_adapter(self, folder: Path) -> None:
        """Save the adapter with the current step in its metadata."""
        save_adapter(folder, self.plan.base, self.training.unet, replace(self.metadata, step=self.step))
