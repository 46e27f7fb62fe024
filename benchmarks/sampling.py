"""Measure what the sampler, its steps and cross-view guidance do to generated pairs.

    retipair demo demo
    retipair phantom eyes --amount 64 --size 512 --camera teal --disease vein_occlusion --unregistered --seed 1000
    retipair prepare eyes/raw held_out --size 256
    python benchmarks/sampling.py --results demo/results --real held_out --amount 24 --samplers ddpm:25

Prints a Markdown table of agreement, distance from real pairs, fine detail and time. All rows use the same random
numbers; `held_out` has eyes that the adapter was not trained on.
"""

import argparse
import time
from collections.abc import Iterator, Sequence
from itertools import pairwise, product
from pathlib import Path
from statistics import mean

import numpy as np

from retipair import PairGenerator, load_pairs
from retipair.data.pair import Pair
from retipair.metrics.distribution import mmd2
from retipair.metrics.pair_metrics import PairMetrics, compute_cross_metrics, compute_pair_metrics
from retipair.metrics.views import PairViews, prepare_views
from retipair.models.device import one_thread
from retipair.runs.run_dir import find_run

COLUMNS = (
    "sampler",
    "steps",
    "scale",
    "from",
    "s per pair",
    "correlation",
    "Dice",
    "clDice",
    "mispaired",
    "squared MMD",
    "fine CF",
    "fine FA",
)


def measured(pairs: Sequence[Pair]) -> tuple[list[PairViews], list[PairMetrics]]:
    """Return the views, prepared for the metrics, and the metrics of each pair."""
    views = [prepare_views(pair) for pair in pairs]
    return views, [compute_pair_metrics(view) for view in views]


def row(pairs: Sequence[Pair], reference: np.ndarray) -> Iterator[float]:
    """Yield the scores of one row."""
    views, metrics = measured(pairs)

    def average(name: str) -> float:
        return mean(float(pair.values[name]) for pair in metrics)

    yield from (average(f"consistency.{name}") for name in ("correlation", "dice", "cl_dice"))
    others = pairwise([*views, views[0]])
    yield mean(compute_cross_metrics(cf, fa).mispaired.correlation for cf, fa in others)
    yield mmd2(np.stack([pair.features for pair in metrics]), reference, reference)
    yield from (average(f"{view}.texture.fine_share") for view in ("cf", "fa"))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--results", type=Path, required=True, help="the --results folder of the run")
    parser.add_argument("--name", default="demo", help="the name of the run")
    parser.add_argument("--system", default="sdxl")
    parser.add_argument("--real", type=Path, required=True, help="prepared pairs that the adapter was not trained on")
    parser.add_argument("--amount", type=int, default=24)
    parser.add_argument("--samplers", nargs="+", default=["ddpm:25"], metavar="SAMPLER:STEPS")
    parser.add_argument("--guidance", nargs="+", default=["1", "8:0.35", "12:0.35", "12:0.5"], help="SCALE or SCALE:FROM")
    arguments = parser.parse_args()

    run = find_run(arguments.results, arguments.name, [arguments.system])
    print("| " + " | ".join(COLUMNS) + " |\n" + "|---" * len(COLUMNS) + "|")
    with one_thread():
        _, real = measured(list(load_pairs(arguments.real)))
        reference = np.stack([pair.features for pair in real])
        for sampler, setting in product(arguments.samplers, arguments.guidance):
            (name, steps), (scale, _, start) = sampler.split(":"), setting.partition(":")
            guidance = {"pair_guidance": float(scale)} | ({"pair_guidance_from": float(start)} if start else {})
            generator = PairGenerator.from_pretrained(run, sampler=name, steps=int(steps), **guidance)
            began = time.monotonic()
            pairs = list(generator.sample(arguments.amount))
            seconds = (time.monotonic() - began) / arguments.amount
            cells = [name, steps, scale, start, f"{seconds:.2f}"]
            cells += [f"{number:.3f}" for number in row(pairs, reference)]
            print("| " + " | ".join(cells) + " |", flush=True)


if __name__ == "__main__":
    main()
