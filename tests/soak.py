"""Training and drawing, killed again and again (SIGKILL), and in the end what they would have been without.

    python tests/soak.py --kills 60        about 15 minutes on two cores (`make soak`)

Half of the kills hit the training of a small base, half the drawing of pairs; of either every third comes inside a
write, when a file's content is there and its name is not. Each comes only after the command has got further than
before. In the end every tensor of every checkpoint, every line of the logs (but for seconds) and every file that was
drawn equals those of commands that nobody killed.
"""

import argparse
import json
import os
import random
import signal
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

import torch
from safetensors.torch import load_file

import retipair.generation.generate
import retipair.training.train
from compare import files, same
from retipair.interfaces.cli import main as retipair
from retipair.runs.run_dir import Run

BASE, SIZE = "random:tiny-sd15", 64
STEPS_A_KILL, PAIRS_A_KILL = 12, 5
VAL_EVERY = 4
PATIENCE = 120.0
"""Seconds in which a command must get further."""


@dataclass
class Work:
    """A command that is killed. reached: how far it has got; further: what is between two marks of that."""

    name: str
    command: list[str]
    reached: Callable[[], int]
    writes: int
    """Syncs to disk, at most, between two marks."""
    kills: int = 0
    inside: int = 0


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=60)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args(arguments)
    torch.set_num_threads(1)
    with TemporaryDirectory() as name:
        soak(Path(name), args.kills, args.seed)


def soak(folder: Path, kills: int, seed: int) -> tuple[int, int]:
    """(kills, those inside a write). Raises AssertionError for whatever is not as it should be."""
    chance, half = random.Random(seed), kills // 2
    ran(["phantom", str(folder / "eyes"), "--amount", "6", "--size", str(SIZE)])
    training, drawing = works(folder / "killed", folder / "eyes", half)
    for work in (training, drawing):
        for number in range(half):
            killed(work, chance, inside=number % 3 == 2)
        ran(work.command)
        print(f"{work.name}: killed {work.kills} times, {work.inside} inside a write", flush=True)
    for work in works(folder / "whole", folder / "eyes", half):
        ran(work.command)
    compare_runs(run_in(folder / "killed"), run_in(folder / "whole"))
    compare_files(folder / "killed/drawn", folder / "whole/drawn")
    print("all is as without a kill", flush=True)
    return training.kills + drawing.kills, training.inside + drawing.inside


def works(results: Path, eyes: Path, kills: int) -> tuple[Work, Work]:
    run, common = run_in(results), ["-n", "exp", "--results", str(results), "--device", "cpu"]
    sizes = ["--base", BASE, "--size", str(SIZE), "--augment_variants", "2"]
    often = ["--val_every", str(VAL_EVERY), "--log_every", "3", "--num_samples", "1", "--sample_steps", "1"]
    steps = ["--max_steps", str(STEPS_A_KILL * (kills + 1)), "--resume", "--data", str(eyes)]
    pairs = ["--amount", str(PAIRS_A_KILL * (kills + 1)), "--steps", "1", "--out", str(results / "drawn")]
    manifest = results / "drawn/manifest.jsonl"
    return (
        Work("train", ["train", *common, *sizes, *often, *steps], lambda: last_step(run), writes=40),
        Work("generate", ["generate", *common, *pairs], lambda: lines_in(manifest), writes=12),
    )


def run_in(results: Path) -> Path:
    return results / "out_joint_sd15_cffa_pairs/exp"


def last_step(run: Path) -> int:
    return max((int(path.name[-6:]) for path in Run(run).checkpoints()), default=-1)


def lines_in(path: Path) -> int:
    return path.read_bytes().count(b"\n") if path.exists() else 0


# Killing


def killed(work: Work, chance: random.Random, inside: bool) -> None:
    """Run the command until it has got further than ever, then kill it: soon, or in the middle of a write."""
    before, delay, count = work.reached(), chance.uniform(0, 1.0), chance.randrange(1, work.writes)
    child = forked(work.command, lambda: die_in_a_write(lambda: work.reached() > before, count) if inside else None)
    until = time.monotonic() + PATIENCE
    while work.reached() <= before:
        assert time.monotonic() < until, f"{work.name} got no further than {before}"
        ended(child, work)
        time.sleep(0.01)
    if not inside:
        time.sleep(delay)
        os.kill(child, signal.SIGKILL)
    while ended(child, work) is None:
        assert time.monotonic() < until, f"{work.name} went on without a write"
        time.sleep(0.01)
    work.kills += 1
    work.inside += inside
    assert work.reached() > before


def ended(child: int, work: Work) -> bool | None:
    """Whether the child was killed; None while it runs. It must not end otherwise."""
    found, status = os.waitpid(child, os.WNOHANG)
    if not found:
        return None
    assert os.waitstatus_to_exitcode(status) == -signal.SIGKILL, f"{work.name} ended by itself: {status}"
    return True


def die_in_a_write(ready: Callable[[], bool], count: int) -> None:
    """Once `ready`, kill this process at its count-th sync, before the file has its name."""
    sync, seen = os.fsync, 0

    def counted(descriptor: int) -> None:
        nonlocal seen
        seen += bool(seen or ready())
        if seen == count:
            os.kill(os.getpid(), signal.SIGKILL)
        sync(descriptor)

    os.fsync = counted


def forked(command: list[str], prepare: Callable[[], None] = lambda: None) -> int:
    if child := os.fork():
        return child
    with open(os.devnull, "w") as nowhere:  # noqa: PTH123 - a device
        os.dup2(nowhere.fileno(), 1)
        os.dup2(nowhere.fileno(), 2)
    prepare()
    os._exit(retipair(command))


def ran(command: list[str]) -> None:
    _, status = os.waitpid(forked(command), 0)
    assert status == 0, f"{' '.join(command)}: {status}"


# Comparing


def compare_runs(killed: Path, whole: Path) -> None:
    assert files(killed) == files(whole), files(killed) ^ files(whole)
    for path in killed.rglob("*.safetensors"):
        assert same(load_file(path), load_file(whole / path.relative_to(killed))), path
    assert logged(killed) == logged(whole)
    for path in killed.rglob("*.png"):
        assert path.read_bytes() == (whole / path.relative_to(killed)).read_bytes(), path


def compare_files(killed: Path, whole: Path) -> None:
    assert files(killed) == files(whole), files(killed) ^ files(whole)
    for name in files(killed) - {"settings.json"}:  # which says on what machine, and when it was drawn last
        assert (killed / name).read_bytes() == (whole / name).read_bytes(), name


def logged(run: Path) -> list[dict[str, object]]:
    lines = map(json.loads, (run / "metrics.jsonl").read_text().splitlines())
    return [{key: value for key, value in line.items() if key not in ("seconds", "memory_gib")} for line in lines]


if __name__ == "__main__":
    main(sys.argv[1:])
