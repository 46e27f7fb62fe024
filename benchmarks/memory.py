"""Compare the memory estimate with the measured peak memory of several training configurations.

    python benchmarks/memory.py

Each configuration runs in its own process. On a CPU, the measured value is the peak resident set of the process minus
that before a model is loaded (Python and its libraries); on CUDA it is what torch allocates. The script makes glibc
return freed memory at once; by default, glibc keeps an amount that differs from run to run.
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

from retipair.config import BenchConfig
from retipair.models.memory_strategies import TRAINING_STRATEGIES
from retipair.runtime.console import quiet
from retipair.runtime.distributed import SINGLE_PROCESS
from retipair.runtime.profiling import GIB, peak_memory
from retipair.training.description import describe_adapter
from retipair.training.plan import Data, Plan
from retipair.training.step import build_training, training_step
from retipair.training.validation import write_samples
from retipair.trials.bench import planned

RETURN_FREED = {"MALLOC_MMAP_THRESHOLD_": "65536", "MALLOC_TRIM_THRESHOLD_": "65536"}


@dataclass(frozen=True)
class Case:
    """A training configuration. strategy: its index in TRAINING_STRATEGIES."""

    base: str
    size: int
    batch_size: int
    precision: str
    strategy: int

    def __str__(self) -> str:
        name = TRAINING_STRATEGIES[self.strategy].name
        return f"{self.base}, size {self.size}, batch {self.batch_size}, {self.precision}, {name}"


CASES = (
    Case("random:sd15", 512, 1, "fp32", 1),
    Case("random:sd15", 256, 4, "bf16", 0),
    Case("random:tiny-sdxl", 256, 64, "fp32", 0),
    Case("random:sd15", 256, 4, "bf16", 2),
)
ON_GPU = tuple(Case("random:sdxl", 512, 1, "bf16", index) for index in range(len(TRAINING_STRATEGIES)))
SMALL = (Case("random:tiny-sd15", 128, 2, "fp32", 0), Case("random:tiny-sdxl", 128, 2, "fp32", 2))
FITTED = (
    Case("random:sd15", 256, 1, "fp32", 0),
    Case("random:sd15", 256, 1, "fp32", 1),
    Case("random:tiny-sdxl", 256, 16, "fp32", 0),
    Case("random:tiny-sdxl", 256, 16, "fp32", 1),
)
"""The configurations to which WORKSPACE in retipair/models/peak_memory.py was fitted."""


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--small", action="store_true", help="use tiny bases, to test this script")
    parser.add_argument("--fitted", action="store_true", help="use the configurations to which the estimate was fitted")
    parser.add_argument("--one", help=argparse.SUPPRESS)  # used by the script itself, for each process
    args = parser.parse_args(arguments)
    if args.one:
        print(json.dumps(dict(phases(Case(**json.loads(args.one))))))
        return
    print("| Configuration | phase | estimated, GiB | measured, GiB | ratio |\n|---|---|---|---|---|", flush=True)
    default = ON_GPU if torch.cuda.is_available() else CASES
    for case in SMALL if args.small else FITTED if args.fitted else default:
        command = [sys.executable, __file__, "--one", json.dumps(vars(case))]
        done = subprocess.run(command, capture_output=True, text=True, env={**os.environ, **RETURN_FREED})
        if done.returncode:  # out of memory, or bitsandbytes is not installed
            print(f"| {case} | {done.stderr.splitlines()[-1]} | | | |", flush=True)
            continue
        for phase, (estimate, peak) in json.loads(done.stdout).items():
            print(f"| {case} | {phase} | {estimate:.2f} | {peak:.2f} | {estimate / peak:.2f} |", flush=True)


def phases(case: Case) -> Iterator[tuple[str, tuple[float, float]]]:
    """Yield (phase, (estimated, measured) GiB), and last the peak over all phases."""
    with TemporaryDirectory() as folder, quiet():
        config = BenchConfig(what="train", base=case.base, size=case.size, batch_size=case.batch_size)
        plan, data = planned(replace(config, precision=case.precision), Path(folder))
        plan = replace(plan, strategy=TRAINING_STRATEGIES[case.strategy])
        estimates = {phase: needed / GIB for phase, needed in plan.memory(plan.strategy).items()}
        yield from compared(measured(plan, data), estimates)


def compared(peaks: dict[str, float], estimates: dict[str, float]) -> Iterator[tuple[str, tuple[float, float]]]:
    estimates["set up"] = max(estimates.pop(phase) for phase in ("text", "pairs", "load"))
    yield from ((phase, (estimates[phase], gib)) for phase, gib in peaks.items())
    yield "peak", (max(estimates.values()), max(peaks.values()))


def measured(plan: Plan, data: Data) -> dict[str, float]:
    """Return the peak of each phase in GiB, minus the memory before a model was loaded."""
    with peak_memory(plan.device) as peak:
        training = build_training(plan, data, SINGLE_PROCESS)
    floor, peaks = peak.baseline, {"set up": peak.gib - peak.baseline}
    with peak_memory(plan.device) as peak:
        training_step(training)
        training_step(training)
    peaks["step"] = peak.gib - floor
    config = replace(plan.config, num_samples=1, sample_steps=2)
    with peak_memory(plan.device) as peak, torch.no_grad():
        state = training.optimizer.state()
        write_samples(
            plan.folder, replace(plan, config=config), describe_adapter(plan, data), replace(training, config=config)
        )
    assert state  # kept in memory while samples are written, as in training
    return peaks | {"samples": peak.gib - floor}


if __name__ == "__main__":
    main()
