"""Measure how long it takes to read the manifest of a generated folder, and the whole folder.

    python benchmarks/manifests.py --pairs 10000 1000000

Prints a Markdown table of medians of the CPU time, which other programs change less than the elapsed time. `json`
decodes the lines without checking them, for comparison. The files of the pairs are empty, because only their existence
is checked.
"""

import argparse
import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory
from time import process_time

from retipair.data.dataset import read_folder
from retipair.data.manifest import MANIFEST_NAME, GeneratedPair, read_manifest, write_manifest


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pairs", nargs="+", type=int, default=[10_000])
    parser.add_argument("--repeats", type=int, default=5)
    args = parser.parse_args(arguments)
    print("| pairs | `json`, s | `read_manifest`, s | `read_folder`, s |\n|---|---|---|---|")
    for pairs in args.pairs:
        times = measured(pairs, args.repeats)
        print(f"| {pairs:,} | " + " | ".join(f"{median(seconds):.2f}" for seconds in times.values()) + " |", flush=True)


def measured(pairs: int, repeats: int) -> dict[str, list[float]]:
    """Return the seconds of CPU time of each call, by the name of the column. The functions are called in turn."""
    with TemporaryDirectory() as directory:
        folder = Path(directory)
        write_folder(folder, pairs)
        works = {
            "json": lambda: sum(1 for _ in decoded(folder)),
            "read_manifest": lambda: sum(1 for _ in read_manifest(folder)),
            "read_folder": lambda: read_folder(folder),
        }
        seconds: dict[str, list[float]] = {name: [] for name in works}
        for _ in range(repeats):
            for name, work in works.items():
                started = process_time()
                work()
                seconds[name].append(process_time() - started)
        return seconds


def write_folder(folder: Path, pairs: int) -> None:
    """Write a manifest as `generate` does, and the CF of each pair as an empty file."""
    for number in range(1, pairs + 1):
        cf = folder / f"{number // 10_000}/{number}/cf.png"
        cf.parent.mkdir(parents=True)
        cf.touch()
    write_manifest(folder, map(record, range(1, pairs + 1)))


def record(number: int) -> GeneratedPair:
    place = f"{number // 10_000}/{number}"
    return GeneratedPair(
        id=str(number),
        index=number,
        seed=0,
        attempt=0,
        mode="noise",
        source_id=None,
        source_eye=None,
        strength=None,
        prompt="a colour fundus photograph and a fluorescein angiogram of the same eye, side by side",
        cf=f"{place}/cf.png",
        fa=f"{place}/fa.png",
        size=512,
        base="stable-diffusion-xl-base-1.0",
        adapter_sha256="a" * 64,
        settings_sha256="b" * 64,
        fa_chroma=1.2345,
        consistency=0.4321,
    )


def decoded(folder: Path) -> Iterator[object]:
    with (folder / MANIFEST_NAME).open(encoding="utf-8") as stream:
        yield from map(json.loads, stream)


if __name__ == "__main__":
    main()
