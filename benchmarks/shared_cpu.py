"""What another program on the same cores costs a training step, by how OpenMP's threads wait for one another.

    python benchmarks/shared_cpu.py

Each row is a process of its own (`retipair bench train`), beside 0 or 1 other processes that compute without pause;
the ways to wait take turns. Prints a Markdown table: median ms of a step, and how many times that of spinning threads
on the idle machine.
"""

import argparse
import json
import os
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory

WAITING = {
    "spinning": {"GOMP_SPINCOUNT": "300000"},  # GNU OpenMP's default on an idle machine
    "passive": {"OMP_WAIT_POLICY": "PASSIVE"},
    "as retipair chooses": {},
}


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--base", default="tiny-sdxl")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--repeats", type=int, default=10, help="steps in each process")
    args = parser.parse_args(arguments)
    found = {}
    for others in (0, 1):
        with computing(others):
            rounds = [
                {name: step_ms(args.base, args.repeats, chosen) for name, chosen in WAITING.items()}
                for _ in range(args.rounds)
            ]
        found |= {(others, name): median(one[name] for one in rounds) for name in WAITING}
    print("| other programs | threads wait | ms a step | times as long |\n|---|---|---|---|")
    for (others, name), ms in found.items():
        print(f"| {others} | {name} | {ms:.0f} | {ms / found[0, 'spinning']:.2f} |")


@contextmanager
def computing(processes: int) -> Iterator[None]:
    """Inside, so many other processes compute without pause."""
    started = [subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in range(processes)]
    try:
        yield
    finally:
        for one in started:
            one.kill()
            one.wait()


def step_ms(base: str, repeats: int, waiting: dict[str, str]) -> float:
    """Return the median time of a training step in a process of its own."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("OMP_", "GOMP_"))}
    with TemporaryDirectory() as folder:
        figures = Path(folder) / "bench.json"
        flags = ["--base", base, "--device", "cpu", "--repeats", str(repeats), "--json", str(figures)]
        command = [sys.executable, "-m", "retipair", "bench", "train", *flags]
        subprocess.run(command, check=True, env=environment | waiting, stdout=subprocess.DEVNULL)
        return float(json.loads(figures.read_text())["milliseconds"])


if __name__ == "__main__":
    main()
