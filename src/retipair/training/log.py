"""Log and print the progress of a training."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from retipair.config import TrainConfig
from retipair.models.memory_strategies import MemoryStrategy
from retipair.runs.model_selection import Validation
from retipair.runs.run_dir import Run
from retipair.runtime.atomic_io import shareable_name
from retipair.runtime.console import console
from retipair.runtime.distributed import DistributedState
from retipair.runtime.errors import printable
from retipair.runtime.profiling import GIB, Peak, memory_kind
from retipair.runtime.schema import to_values
from retipair.training.plan import Data, Plan, samples_text
from retipair.training.step import Training


@dataclass(frozen=True)
class Tracker:
    """Sends metrics and images to the experiment tracker of --tracker, by means of accelerate.

    accelerator: an `Accelerator` with trackers; None to send nothing.
    """

    accelerator: Any = None

    def log(self, values: Mapping[str, float], step: int) -> None:
        if self.accelerator is not None:
            self.accelerator.log(dict(values), step=step)

    def log_image(self, name: str, image: np.ndarray, step: int) -> None:
        """Send an image (H, W, 3) uint8."""
        for tracker in self.accelerator.trackers if self.accelerator is not None else ():
            options = {"dataformats": "NHWC"} if tracker.name == "tensorboard" else {}
            tracker.log_images({name: image[None]}, step=step, **options)


def log_training(
    run: Run, step: int, rate: float, means: dict[str, float], seconds: float, memory: float, tracker: Tracker
) -> None:
    """Log the mean losses since the last log line.

    For each loss, the text contains the mean of both halves and, in parentheses, the means of CF and FA.

    rate: the learning rate.
    means: the return value of `LossMeter.read`.
    seconds: the time since training started in this process.
    memory: the value of `profiling.memory_used`, GiB.
    """
    names = [name for name in means if f"{name}_cf" in means]
    losses = (f"{n} {means[n]:.6f} (cf {means[f'{n}_cf']:.6f} fa {means[f'{n}_fa']:.6f})" for n in names)
    text = (
        f"step {step:06d} lr {rate:.3e} loss {means['loss']:.6f} {' '.join(losses)} t {means['t']:.1f} {seconds:.1f} s"
    )
    cost = {"seconds": round(seconds, 3), "memory_gib": round(memory, 3)}
    _log(run, "training", text, {"step": step, "lr": rate, **means, **cost}, tracker)


def log_validation(run: Run, step: int, losses: dict[str, float], tracker: Tracker) -> None:
    text = " ".join(f"{name} {value:.6f}" for name, value in losses.items())
    _log(run, "validation", f"step {step:06d} {text}", {"step": step, **losses}, tracker)


def _log(run: Run, kind: str, text: str, values: dict[str, Any], tracker: Tracker) -> None:
    run.log(kind, text, values)
    console.print(f"{kind}: {text}")
    tracker.log({f"{kind}/{name}": value for name, value in values.items() if name != "step"}, values["step"])


@contextmanager
def tracking(config: TrainConfig, run: Run, dist: DistributedState) -> Iterator[Tracker]:
    """Yield the experiment tracker. Without --tracker, and in all processes but the main one, it sends nothing."""
    if config.tracker == "none" or not dist.is_main_process:
        yield Tracker()
        return
    from accelerate import Accelerator

    accelerator = Accelerator(log_with=config.tracker, project_dir=str(run.folder), cpu=True)
    paths = ("data", "results", "tokenizer", "init_adapter")
    settings = {name: value for name, value in to_values(config).items() if value is not None and name not in paths}
    options = {"wandb": {"dir": str(run.folder)}}
    accelerator.init_trackers("retipair", {**settings, "base": shareable_name(config.base)}, options)
    yield Tracker(accelerator)
    accelerator.end_training()


def print_start(plan: Plan, data: Data, training: Training, warnings: Sequence[str]) -> None:
    if training.optimizer.step_count:
        console.print(f"Resuming {plan.folder} at step {training.optimizer.step_count}")
    trainable = sum(parameter.numel() for parameter in training.optimizer.parameters.values())
    dist = training.dist
    processes = f", with {dist.num_processes} processes" if dist.num_processes > 1 else ""
    console.print(
        f"{plan.base.family.name}, {plan.layout.name}; {len(data.train)} training, {len(data.val)} validation pairs; "
        f"{trainable:,} trainable parameters on {plan.device} in {str(plan.dtype).removeprefix('torch.')}{processes}"
    )
    if plan.precision_reason:
        console.print(f"precision: {plan.config.precision}, because {plan.precision_reason}")
    console.print(f"the base predicts {plan.base.prediction}")
    console.print(memory_text(plan))
    console.print(f"samples: {samples_text(plan.config)}")
    for warning in warnings:
        console.print(f"warning: {printable(warning)}")


def memory_text(plan: Plan) -> str:
    needed = plan.memory_of(plan.strategy) / GIB
    return f"memory: {needed:.1f} GiB estimated, with {plan.strategy.name} (--memory {plan.config.memory})"


def print_change(run: Run, step: int, before: str, strategy: MemoryStrategy) -> None:
    """Report that a resumed run continues with another memory strategy than before.

    The message says that the results change if the new strategy stores the base's weights in another precision.
    """
    text = f"memory: from step {step} on with {strategy.name}, before with {before}"
    run.note("training", text)
    console.print(f"{text}; if the base's weights change precision, results differ from an uninterrupted run")


def print_end(plan: Plan, steps: int, peak: Peak) -> None:
    """Print the last step, the best step, the estimated and the measured peak memory, and the next command."""
    run = Run(plan.folder)
    needed, used = plan.memory_of(plan.strategy) / GIB, peak.gib - peak.baseline
    kind = f"used: {memory_kind(plan.device)}, minus that at the start"
    memory = f"memory: {needed:.2f} GiB estimated, {used:.2f} GiB used at most, with {plan.strategy.name} ({kind})"
    if steps:
        run.note("training", memory)
    console.print(memory)
    console.print(f"Trained to step {plan.config.max_steps}, best at step {run.best_step()}: {run.folder}")
    if run.best_step() == 0:
        start = "the initial adapter" if plan.config.init_adapter else "the base without an adapter"
        console.print(
            f"warning: no step is clearly better than {start}; train longer, or generate with --checkpoint latest"
        )
    console.print(f"Next: {next_command(plan.config, untrained=run.best_step() == 0)}")


def next_command(config: TrainConfig, untrained: bool) -> str:
    flags = f" --results {config.results}" if config.results != Path("results") else ""
    flags += " --checkpoint latest" if untrained else ""
    return f"retipair generate -n {config.name} --base {config.base}{flags} --savedir new --amount 10"


def validation_text(validation: Validation) -> str:
    matching = "" if validation.consistency is None else f", consistency of the samples {validation.consistency:.3f}"
    return f"loss {validation.loss:.6f}{matching}"
