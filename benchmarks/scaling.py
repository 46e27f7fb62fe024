"""How time grows: a step with the batch and with the latents' area; preparing, encoding and judging with the pairs.

    python benchmarks/scaling.py --base tiny-sdxl

Prints Markdown tables. Everything that is compared takes turns in one run, so that a machine's moods strike all alike;
each line is a least-squares fit of the medians, and R2 says how much of their variance it explains.
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

from retipair.benchmarking.bench import planned
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

BATCHES = (1, 2, 4, 8)
SIDES = (0.5, 0.75, 1.0, 1.25)
"""Of a view, in units of the base's own size."""
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
    tell("A step against the batch", "pairs", by_batch, repeats, 1)
    by_area = {}
    for size in sizes:
        work = step(replace(config, size=size), folder / f"size{size}")
        _, height, width = replace(plan, layout=replace(plan.layout, view_size=size)).latent_shape
        by_area[height * width] = work
    tell("A step against the latents' area", "latent pixels", by_area, repeats, 1)


def step(config: BenchConfig, folder: Path) -> Function:
    return partial(training_step, build_training(*planned(config, folder), SINGLE_PROCESS))


# Pairs


def pairs(base: str, amounts: Sequence[int], repeats: int, folder: Path) -> None:
    for title, works in {
        "Preparing": preparing(amounts, folder / "prepare"),
        "Encoding": encoding(base, amounts, folder / "encode"),
        "Judging": judging(amounts, folder / "judge"),
    }.items():
        tell(f"{title} against the pairs", "pairs", works, max(repeats // 2, 1), 1)


def rendered(folder: Path, amount: int, **more: object) -> Path:
    with quiet():
        return phantom(PhantomConfig(out=folder, amount=amount, seed=1, **more))  # type: ignore[arg-type]


def preparing(amounts: Sequence[int], folder: Path) -> dict[int, Function]:
    turns = count()

    def work(raw: Path) -> None:  # as a command: its workers import what its main module does
        words = ["retipair", "prepare", raw, folder / f"out{next(turns)}"]
        subprocess.run([sys.executable, "-m", *map(str, words)], check=True, capture_output=True)

    return {n: partial(work, rendered(folder / str(n), n, unregistered=True) / "raw") for n in amounts}


def encoding(base: str, amounts: Sequence[int], folder: Path) -> dict[int, Function]:
    turns, works = count(), {}

    def work(plan, data) -> None:  # type: ignore[no-untyped-def]
        results = folder / f"results{next(turns)}"  # where nothing is encoded yet
        make_batches(replace(plan, config=replace(plan.config, results=results)), data)

    for n in amounts:
        plan, data = planned(BenchConfig(what="train", base=base), folder / str(n), eyes=n)
        works[n] = partial(work, plan, data)
    return works


def judging(amounts: Sequence[int], folder: Path) -> dict[int, Function]:
    turns = count()

    def work(prepared: Path) -> None:
        measure_set("pairs", read_dataset(prepared), folder / f"kept{next(turns)}")

    return {n: partial(work, rendered(folder / str(n), n)) for n in amounts}


# Tables


def tell(title: str, unit: str, works: Mapping[int, Function], repeats: int, warmup: int) -> None:
    """Time them in turns, and print a table of medians and the line through them."""
    with quiet():
        took = time_interleaved(works, choose_device("auto"), repeats, warmup)
    sizes, seconds = np.array(list(took), dtype=float), np.array([median(each) for each in took.values()])
    slope, start = np.polyfit(sizes, seconds, 1)
    left = seconds - (start + slope * sizes)
    explained = 1 - (left**2).sum() / max(((seconds - seconds.mean()) ** 2).sum(), 1e-12)
    print(f"\n### {title}\n\n| {unit} | seconds | of the line |\n|---|---|---|")
    for size, second in zip(sizes, seconds, strict=True):
        print(f"| {size:.0f} | {second:.3f} | {start + slope * size:.3f} |")
    print(f"\n{start:.3f} s + {slope:.3g} s for each of the {unit}; R2 {explained:.4f}", flush=True)


if __name__ == "__main__":
    main()
