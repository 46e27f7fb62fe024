"""Is the estimate of memory true? The most that each configuration takes, beside what was estimated.

    python benchmarks/memory.py

Each runs in a process of its own. On the CPU the truth is the most that the process held (its resident set) less what
it held just before a model was loaded, Python and libraries; on CUDA what torch allocated. glibc is told to give freed
memory back at once: what it would keep for later is no need of ours, and differs from run to run.
"""

import argparse
import json
import os
import subprocess
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from tempfile import TemporaryDirectory

import torch

from retipair.benchmarking.bench import planned
from retipair.config import BenchConfig
from retipair.models.memory_strategies import TRAINING_STRATEGIES
from retipair.runtime.console import quiet
from retipair.runtime.distributed import SINGLE_PROCESS
from retipair.runtime.profiling import GIB, peak_memory
from retipair.training.plan import Data, Plan, describe_adapter
from retipair.training.step import build_training, training_step
from retipair.training.validation import write_samples

GIVE_BACK = {"MALLOC_MMAP_THRESHOLD_": "65536", "MALLOC_TRIM_THRESHOLD_": "65536"}


@dataclass(frozen=True)
class Case:
    """A training. way: its place in the table of ways to save memory."""

    base: str
    size: int
    batch_size: int
    precision: str
    way: int

    def __str__(self) -> str:
        strategy = TRAINING_STRATEGIES[self.way].name
        return f"{self.base}, size {self.size}, batch {self.batch_size}, {self.precision}, {strategy}"


CASES = (
    Case("random:sd15", 512, 1, "fp32", 1),
    Case("random:sd15", 256, 4, "bf16", 0),
    Case("random:tiny-sdxl", 256, 64, "fp32", 0),
    Case("random:sd15", 256, 4, "bf16", 2),
)
ON_GPU = tuple(Case("random:sdxl", 512, 1, "bf16", way) for way in range(len(TRAINING_STRATEGIES)))
SMALL = (Case("random:tiny-sd15", 128, 2, "fp32", 0), Case("random:tiny-sdxl", 128, 2, "fp32", 2))
FITTED = (
    Case("random:sd15", 256, 1, "fp32", 0),
    Case("random:sd15", 256, 1, "fp32", 1),
    Case("random:tiny-sdxl", 256, 16, "fp32", 0),
    Case("random:tiny-sdxl", 256, 16, "fp32", 1),
)
"""What WORKSPACE in retipair/models/peak_memory.py was fitted to."""


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--small", action="store_true", help="tiny bases: does it run?")
    parser.add_argument("--fitted", action="store_true", help="the configurations that the estimate was fitted to")
    parser.add_argument("--one", help=argparse.SUPPRESS)  # how it calls itself
    args = parser.parse_args(arguments)
    if args.one:
        print(json.dumps(dict(phases(Case(**json.loads(args.one))))))
        return
    print("| Configuration | phase | estimated, GiB | measured, GiB | ratio |\n|---|---|---|---|---|", flush=True)
    usual = ON_GPU if torch.cuda.is_available() else CASES
    for case in SMALL if args.small else FITTED if args.fitted else usual:
        command = [sys.executable, __file__, "--one", json.dumps(vars(case))]
        done = subprocess.run(command, capture_output=True, text=True, env={**os.environ, **GIVE_BACK})
        if done.returncode:  # too large for this machine, or nf4's library is not there
            print(f"| {case} | {done.stderr.splitlines()[-1]} | | | |", flush=True)
            continue
        for phase, (told, took) in json.loads(done.stdout).items():
            print(f"| {case} | {phase} | {told:.2f} | {took:.2f} | {told / took:.2f} |", flush=True)


def phases(case: Case) -> Iterator[tuple[str, tuple[float, float]]]:
    """Phase -> (estimated, measured) GiB; last of all the most of any."""
    with TemporaryDirectory() as folder, quiet():
        config = BenchConfig(what="train", base=case.base, size=case.size, batch_size=case.batch_size)
        plan, data = planned(replace(config, precision=case.precision), Path(folder))
        plan = replace(plan, strategy=TRAINING_STRATEGIES[case.way])
        told = {phase: needed / GIB for phase, needed in plan.memory(plan.strategy).items()}
        yield from with_most(measured(plan, data), told)


def with_most(took: dict[str, float], told: dict[str, float]) -> Iterator[tuple[str, tuple[float, float]]]:
    told["set up"] = max(told.pop(phase) for phase in ("text", "pairs", "load"))
    yield from ((phase, (told[phase], gib)) for phase, gib in took.items())
    yield "the most", (max(told.values()), max(took.values()))


def measured(plan: Plan, data: Data) -> dict[str, float]:
    """Phase -> GiB, above what there was before a model was loaded."""
    with peak_memory(plan.device) as peak:
        training = build_training(plan, data, SINGLE_PROCESS)
    floor, took = peak.floor, {"set up": peak.gib - peak.floor}
    with peak_memory(plan.device) as peak:
        training_step(training)
        training_step(training)
    took["step"] = peak.gib - floor
    config = replace(plan.config, num_samples=1, sample_steps=2)
    with peak_memory(plan.device) as peak, torch.no_grad():
        state = training.optimizer.state()
        write_samples(
            plan.folder, replace(plan, config=config), describe_adapter(plan, data), replace(training, config=config)
        )
    assert state
    return took | {"samples": peak.gib - floor}


if __name__ == "__main__":
    main()
