"""Several processes make what one makes: the pairs to the byte, the losses to rounding; when one dies, all stop."""

import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from itertools import chain
from pathlib import Path
from typing import Any

import psutil
import pytest

import retipair
from compare import contents
from conftest import train_command
from retipair.interfaces.cli import main
from retipair.runtime.distributed import SINGLE_PROCESS, DistributedState

Folder = Callable[[str], Path]
ENVIRONMENT = {
    **os.environ,
    "PYTHONPATH": str(Path(retipair.__file__).parent.parent),
    "CUDA_VISIBLE_DEVICES": "",
    "OMP_NUM_THREADS": "1",  # bytes on the CPU depend on the number of threads
}


def launcher(count: int, *what: object) -> list[str]:
    """As one would launch a command; what: the module or script, and its arguments."""
    with socket.socket() as one:
        one.bind(("localhost", 0))
        port = one.getsockname()[1]
    flags = ["--multi_gpu", "--num_processes", count, "--num_machines", 1, "--mixed_precision", "no"]
    flags += ["--dynamo_backend", "no", "--main_process_port", port]
    return [sys.executable, "-m", "accelerate.commands.launch", *map(str, [*flags, *what])]


def launch(count: int, commands: Sequence[Sequence[object]], tmp_path: Path) -> None:
    """Run commands one after the other, in processes that stay together: to start them takes longest."""
    path = tmp_path / "commands.json"
    path.write_text(json.dumps([list(map(str, words)) for words in commands]))
    script = Path(__file__).parents[1] / "launched.py"
    command = launcher(count, script, path)
    done = subprocess.run(command, capture_output=True, text=True, env=ENVIRONMENT, timeout=300)
    assert done.returncode == 0, done.stderr


def losses(results: Path, kind: str) -> list[dict[str, float]]:
    [path] = results.glob("out_*/exp/metrics.jsonl")
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    cost = ("kind", "seconds", "memory_gib")
    return [{k: v for k, v in line.items() if k not in cost} for line in lines if line["kind"] == kind]


def scores(out: Path) -> dict[str, Any]:
    """What was found of the pairs; tests show fewer of them, and take fewer through the layouts (conftest)."""
    found = json.loads((out / "scores.json").read_text())
    figures = (out / "figures.csv").read_text()
    return {"figures": figures} | {
        k: v for k, v in found.items() if k not in {"layouts", "shown", "doubtful", "sha256"}
    }


def drawing(results: Path, out: Path, amount: int) -> list[object]:
    gate = ["--min_consistency", 0.0, "--max_tries", 20, "--device", "cpu"]
    return ["generate", "-n", "exp", "--results", results, "--out", out, "--amount", amount, "--steps", 2, *gate]


FP32 = ("--precision", "fp32")  # with one process, "auto" may choose bf16 on a CPU


def training(base: Path, data: Path, results: Path, batch: int, *more: object) -> list[str]:
    flags = ("--batch_size", batch, "--val_every", 10, "--max_steps", 20, *FP32, *more)
    return train_command("exp", base, data, results, *flags)


def check_same(count: int, base: Path, data: Path, results: Path, tmp_path: Path) -> None:
    """One process, which is this one, and several: train 20 steps, and draw pairs of which a gate refuses some."""

    def commands(number: int) -> list[list[object]]:
        trained = training(base, data, tmp_path / f"run{number}", 4 // number)
        drawn, judged = tmp_path / f"drawn{number}", tmp_path / f"judged{number}"
        judging = ["evaluate", "--real", data, "--generated", tmp_path / "drawn1", "--out", judged, "--workers", 1]
        return [[*trained, "--device", "cpu"], drawing(results, drawn, 2 * count + 1), judging]

    for words in commands(1):
        assert main(list(map(str, words))) == 0
    launch(count, commands(count), tmp_path)
    alone, together = (contents(tmp_path / f"drawn{number}") for number in (1, count))
    assert alone == together
    assert len(alone["refused.jsonl"]) > 0
    alone, together = (scores(tmp_path / f"judged{number}") for number in (1, count))
    assert alone == together
    for kind, lines in (("training", 20), ("validation", 3)):
        alone, together = (losses(tmp_path / f"run{number}", kind) for number in (1, count))
        assert len(alone) == len(together) == lines
        for one, two in zip(alone, together, strict=True):
            assert two == pytest.approx(one, abs=1e-5)


@pytest.mark.nightly
def test_two_make_what_one_makes(base_folder: Folder, trained: Folder, prepared: Path, tmp_path: Path) -> None:
    check_same(2, base_folder("sd15"), prepared, trained("sd15"), tmp_path)


@pytest.mark.slow
def test_four_make_what_one_makes(base_folder: Folder, trained: Folder, prepared: Path, tmp_path: Path) -> None:
    check_same(4, base_folder("sdxl"), prepared, trained("sdxl"), tmp_path)


@pytest.mark.slow
def test_when_one_dies_all_stop_and_the_run_goes_on(base_folder: Folder, prepared: Path, tmp_path: Path) -> None:
    words = training(base_folder("sd15"), prepared, tmp_path / "run", 2, "--max_steps", 2000, "--device", "cpu")
    words += ["--num_samples", "0", "--resume"]
    running = subprocess.Popen(
        launcher(2, "-m", "retipair", *words), stderr=subprocess.PIPE, text=True, env=ENVIRONMENT
    )
    checkpoints = tmp_path / "run/out_joint_sd15_cffa_pairs/exp/latest_checkpoints"
    until = time.monotonic() + 120
    while not (checkpoints / "step_000010").is_dir():
        assert time.monotonic() < until
        assert running.poll() is None
        time.sleep(0.1)
    workers = [one for one in psutil.Process(running.pid).children() if "retipair" in one.cmdline()]
    assert len(workers) == 2
    workers[1].send_signal(signal.SIGKILL)
    said = running.communicate(timeout=60)[1]
    assert running.returncode != 0
    assert not any(one.is_running() for one in workers)
    assert "retipair: another process of this command has ended" in said or "retipair: stopped" in said
    before = max(int(path.name.removeprefix("step_")) for path in checkpoints.glob("step_*"))
    goes_on = subprocess.Popen(launcher(2, "-m", "retipair", *words), stderr=subprocess.DEVNULL, env=ENVIRONMENT)
    until = time.monotonic() + 120
    while not (checkpoints / f"step_{before + 20:06d}").is_dir():
        assert time.monotonic() < until
        assert goes_on.poll() is None
        time.sleep(0.1)
    goes_on.terminate()
    goes_on.wait(60)


# One alone


def test_shares_are_all_of_it_each_once() -> None:
    items = list(range(11))
    shares = [list(DistributedState(rank, 3).split_between_processes(items)) for rank in range(3)]
    assert sorted(chain(*shares)) == items
    assert [len(share) for share in shares] == [4, 4, 3]
    assert list(SINGLE_PROCESS.split_between_processes(items)) == items
