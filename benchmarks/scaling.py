"""Measure how the time of a step depends on batch size and latent area, and other times on the number of pairs.

    python benchmarks/scaling.py --base tiny-sdxl

Prints Markdown tables. The measurements of a table alternate, so that a change in the machine's speed affects all of
them. Each table has a linear least-squares fit of the medians, with its R2.
"""

import argparse
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial
from itertools import count
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory

import numpy as np

from retipair.config import BenchConfig, PhantomConfig
from retipair.data.dataset import read_dataset
from retipair.evaluation.measurements import measure_set
from retipair.models.device import choose_device
from retipair.phantoms.phantom import phantom
from retipair.runtime.console import quiet
from retipair.runtime.distributed import SINGLE_PROCESS
from retipair.runtime.profiling import Function, time_interleaved
from retipair.training.batches import make_batches
from retipair.training.step import build_training, training_step
from retipair.trials.bench import planned

BATCHES = (1, 2, 4, 8)
SIDES = (0.5, 0.75, 1.0, 1.25)
"""Sides of a view, relative to the native size of the base."""
PAIRS = (4, 8, 16)


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--base", default="tiny-sdxl")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--pairs", type=int, nargs="+", default=PAIRS)
    parser.add_argument("--batches", type=int, nargs="+", default=BATCHES)
    args = parser.parse_args(arguments)
    with TemporaryDirectory() as folder:
        steps(args.base, args.batches, args.repeats, Path(folder))
        pairs(args.base, args.pairs, args.repeats, Path(folder))


# A step


def steps(base: str, batches: Sequence[int], repeats: int, folder: Path) -> None:
    config = BenchConfig(what="train", base=base)
    plan, _ = planned(config, folder / "native")
    sizes = [round(share * plan.layout.view_size / 64) * 64 for share in SIDES]
    by_batch = {n: step(replace(config, batch_size=n), folder / f"batch{n}") for n in batches}
    print_table("Step time by batch size", "pairs", by_batch, repeats, 1)
    by_area = {}
    for size in sizes:
        work = step(replace(config, size=size), folder / f"size{size}")
        _, height, width = replace(plan, layout=replace(plan.layout, view_size=size)).latent_shape
        by_area[height * width] = work
    print_table("Step time by latent area", "latent pixels", by_area, repeats, 1)


def step(config: BenchConfig, folder: Path) -> Function:
    return partial(training_step, build_training(*planned(config, folder), SINGLE_PROCESS))


# Pairs


def pairs(base: str, amounts: Sequence[int], repeats: int, folder: Path) -> None:
    for title, works in {
        "Preparation": preparations(amounts, folder / "prepare"),
        "Encoding": encodings(base, amounts, folder / "encode"),
        "Evaluation": evaluations(amounts, folder / "evaluate"),
    }.items():
        print_table(f"{title} time by number of pairs", "pairs", works, max(repeats // 2, 1), 1)


def rendered(folder: Path, amount: int, **more: object) -> Path:
    with quiet():
        return phantom(PhantomConfig(out=folder, amount=amount, seed=1, **more))  # type: ignore[arg-type]


def preparations(amounts: Sequence[int], folder: Path) -> dict[int, Function]:
    numbers = count()

    def work(raw: Path) -> None:  # in its own process, because workers import the main module again
        command = ["retipair", "prepare", raw, folder / f"out{next(numbers)}"]
        subprocess.run([sys.executable, "-m", *map(str, command)], check=True, capture_output=True)

    return {n: partial(work, rendered(folder / str(n), n, unregistered=True) / "raw") for n in amounts}


def encodings(base: str, amounts: Sequence[int], folder: Path) -> dict[int, Function]:
    numbers, works = count(), {}

    def work(plan, data) -> None:  # type: ignore[no-untyped-def]
        results = folder / f"results{next(numbers)}"  # a new folder, without cached latents
        make_batches(replace(plan, config=replace(plan.config, results=results)), data)

    for n in amounts:
        plan, data = planned(BenchConfig(what="train", base=base), folder / str(n), eyes=n)
        works[n] = partial(work, plan, data)
    return works


def evaluations(amounts: Sequence[int], folder: Path) -> dict[int, Function]:
    numbers = count()

    def work(prepared: Path) -> None:
        measure_set("pairs", read_dataset(prepared), folder / f"cache{next(numbers)}")

    return {n: partial(work, rendered(folder / str(n), n)) for n in amounts}


# Tables


def print_table(title: str, unit: str, works: Mapping[int, Function], repeats: int, warmup: int) -> None:
    """Measure alternately, and print the medians and their linear fit."""
    with quiet():
        times = time_interleaved(works, choose_device("auto"), repeats, warmup)
    sizes, seconds = np.array(list(times), dtype=float), np.array([median(each) for each in times.values()])
    slope, intercept = np.polyfit(sizes, seconds, 1)
    residuals = seconds - (intercept + slope * sizes)
    r_squared = 1 - (residuals**2).sum() / max(((seconds - seconds.mean()) ** 2).sum(), 1e-12)
    print(f"\n### {title}\n\n| {unit} | seconds | linear fit |\n|---|---|---|")
    for size, second in zip(sizes, seconds, strict=True):
        print(f"| {size:.0f} | {second:.3f} | {intercept + slope * size:.3f} |")
    print(f"\n{intercept:.3f} s + {slope:.3g} s x {unit}; R2 {r_squared:.4f}", flush=True)


if __name__ == "__main__":
    main()
