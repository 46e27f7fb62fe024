"""What it costs a training step to look for NaN and infinity: the same step with and without, in turns.

    python benchmarks/checks.py --base tiny-sdxl --repeats 60

Without: the gradient's norm is still clipped, but it is not checked, skipped steps are not counted, and a loss of NaN
or infinity is summed like others. Prints a Markdown table; the true median lies in
the interval with 95 % (order statistics, Conover 1999, sec. 3.2).
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

from retipair.benchmarking.bench import planned
from retipair.config import BenchConfig
from retipair.diffusion.losses import Losses
from retipair.runtime.console import quiet
from retipair.runtime.distributed import SINGLE_PROCESS
from retipair.runtime.profiling import time_interleaved
from retipair.training.meters import LossMeter
from retipair.training.nonfinite import NonFiniteCounter
from retipair.training.optimizer import LoraOptimizer
from retipair.training.step import Training, build_training, training_step


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
        took = time_interleaved(works, plan.device, args.repeats, 3)
    more = [1000 * (one - other) for one, other in zip(took["checked"], took["unchecked"], strict=True)]
    low, high = interval(more)
    step = 1000 * median(took["unchecked"])
    print("| a step of | without, ms | with: more ms (95 %) | more % (95 %) |\n|---|---|---|---|")
    share = [f"{100 * value / step:+.2f}" for value in (median(more), low, high)]
    print(
        f"| {args.base}, {args.batch_size} a step | {step:.1f} | {median(more):+.2f} ({low:+.2f} to {high:+.2f}) "
        f"| {share[0]} ({share[1]} to {share[2]}) |"
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
    with (
        patch.object(LoraOptimizer, "step", step),
        patch.object(NonFiniteCounter, "add", leave),
        patch.object(LossMeter, "add", add),
    ):
        yield


def step(optimizer: LoraOptimizer) -> torch.Tensor | None:
    """As `LoraOptimizer.step`, but for the NaN check."""
    for group in optimizer._optimizer.param_groups:
        group["lr"] = optimizer.learning_rate
    if optimizer.config.max_grad_norm > 0:
        torch.nn.utils.clip_grad_norm_(optimizer.parameters.values(), optimizer.config.max_grad_norm)
    optimizer._optimizer.step()
    optimizer._optimizer.zero_grad(set_to_none=True)
    optimizer.step_count += 1
    return None


def leave(lost: NonFiniteCounter, finite: torch.Tensor, step: int) -> None:
    pass


def add(meter: LossMeter, losses: Losses, t: torch.Tensor) -> None:
    """As `LossMeter.add`, but for the NaN check."""
    singles = torch.stack([losses.total.detach() * len(t), t.float().sum()])
    count = torch.full((1,), len(t), device=t.device)
    halves = torch.cat([*losses.values.values(), *losses.counts.values()], dim=1)
    meter.sums += torch.cat([singles, count, halves.sum(0)])


def interval(values: Sequence[float], confidence: float = 0.95) -> tuple[float, float]:
    """The order statistics between which the median lies."""
    count, low = len(values), int(binom.ppf((1 - confidence) / 2, len(values), 0.5))
    ordered = sorted(values)
    return ordered[max(low - 1, 0)], ordered[min(count - low, count - 1)]


if __name__ == "__main__":
    main()
