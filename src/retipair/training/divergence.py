"""Training that diverges: NaN, infinity and exploding losses end it before anything of them is kept."""

import math

from retipair.config import TrainConfig
from retipair.runs.run_dir import Run
from retipair.runtime.console import console
from retipair.runtime.errors import UserError, printable
from retipair.training.plan import (
    Data,
)
from retipair.training.step import Training, describe_nonfinite_step

_REMEDY = "the last checkpoint is good; a run with a lower --learning_rate (or, if in bf16, --precision fp32) may go on"


_EXPLODED = 100.0


_MOST_SKIPPED = 10
"""Steps left out between two lines of the log, from which on something is wrong with more than a pair."""


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
    if training.nonfinite.since_last_log > _MOST_SKIPPED:
        raise UserError(
            f"{run.folder}: {text}, as in {training.nonfinite.since_last_log} steps since the last log line; {_REMEDY}"
        )
    more = f", and {count - 1} more" if count > 1 else ""
    console.print(f"warning: {printable(text)}; left out{more}")
    if dist.is_main_process:
        run.note("training", f"step {first + 1:06d} left out: {found}{more}")
