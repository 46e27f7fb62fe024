"""Check that memory, open files and threads do not grow during hours of training, and during a long generation.

    python benchmarks/long_run.py --hours 2 --pairs 2000        (`make long`)

Trains a small random base, with validation, samples and a checkpoint every hundred steps, for the given time, and stops
it with SIGTERM, as a cluster does. Then generates pairs with the adapter. Each command runs in its own process, which
is sampled every second. Prints a Markdown table with the median of each tenth of the time, except the first, in which
libraries load and memory fills. Fails if from the second tenth to the last memory grows by more than 5 %, or the number
of open files or threads grows.
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
MAX_GROWTH = 0.05
SINGLE_ARENA = {"MALLOC_ARENA_MAX": "1"}
"""Makes glibc use a single arena; with several, the values vary by some percent from run to run."""


class Reading(NamedTuple):
    """Resources of a process at one time."""

    mib: float
    files: int
    threads: int


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--hours", type=float, default=2.0)
    parser.add_argument("--pairs", type=int, default=2000)
    parser.add_argument("--every", type=float, default=1.0, help="seconds between two readings")
    args = parser.parse_args(arguments)
    with TemporaryDirectory() as name:
        folder = Path(name)
        common = ["-n", "long", "--results", folder, "--device", "cpu"]
        small = ["--base", BASE, "--size", SIZE, "--augment_variants", 2, "--num_samples", 2, "--sample_steps", 2]
        steps = ["--max_steps", 100_000_000, "--val_every", 100, "--log_every", 20]
        monitor(["phantom", folder / "eyes", "--amount", 20, "--size", SIZE], args.every)
        trained = monitor(["train", *common, *small, *steps, "--data", folder / "eyes"], args.every, args.hours * 3600)
        generated = monitor(
            ["generate", *common, "--steps", 1, "--amount", args.pairs, "--out", folder / "drawn"], args.every
        )
        constant = [
            print_table("train", trained, f"{args.hours:g} h"),
            print_table("generate", generated, f"{args.pairs} pairs"),
        ]
    if not all(constant):
        sys.exit("memory, open files or threads grow")


def monitor(arguments: list[object], every: float, seconds: float | None = None) -> list[Reading]:
    """Run a command to its end, or stop it after `seconds`; returns the readings."""
    command, readings, started = [sys.executable, "-m", "retipair", *map(str, arguments)], [], time.monotonic()
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, env=os.environ | SINGLE_ARENA) as running:
        process, stopped = psutil.Process(running.pid), False
        while running.poll() is None:
            if seconds is not None and not stopped and time.monotonic() - started > seconds:
                running.send_signal(signal.SIGTERM)
                stopped = True
            try:
                readings.append(Reading(process.memory_info().rss / 2**20, process.num_fds(), process.num_threads()))
            except psutil.Error:
                break
            time.sleep(every)
    if running.returncode != (128 + signal.SIGTERM if stopped else 0):
        sys.exit(f"ended with {running.returncode}: {' '.join(command)}")
    return readings


def print_table(command: str, readings: list[Reading], amount: str) -> bool:
    """Print the median of each tenth; returns whether nothing grew."""
    cuts = [len(readings) * tenth // TENTHS for tenth in range(TENTHS + 1)]
    parts = [readings[begin:end] for begin, end in pairwise(cuts)]
    tenths = [Reading(*(median(values) for values in zip(*part, strict=True))) for part in parts if part]
    print(f"| {command}, {amount} | MiB | open files | threads |\n|---|---|---|---|")
    for number, reading in enumerate(tenths[1:], start=2):
        print(f"| tenth {number} | {reading.mib:.1f} | {reading.files:g} | {reading.threads:g} |")
    first, last = tenths[1], tenths[-1]
    growth = last.mib / first.mib - 1
    print(f"\n{command}: memory {growth:+.1%}, {len(readings)} readings\n", flush=True)
    return growth <= MAX_GROWTH and last.files <= first.files and last.threads <= first.threads


if __name__ == "__main__":
    main()
