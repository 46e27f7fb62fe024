"""Does memory stay flat as pairs grow? Peak memory of whole commands, each in a process of its own.

    python benchmarks/flat_memory.py --amounts 100 1000 10000

Draws that many pairs of a small random base in one step; trains one step on as many lines of a manifest that name the
same hundred pairs again and again; judges as many lines that name the same hundred generated ones. Prints a Markdown
table; "grown" is against the first amount. glibc keeps what each thread frees apart, 8 % more or less from run to run
by luck: here it is told to keep it together.
"""

import argparse
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory

import psutil

from retipair.data.manifest import GeneratedPair, PreparedPair, read_manifest, write_manifest

BASE, SIZE = "random:tiny-sd15", 64
TOGETHER = {"MALLOC_ARENA_MAX": "1"}


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--amounts", type=int, nargs="+", default=[100, 1000, 10_000])
    parser.add_argument("--commands", nargs="+", choices=COMMANDS, default=[*COMMANDS])
    args = parser.parse_args(arguments)
    with TemporaryDirectory() as name:
        folder, few = Path(name), args.amounts[0]
        retipair("phantom", folder / "eyes", "--amount", few, "--size", SIZE)
        retipair("train", "-n", "first", "--data", folder / "eyes", *once(folder))
        retipair(*drawing(folder, few), "--out", folder / "few")
        print("| command | pairs | MiB | grown | seconds |\n|---|---|---|---|---|", flush=True)
        for command in args.commands:
            first = 0.0
            for amount in args.amounts:
                peak, seconds = retipair(*COMMANDS[command](folder, amount))
                first = first or peak
                print(f"| {command} | {amount} | {peak:.0f} | {peak / first - 1:+.1%} | {seconds:.0f} |", flush=True)


def once(folder: Path) -> list[object]:
    """Settings of a training of one step."""
    steps = ["--max_steps", 1, "--num_samples", 0, "--augment_variants", 1]
    return ["--base", BASE, "--size", SIZE, "--results", folder, "--device", "cpu", *steps]


def drawing(folder: Path, amount: int) -> list[object]:
    settings = ["-n", "first", "--results", folder, "--steps", 1, "--device", "cpu", "--savedir", f"of{amount}"]
    return ["generate", *settings, "--amount", amount]


def learning(folder: Path, amount: int) -> list[object]:
    """The few real pairs, named that often."""
    lines = [one for one in read_manifest(folder / "eyes") if isinstance(one, PreparedPair)]
    again = (replace(lines[n % len(lines)], id=f"{n}") for n in range(amount))
    write_manifest(emptied(folder, "eyes", f"eyes{amount}"), again)
    return ["train", "-n", f"of{amount}", "--data", folder / f"eyes{amount}", *once(folder)]


def judging(folder: Path, amount: int) -> list[object]:
    """The few generated pairs, named that often, beside the few real ones."""
    lines = [one for one in read_manifest(folder / "few") if isinstance(one, GeneratedPair)]
    again = (replace(lines[n % len(lines)], id=f"{n}", index=n) for n in range(amount))
    write_manifest(emptied(folder, "few", f"few{amount}"), again)
    words = ["--generated", folder / f"few{amount}", "--out", folder / f"judged{amount}"]
    return ["evaluate", "--real", folder / "eyes", *words]


def emptied(folder: Path, name: str, other: str) -> Path:
    """A folder beside, of the same files but for the manifest."""
    made = shutil.copytree(folder / name, folder / other)
    (made / "manifest.jsonl").unlink()
    return made


COMMANDS: dict[str, Callable[[Path, int], list[object]]] = {"generate": drawing, "train": learning, "evaluate": judging}


def retipair(*arguments: object) -> tuple[float, float]:
    """(peak MiB, seconds) of a command."""
    began, peak = time.monotonic(), 0
    words = [sys.executable, "-m", "retipair", *map(str, arguments)]
    running = psutil.Popen(words, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, env=os.environ | TOGETHER)
    while running.poll() is None:
        try:
            peak = max(peak, running.memory_info().rss)
        except psutil.Error:
            break
        time.sleep(0.05)
    if running.wait() != 0:
        sys.exit(f"failed: {' '.join(words)}")
    return peak / 2**20, time.monotonic() - began


if __name__ == "__main__":
    main()
