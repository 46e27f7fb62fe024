"""Several processes make what one makes: the pairs to the byte, the losses to rounding; when one dies, all stop."""

import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from itertools import chain
from pathlib import Path

import psutil
import pytest

import retipair
from conftest import train_command
from retipair.processes import Processes

Folder = Callable[[str], Path]
ENVIRONMENT = {
    **os.environ,
    "PYTHONPATH": str(Path(retipair.__file__).parent.parent),
    "CUDA_VISIBLE_DEVICES": "",
    "OMP_NUM_THREADS": "1",  # bytes on the CPU depend on the number of threads
}


def command(count: int, *words: object) -> list[str]:
    """As one would launch it; a command alone is one process."""
    if count == 1:
        return [sys.executable, "-m", "retipair", *map(str, words)]
    with socket.socket() as one:
        one.bind(("localhost", 0))
        port = one.getsockname()[1]
    flags = ["--multi_gpu", "--num_processes", count, "--num_machines", 1, "--mixed_precision", "no"]
    flags += ["--dynamo_backend", "no", "--main_process_port", port, "-m", "retipair"]
    return [sys.executable, "-m", "accelerate.commands.launch", *map(str, [*flags, *words])]


def launch(count: int, *words: object) -> None:
    done = subprocess.run(command(count, *words), capture_output=True, text=True, env=ENVIRONMENT, timeout=300)
    assert done.returncode == 0, done.stderr


def contents(folder: Path) -> dict[str, bytes]:
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def losses(results: Path, kind: str) -> list[dict[str, float]]:
    [path] = results.glob("out_*/exp/metrics.jsonl")
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    cost = ("kind", "seconds", "memory_gib")
    return [{k: v for k, v in line.items() if k not in cost} for line in lines if line["kind"] == kind]


def drawing(results: Path, out: Path, amount: int) -> list[object]:
    gate = ["--min_consistency", 0.0, "--max_tries", 20]
    return ["generate", "-n", "exp", "--results", results, "--out", out, "--amount", amount, "--steps", 2, *gate]


def training(base: Path, data: Path, results: Path, batch: int, *more: object) -> list[str]:
    return train_command("exp", base, data, results, "--batch_size", batch, "--val_every", 10, "--max_steps", 20, *more)


def check_same_pairs(count: int, results: Path, tmp_path: Path) -> None:
    for number in (1, count):
        launch(number, *drawing(results, tmp_path / str(number), 2 * count + 1), "--device", "cpu")
    alone, together = contents(tmp_path / "1"), contents(tmp_path / str(count))
    assert alone == together
    assert len(alone["refused.jsonl"]) > 0


def check_same_losses(count: int, base: Path, data: Path, tmp_path: Path) -> None:
    for number in (1, count):
        launch(number, *training(base, data, tmp_path / str(number), 4 // number, "--device", "cpu"))
    for kind, lines in (("training", 20), ("validation", 3)):
        alone, together = (losses(tmp_path / str(number), kind) for number in (1, count))
        assert len(alone) == len(together) == lines
        for one, two in zip(alone, together, strict=True):
            assert two == pytest.approx(one, abs=1e-5)


def test_two_draw_what_one_draws(trained: Folder, tmp_path: Path) -> None:
    check_same_pairs(2, trained("sd15"), tmp_path)


def test_two_learn_what_one_learns(base_folder: Folder, prepared: Path, tmp_path: Path) -> None:
    check_same_losses(2, base_folder("sd15"), prepared, tmp_path)


@pytest.mark.slow
def test_four_make_what_one_makes(trained: Folder, base_folder: Folder, prepared: Path, tmp_path: Path) -> None:
    check_same_pairs(4, trained("sdxl"), tmp_path / "pairs")
    check_same_losses(4, base_folder("sdxl"), prepared, tmp_path / "losses")


@pytest.mark.slow
def test_when_one_dies_all_stop_and_the_run_goes_on(base_folder: Folder, prepared: Path, tmp_path: Path) -> None:
    words = training(base_folder("sd15"), prepared, tmp_path / "run", 2, "--max_steps", 2000, "--device", "cpu")
    words += ["--num_samples", "0", "--resume"]
    launcher = subprocess.Popen(command(2, *words), stderr=subprocess.PIPE, text=True, env=ENVIRONMENT)
    checkpoints = tmp_path / "run/out_joint_sd15_cffa_pairs/exp/latest_checkpoints"
    until = time.monotonic() + 120
    while not (checkpoints / "step_000010").is_dir():
        assert time.monotonic() < until
        assert launcher.poll() is None
        time.sleep(0.1)
    workers = [one for one in psutil.Process(launcher.pid).children() if "retipair" in one.cmdline()]
    assert len(workers) == 2
    workers[1].send_signal(signal.SIGKILL)
    said = launcher.communicate(timeout=60)[1]
    assert launcher.returncode != 0
    assert not any(one.is_running() for one in workers)
    assert "retipair: another process of this command has ended" in said or "retipair: stopped" in said
    before = max(int(path.name.removeprefix("step_")) for path in checkpoints.glob("step_*"))
    goes_on = subprocess.Popen(command(2, *words), stderr=subprocess.DEVNULL, env=ENVIRONMENT)
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
    shares = [list(Processes(rank, 3).share(items)) for rank in range(3)]
    assert sorted(chain(*shares)) == items
    assert [len(share) for share in shares] == [4, 4, 3]
    assert list(Processes().share(items)) == items
