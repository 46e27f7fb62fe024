"""What stands before the work: how long `--help` takes, and a tiny training until its first step is done.

    python benchmarks/starting.py

Each is a process of its own, in turns with one that only imports torch, diffusers and peft. Prints a Markdown table of
medians; "beyond" is the median of what a round's command took longer than the import beside it.
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
    with TemporaryDirectory() as name:
        folder, turns = Path(name), count()
        call([*retipair("phantom"), str(folder / "eyes"), "--amount", "6", "--size", str(SIZE)])
        works: dict[str, Callable[[], float]] = {
            "importing torch, diffusers and peft": lambda: call([sys.executable, "-c", IMPORTS]),
            "retipair --help": lambda: call(retipair("--help")),
            "retipair train, until the first step": lambda: first_step(folder, f"run{next(turns)}"),
        }
        rounds = [{what: work() for what, work in works.items()} for _ in range(args.repeats + 1)][1:]
    alone = next(iter(works))
    print("| what | seconds | beyond |\n|---|---|---|")
    for what in works:
        beyond = median(one[what] - one[alone] for one in rounds)
        print(f"| {what} | {median(one[what] for one in rounds):.2f} | {beyond:+.2f} |")


def retipair(*words: str) -> list[str]:
    return [sys.executable, "-m", "retipair", *words]


def call(words: Sequence[str]) -> float:
    """Seconds that a command takes."""
    began = time.monotonic()
    subprocess.run(words, check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    return time.monotonic() - began


def first_step(folder: Path, run: str) -> float:
    """Seconds until the log has the line of the first step."""
    size = [
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
    began = time.monotonic()
    words = retipair("train", "-n", run, *size, *steps)
    training = subprocess.Popen(words, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    while not (log.is_file() and log.stat().st_size):
        if training.poll() is not None:
            sys.exit(f"failed: {' '.join(words)}")
        time.sleep(0.01)
    took = time.monotonic() - began
    training.wait()
    return took


if __name__ == "__main__":
    main()
