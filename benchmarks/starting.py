"""Measure the startup time of `--help`, and of a tiny training until its first step is logged.

    python benchmarks/starting.py

Each command runs in its own process, and alternates with one that only imports torch, diffusers and peft. Prints a
Markdown table of medians; "seconds without the import" is the median difference to the import in the same round.
"""

import argparse
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from itertools import count
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory

IMPORTS = (
    "import peft, torch\n"
    "from diffusers import AutoencoderKL, DDPMScheduler, StableDiffusionXLPipeline, UNet2DConditionModel"
)
SIZE = 64


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=5)
    args = parser.parse_args(arguments)
    with TemporaryDirectory() as directory:
        folder, numbers = Path(directory), count()
        call([*retipair("phantom"), str(folder / "eyes"), "--amount", "6", "--size", str(SIZE)])
        works: dict[str, Callable[[], float]] = {
            "importing torch, diffusers and peft": lambda: call([sys.executable, "-c", IMPORTS]),
            "`retipair --help`": lambda: call(retipair("--help")),
            "`retipair train` with a small base, until the first logged step": lambda: first_step(
                folder, f"run{next(numbers)}"
            ),
        }
        rounds = [{name: work() for name, work in works.items()} for _ in range(args.repeats + 1)][1:]
    imports = next(iter(works))
    print("| Time of | seconds | seconds without the import |\n|---|---|---|")
    for name in works:
        difference = median(seconds[name] - seconds[imports] for seconds in rounds)
        print(f"| {name} | {median(seconds[name] for seconds in rounds):.2f} | {difference:+.2f} |")


def retipair(*arguments: str) -> list[str]:
    return [sys.executable, "-m", "retipair", *arguments]


def call(command: Sequence[str]) -> float:
    """Run a command and return the seconds that it takes."""
    started = time.monotonic()
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    return time.monotonic() - started


def first_step(folder: Path, run: str) -> float:
    """Start a training and return the seconds until the log contains its first step."""
    flags = [
        "--data",
        str(folder / "eyes"),
        "--base",
        "random:tiny-sdxl",
        "--size",
        str(SIZE),
        "--augment_variants",
        "1",
    ]
    steps = ["--max_steps", "1", "--log_every", "1", "--num_samples", "0", "--device", "cpu", "--results", str(folder)]
    log = folder / "out_joint_sdxl_cffa_pairs" / run / "training_log.txt"
    started = time.monotonic()
    command = retipair("train", "-n", run, *flags, *steps)
    training = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    while not (log.is_file() and log.stat().st_size):
        if training.poll() is not None:
            sys.exit(f"failed: {' '.join(command)}")
        time.sleep(0.01)
    seconds = time.monotonic() - started
    training.wait()
    return seconds


if __name__ == "__main__":
    main()
