"""Stop a training that diverges (NaN, infinity or an exploding loss) before it saves a damaged checkpoint."""

import math

from retipair.config import TrainConfig
from retipair.runs.run_dir import Run
from retipair.runtime.console import console
from retipair.runtime.errors import FileError, printable
from retipair.training.plan import Data
from retipair.training.step import Training, describe_nonfinite_step

_REMEDY = "the last checkpoint is intact; try a new run with a lower --learning_rate (or, if in bf16, --precision fp32)"
_MAX_LOSS = 100.0
_MAX_SKIPPED = 10
"""Number of steps that may be skipped between two log lines, because of NaN or infinity, before training stops."""


def check_finite(run: Run, step: int, loss: float, config: TrainConfig) -> None:
    """Raise UserError if the validation loss is NaN or infinite."""
    if math.isfinite(loss):
        return
    if step == 0:
        start = "with the initial adapter" if config.init_adapter else "without an adapter"
        raise FileError(config.base, f"outputs NaN or infinity {start}, before the first step; try --precision fp32")
    raise FileError(run.folder, f"the validation loss at step {step} is NaN or infinite; {_REMEDY}")


def check_bounded(run: Run, step: int, mse: float, config: TrainConfig) -> None:
    """Raise UserError if the squared error `mse` exceeds _MAX_LOSS.

    For comparison, a model that always predicts zero has a squared error of about 1.
    """
    if mse > _MAX_LOSS:
        raise FileError(
            run.folder,
            f"the loss at step {step} is {mse:.3g} with --learning_rate {config.learning_rate:g} "
            f"(a model that predicts zero has a loss of 1); {_REMEDY}",
        )


def handle_nonfinite_steps(run: Run, training: Training, data: Data) -> None:
    """Report the steps since the last call that were skipped because a gradient contained NaN or infinity.

    Raises UserError if there was such a step and --on_nan is "stop", or if more than _MAX_SKIPPED steps were skipped
    since the last log line.
    """
    count, first = training.nonfinite.read()
    if not count:
        return
    config, dist = training.config, training.dist
    cause = describe_nonfinite_step(training, data, first)
    text = f"NaN or infinity at step {first + 1}: {cause}"
    if config.on_nan == "stop":
        raise FileError(run.folder, f"{text}; {_REMEDY}, or --on_nan skip")
    if training.nonfinite.since_last_log > _MAX_SKIPPED:
        raise FileError(
            run.folder, f"{text}; {training.nonfinite.since_last_log} such steps since the last log line; {_REMEDY}"
        )
    more = f" ({count} steps skipped since the last check)" if count > 1 else ""
    console.print(f"warning: {printable(text)}; step skipped{more}")
    if dist.is_main_process:
        run.note("training", f"step {first + 1:06d} skipped: NaN or infinity in {cause}{more}")
