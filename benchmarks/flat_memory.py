"""Measure how the peak memory of commands depends on the number of pairs. Each command runs in its own process.

    python benchmarks/flat_memory.py --amounts 100 1000 10000

`generate` generates each amount of pairs with a small random base, in one denoising step. `train` trains one step on a
manifest of real pairs, `evaluate` evaluates a manifest of generated pairs, and `export` exports a manifest of real
pairs in two processes. Each manifest has as many lines as the amount. The first amount is the number of different
pairs; longer manifests repeat them. Prints a Markdown table; the memory is that of all processes of the command, and
"increase" is relative to the first amount. glibc uses a single arena: with several, the values vary by 8 % from run to
run.
"""

import argparse
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory

import psutil
from msgspec.structs import replace

from retipair.data.manifest import GeneratedPair, PreparedPair, read_manifest, write_manifest

BASE, SIZE = "random:tiny-sd15", 64
SINGLE_ARENA = {"MALLOC_ARENA_MAX": "1"}


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--amounts", type=int, nargs="+", default=[100, 1000, 10_000])
    parser.add_argument("--commands", nargs="+", choices=COMMANDS, default=[*COMMANDS])
    args = parser.parse_args(arguments)
    with TemporaryDirectory() as name:
        folder, few = Path(name), args.amounts[0]
        retipair("phantom", folder / "eyes", "--amount", few, "--size", SIZE)
        retipair("train", "-n", "first", "--data", folder / "eyes", *one_step(folder))
        retipair(*generate(folder, few), "--out", folder / "few")
        print("| command | pairs | MiB | increase | seconds |\n|---|---|---|---|---|", flush=True)
        for command in args.commands:
            first = 0.0
            for amount in args.amounts:
                peak, seconds = retipair(*COMMANDS[command](folder, amount))
                first = first or peak
                print(f"| {command} | {amount} | {peak:.0f} | {peak / first - 1:+.1%} | {seconds:.0f} |", flush=True)


def one_step(folder: Path) -> list[object]:
    """Return the flags of a training of one step."""
    steps = ["--max_steps", 1, "--num_samples", 0, "--augment_variants", 1]
    return ["--base", BASE, "--size", SIZE, "--results", folder, "--device", "cpu", *steps]


def generate(folder: Path, amount: int) -> list[object]:
    settings = ["-n", "first", "--results", folder, "--steps", 1, "--device", "cpu", "--savedir", f"of{amount}"]
    return ["generate", *settings, "--amount", amount]


def train(folder: Path, amount: int) -> list[object]:
    return ["train", "-n", f"of{amount}", "--data", repeat_eyes(folder, amount, "trained"), *one_step(folder)]


def export(folder: Path, amount: int) -> list[object]:
    pairs = repeat_eyes(folder, amount, "exported")
    return ["export", "matches", pairs, folder / f"matches{amount}", "--workers", 2]


def repeat_eyes(folder: Path, amount: int, name: str) -> Path:
    """Write a folder with a manifest of `amount` lines that repeat the real pairs, and return it."""
    lines = [one for one in read_manifest(folder / "eyes") if isinstance(one, PreparedPair)]
    repeated = (replace(lines[n % len(lines)], id=f"{n}") for n in range(amount))
    eyes = copy_without_manifest(folder, "eyes", f"{name}{amount}")
    write_manifest(eyes, repeated)
    return eyes


def evaluate(folder: Path, amount: int) -> list[object]:
    """Write a manifest of `amount` lines that repeat the generated pairs, and return the command that evaluates it."""
    lines = [one for one in read_manifest(folder / "few") if isinstance(one, GeneratedPair)]
    repeated = (replace(lines[n % len(lines)], id=f"{n}", index=n) for n in range(amount))
    write_manifest(copy_without_manifest(folder, "few", f"few{amount}"), repeated)
    flags = ["--generated", folder / f"few{amount}", "--out", folder / f"judged{amount}"]
    return ["evaluate", "--real", folder / "eyes", *flags]


def copy_without_manifest(folder: Path, name: str, new_name: str) -> Path:
    """Copy a subfolder without its manifest."""
    copy = shutil.copytree(folder / name, folder / new_name)
    (copy / "manifest.jsonl").unlink()
    return copy


COMMANDS: dict[str, Callable[[Path, int], list[object]]] = {
    "generate": generate,
    "train": train,
    "evaluate": evaluate,
    "export": export,
}


def retipair(*arguments: object) -> tuple[float, float]:
    """Run a command and return (peak MiB, seconds)."""
    started, peak = time.monotonic(), 0
    command = [sys.executable, "-m", "retipair", *map(str, arguments)]
    process = psutil.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, env=os.environ | SINGLE_ARENA)
    while process.poll() is None:
        try:
            processes = [process, *process.children(recursive=True)]
            peak = max(peak, sum(one.memory_info().rss for one in processes))
        except psutil.Error:
            break
        time.sleep(0.05)
    if process.wait() != 0:
        sys.exit(f"failed: {' '.join(command)}")
    return peak / 2**20, time.monotonic() - started


if __name__ == "__main__":
    main()
