"""Does memory stay flat as pairs grow? Peak memory of whole commands, each in a process of its own.

    python benchmarks/flat_memory.py --amounts 100 1000 10000

Draws that many pairs of a small random base in one step, then trains one step on as many lines of a manifest that name
the same hundred pairs again and again. Prints a Markdown table; "grown" is against the first amount.
"""

import argparse
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory

import psutil

from retipair.data.manifest import PreparedPair, read_manifest, write_manifest

BASE, SIZE = "random:tiny-sd15", 64


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--amounts", type=int, nargs="+", default=[100, 1000, 10_000])
    args = parser.parse_args(arguments)
    with TemporaryDirectory() as name:
        folder = Path(name)
        few = args.amounts[0]
        retipair("phantom", folder / "eyes", "--amount", few, "--size", SIZE)
        once = ["--base", BASE, "--size", SIZE, "--results", folder, "--device", "cpu", "--augment_variants", 1]
        once += ["--max_steps", 1, "--num_samples", 0]
        retipair("train", "-n", "first", "--data", folder / "eyes", *once)
        print("| command | pairs | MiB | grown | seconds |\n|---|---|---|---|---|", flush=True)
        kinds = {"generate": drawing(folder, args.amounts), "train": learning(folder, once, args.amounts)}
        for command, peaks in kinds.items():
            first = 0.0
            for amount, (peak, seconds) in peaks:
                first = first or peak
                print(f"| {command} | {amount} | {peak:.0f} | {peak / first - 1:+.1%} | {seconds:.0f} |", flush=True)


def drawing(folder: Path, amounts: Sequence[int]) -> Iterator[tuple[int, tuple[float, float]]]:
    common = ["generate", "-n", "first", "--results", folder, "--steps", 1, "--device", "cpu"]
    for amount in amounts:
        yield amount, retipair(*common, "--amount", amount, "--out", folder / f"drawn{amount}")


def learning(folder: Path, once: Sequence[object], amounts: Sequence[int]) -> Iterator[tuple[int, tuple[float, float]]]:
    lines = [one for one in read_manifest(folder / "eyes") if isinstance(one, PreparedPair)]
    for amount in amounts:
        again = (replace(lines[n % len(lines)], id=f"{n}") for n in range(amount))
        write_manifest(folder / "eyes", again)
        yield amount, retipair("train", "-n", f"of{amount}", "--data", folder / "eyes", *once)


def retipair(*arguments: object) -> tuple[float, float]:
    """(peak MiB, seconds) of a command."""
    began, peak = time.monotonic(), 0
    words = [sys.executable, "-m", "retipair", *map(str, arguments)]
    running = psutil.Popen(words, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
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
