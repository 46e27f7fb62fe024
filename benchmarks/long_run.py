"""Does a long run stay as it is? Memory, open files and threads of one training for hours, then of one long drawing.

    python benchmarks/long_run.py --hours 2 --pairs 2000        (`make long`)

Trains a small random base, with validation, samples and a checkpoint every hundred steps, until the time is over; then
it is told to stop, as a cluster would tell it. Draws pairs from what was learnt. Each command is a process of its own,
looked at every second. Prints a Markdown table: the median of each tenth of its time, the first one (in which libraries
load and memory fills) left out. Fails when memory has grown by more than 5 % from the second tenth to the last, or open
files or threads by any.
"""

import argparse
import os
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory
from typing import NamedTuple

import psutil

BASE, SIZE = "random:tiny-sd15", 64
TENTHS = 10
MOST_GROWN = 0.05
TOGETHER = {"MALLOC_ARENA_MAX": "1"}
"""glibc keeps what each thread frees apart, some percent more or less by luck: here it keeps it together."""


class Look(NamedTuple):
    mib: float
    files: int
    threads: int


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--hours", type=float, default=2.0)
    parser.add_argument("--pairs", type=int, default=2000)
    parser.add_argument("--every", type=float, default=1.0, help="seconds between two looks")
    args = parser.parse_args(arguments)
    with TemporaryDirectory() as name:
        folder = Path(name)
        common = ["-n", "long", "--results", folder, "--device", "cpu"]
        small = ["--base", BASE, "--size", SIZE, "--augment_variants", 2, "--num_samples", 2, "--sample_steps", 2]
        steps = ["--max_steps", 100_000_000, "--val_every", 100, "--log_every", 20]
        watch(["phantom", folder / "eyes", "--amount", 20, "--size", SIZE], args.every)
        trained = watch(["train", *common, *small, *steps, "--data", folder / "eyes"], args.every, args.hours * 3600)
        drawn = watch(
            ["generate", *common, "--steps", 1, "--amount", args.pairs, "--out", folder / "drawn"], args.every
        )
        told = [tell("train", trained, f"{args.hours:g} h"), tell("generate", drawn, f"{args.pairs} pairs")]
    if not all(told):
        sys.exit("not flat")


def watch(arguments: list[object], every: float, seconds: float | None = None) -> list[Look]:
    """Run a command to its end, or until so many seconds are over; what was seen of it meanwhile."""
    words, looks, began = [sys.executable, "-m", "retipair", *map(str, arguments)], [], time.monotonic()
    with subprocess.Popen(words, stdout=subprocess.DEVNULL, env=os.environ | TOGETHER) as running:
        process, stopped = psutil.Process(running.pid), False
        while running.poll() is None:
            if seconds is not None and not stopped and time.monotonic() - began > seconds:
                running.send_signal(signal.SIGTERM)
                stopped = True
            try:
                looks.append(Look(process.memory_info().rss / 2**20, process.num_fds(), process.num_threads()))
            except psutil.Error:
                break
            time.sleep(every)
    if running.returncode != (128 + signal.SIGTERM if stopped else 0):
        sys.exit(f"ended with {running.returncode}: {' '.join(words)}")
    return looks


def tell(command: str, looks: list[Look], amount: str) -> bool:
    """Print its tenths; returns whether it was flat."""
    cuts = [len(looks) * tenth // TENTHS for tenth in range(TENTHS + 1)]
    parts = [looks[begin:end] for begin, end in pairwise(cuts)]
    tenths = [Look(*(median(values) for values in zip(*part, strict=True))) for part in parts if part]
    print(f"| {command}, {amount} | MiB | open files | threads |\n|---|---|---|---|")
    for number, look in enumerate(tenths[1:], start=2):
        print(f"| tenth {number} | {look.mib:.1f} | {look.files:g} | {look.threads:g} |")
    first, last = tenths[1], tenths[-1]
    grown = last.mib / first.mib - 1
    print(f"\n{command}: memory {grown:+.1%}, {len(looks)} looks\n", flush=True)
    return grown <= MOST_GROWN and last.files <= first.files and last.threads <= first.threads


if __name__ == "__main__":
    main()
