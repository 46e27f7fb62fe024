"""Measure how another program on the same cores slows down a training step, for each OpenMP wait policy.

    python benchmarks/shared_cpu.py

Each measurement is a process (`retipair bench train`) that runs next to 0 or 1 busy processes; the wait policies
alternate. Prints a Markdown table: the median ms of a step, and its ratio to that of spinning threads on the idle
machine.
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

WAIT_POLICIES = {
    "spinning": {"GOMP_SPINCOUNT": "300000"},  # GNU OpenMP's default on an idle machine
    "passive": {"OMP_WAIT_POLICY": "PASSIVE"},
    "default of retipair": {},
}


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--base", default="tiny-sdxl")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--repeats", type=int, default=10, help="number of steps in each process")
    args = parser.parse_args(arguments)
    results = {}
    for others in (0, 1):
        with busy_processes(others):
            rounds = [
                {name: step_ms(args.base, args.repeats, policy) for name, policy in WAIT_POLICIES.items()}
                for _ in range(args.rounds)
            ]
        results |= {(others, name): median(one[name] for one in rounds) for name in WAIT_POLICIES}
    print("| other programs | wait policy | ms per step | ratio |\n|---|---|---|---|")
    for (others, name), ms in results.items():
        print(f"| {others} | {name} | {ms:.0f} | {ms / results[0, 'spinning']:.2f} |")


@contextmanager
def busy_processes(number: int) -> Iterator[None]:
    """Run this number of busy processes inside the context."""
    processes = [subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in range(number)]
    try:
        yield
    finally:
        for process in processes:
            process.kill()
            process.wait()


def step_ms(base: str, repeats: int, policy: dict[str, str]) -> float:
    """Return the median time of a training step in a new process with this wait policy."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("OMP_", "GOMP_"))}
    with TemporaryDirectory() as folder:
        figures = Path(folder) / "bench.json"
        flags = ["--base", base, "--device", "cpu", "--repeats", str(repeats), "--json", str(figures)]
        command = [sys.executable, "-m", "retipair", "bench", "train", *flags]
        subprocess.run(command, check=True, env=environment | policy, stdout=subprocess.DEVNULL)
        return float(json.loads(figures.read_text())["milliseconds"])


if __name__ == "__main__":
    main()
