"""Measure the cost of the NaN check in a training step: steps with and without it alternate.

    python benchmarks/checks.py --base tiny-sdxl --repeats 60

Without the check, the gradient's norm is still clipped, but it is not tested, steps are never skipped, and a NaN or
infinite loss is added to the sums of the log. Prints a Markdown table with 95 % confidence intervals of the median
(order statistics, Conover 1999, sec. 3.2).
"""

import argparse
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory
from unittest.mock import patch

import torch
from scipy.stats import binom

from retipair.config import BenchConfig
from retipair.diffusion.losses import Losses
from retipair.runtime.console import quiet
from retipair.runtime.distributed import SINGLE_PROCESS
from retipair.runtime.profiling import time_interleaved
from retipair.training.meters import LossMeter
from retipair.training.nonfinite import NonFiniteCounter
from retipair.training.optimizer import LoraOptimizer
from retipair.training.step import Training, build_training, training_step
from retipair.trials.bench import planned


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--base", default="tiny-sdxl")
    parser.add_argument("--batch_size", type=int, default=1)
    parser.add_argument("--repeats", type=int, default=60)
    args = parser.parse_args(arguments)
    config = BenchConfig(what="train", base=args.base, batch_size=args.batch_size)
    with TemporaryDirectory() as folder, quiet():
        plan, data = planned(config, Path(folder))
        training = build_training(plan, data, SINGLE_PROCESS)
        works = {"checked": partial(checked, training), "unchecked": partial(unchecked, training)}
        times = time_interleaved(works, plan.device, args.repeats, 3)
    pairs = zip(times["checked"], times["unchecked"], strict=True)
    differences = [1000 * (checked - unchecked) for checked, unchecked in pairs]
    low, high = interval(differences)
    step = 1000 * median(times["unchecked"])
    print("| base | without, ms | difference, ms (95 %) | difference, % (95 %) |\n|---|---|---|---|")
    percent = [f"{100 * value / step:+.2f}" for value in (median(differences), low, high)]
    print(
        f"| {args.base}, batch size {args.batch_size} | {step:.1f} "
        f"| {median(differences):+.2f} ({low:+.2f} to {high:+.2f}) | {percent[0]} ({percent[1]} to {percent[2]}) |"
    )


def checked(training: Training) -> None:
    training_step(training)
    if training.nonfinite.sync_is_free:
        training.nonfinite.read()


def unchecked(training: Training) -> None:
    with without_checks():
        training_step(training)


@contextmanager
def without_checks() -> Iterator[None]:
    """Replace the methods that contain the check."""
    with (
        patch.object(LoraOptimizer, "step", step),
        patch.object(NonFiniteCounter, "add", do_nothing),
        patch.object(LossMeter, "add", add),
    ):
        yield


def step(optimizer: LoraOptimizer) -> torch.Tensor | None:
    """Do the same as `LoraOptimizer.step`, without the NaN check."""
    for group in optimizer._optimizer.param_groups:
        group["lr"] = optimizer.learning_rate
    if optimizer.config.max_grad_norm > 0:
        torch.nn.utils.clip_grad_norm_(optimizer.parameters.values(), optimizer.config.max_grad_norm)
    optimizer._optimizer.step()
    optimizer._optimizer.zero_grad(set_to_none=True)
    optimizer.step_count += 1
    return None


def do_nothing(counter: NonFiniteCounter, finite: torch.Tensor, step: int) -> None:
    pass


def add(meter: LossMeter, losses: Losses, t: torch.Tensor) -> None:
    """Do the same as `LossMeter.add`, without the NaN check."""
    scalars = torch.stack([losses.total.detach() * len(t), t.float().sum()])
    count = torch.full((1,), len(t), device=t.device)
    halves = torch.cat([*losses.values.values(), *losses.counts.values()], dim=1)
    meter.sums += torch.cat([scalars, count, halves.sum(0)])


def interval(values: Sequence[float], confidence: float = 0.95) -> tuple[float, float]:
    """Return the confidence interval of the median, from order statistics."""
    count, low = len(values), int(binom.ppf((1 - confidence) / 2, len(values), 0.5))
    ordered = sorted(values)
    return ordered[max(low - 1, 0)], ordered[min(count - low, count - 1)]


if __name__ == "__main__":
    main()
