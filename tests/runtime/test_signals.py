"""Told to stop, a command keeps the step in hand, says how to go on, and goes on to what it would have been."""

import contextlib
import os
import pty
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from compare import adapter, contents, files, same
from conftest import train_command
from retipair.generation import generate
from retipair.interfaces.cli import main
from retipair.runs.run_dir import Run
from retipair.runtime import signals
from retipair.runtime.signals import end_on_signals, graceful_shutdown
from retipair.training import loop, validation
from running import started, wait_for

Folder = Callable[[str], Path]
FLAGS = ("--num_samples", 0, "--max_steps", 6, "--val_every", 4, "--log_every", 3)


@pytest.fixture(autouse=True)
def _sigint_is_not_ignored() -> Iterator[None]:
    """A test run in the background ignores SIGINT, and so would its commands."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


def told_at(monkeypatch: pytest.MonkeyPatch, owner: object, name: str, call: int, number: int) -> None:
    """This process is sent the signal in the middle of the call of a function, counted from 1."""
    original, calls = getattr(owner, name), 0

    def counted(*arguments: object, **more: object) -> object:
        nonlocal calls
        calls += 1
        if calls == call:
            os.kill(os.getpid(), number)
        return original(*arguments, **more)

    monkeypatch.setattr(owner, name, counted)


@pytest.mark.parametrize(
    ("call", "number", "status"),
    [
        (4, signal.SIGTERM, 143),
        *(
            pytest.param(*case, marks=pytest.mark.nightly)
            for case in ((2, signal.SIGINT, 130), (5, signal.SIGUSR1, 138))
        ),
    ],
)
def test_training_keeps_its_step_and_goes_on_to_the_bit(
    call: int,
    number: int,
    status: int,
    base_folder: Folder,
    prepared: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    def command(results: str) -> list[str]:
        return train_command("exp", base_folder("sd15"), prepared, tmp_path / results, *FLAGS)

    told_at(monkeypatch, loop, "training_step", call, number)
    assert main(command("a")) == status
    monkeypatch.undo()
    assert f"stopped after step {call}, which is saved; run the same command with --resume" in capsys.readouterr().err
    run, whole = (tmp_path / name / "out_joint_sd15_cffa_pairs/exp" for name in "ab")
    assert f"step_{call:06d}" in str(Run(run).latest())

    assert main([*command("a"), "--resume"]) == 0
    assert f"at step {call}" in capsys.readouterr().err
    assert main(command("b")) == 0
    assert files(run) == files(whole)  # what it was stopped in is gone
    assert same(adapter(run, 6), adapter(whole, 6))


@pytest.mark.nightly
def test_told_while_it_samples_it_samples_again(
    base_folder: Folder, prepared: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    flags = ("--num_samples", 2, "--sample_steps", 1, "--max_steps", 4, "--val_every", 2)

    def command(results: str) -> list[str]:
        return train_command("exp", base_folder("sd15"), prepared, tmp_path / results, *flags)

    told_at(monkeypatch, validation.PairGenerator, "sample", 3, signal.SIGTERM)  # the first of step 2
    assert main(command("a")) == 143
    monkeypatch.undo()
    run, whole = (tmp_path / name / "out_joint_sd15_cffa_pairs/exp" for name in "ab")
    assert [path.name for path in Run(run).checkpoints()] == ["step_000000", "step_000002"]
    assert not (run / "step_000002_random_pairs/pair_01").exists()
    assert main([*command("a"), "--resume"]) == 0
    assert main(command("b")) == 0
    assert files(run) == files(whole)
    assert (run / "validation_log.txt").read_text() == (whole / "validation_log.txt").read_text()


def test_generate_finishes_the_pair_in_hand(
    trained: Folder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def command(out: str) -> list[str]:
        words = ["generate", "-n", "exp", "--results", trained("sd15"), "--device", "cpu", "--steps", 1, "--amount", 4]
        return [*map(str, words), "--out", str(tmp_path / out)]

    told_at(monkeypatch, generate.GenerationLoop, "sample", 2, signal.SIGTERM)
    assert main(command("a")) == 143
    monkeypatch.undo()
    assert "stopped with 2 of 4 pairs generated; run the same command" in capsys.readouterr().err
    assert main(command("a")) == 0
    assert main(command("b")) == 0
    once, twice = contents(tmp_path / "a"), contents(tmp_path / "b")
    assert once.keys() == twice.keys()
    assert all(once[name] == twice[name] for name in once if name != "settings.json")


@contextlib.contextmanager
def training(base: Path, prepared: Path, results: Path) -> "Iterator[subprocess.Popen[str]]":
    """A training without end, from its checkpoint of step 4 on."""
    command = train_command("exp", base, prepared, results, *FLAGS, "--max_steps", 10**6)
    checkpoint = results / "out_joint_sd15_cffa_pairs/exp/latest_checkpoints/step_000004"
    with started(command) as process:
        wait_for(checkpoint.exists, process)
        yield process


@pytest.mark.nightly
def test_told_by_cluster_and_launcher_alike_it_still_finishes(
    base_folder: Folder, prepared: Path, tmp_path: Path
) -> None:
    """Whether the later signals come while it finishes, or when it is about to exit."""
    with training(base_folder("sd15"), prepared, tmp_path) as process:
        for _ in range(3):
            process.send_signal(signal.SIGTERM)
            time.sleep(0.02)
        assert process.wait(60) == 143
        assert process.stderr is not None
        said = process.stderr.read()
        assert "which is saved" in said
        assert "Traceback" not in said


@pytest.mark.parametrize(
    ("first", "second"),
    [(signal.SIGTERM, signal.SIGTERM), (signal.SIGHUP, signal.SIGHUP), (signal.SIGTERM, signal.SIGHUP)],
)
def test_a_duplicate_signal_does_not_interrupt_the_exit(
    first: int, second: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    end_on_signals()
    with graceful_shutdown("this") as stop:
        signal.raise_signal(first)
    assert stop.number == first
    signal.raise_signal(second)  # while the command unwinds and reports
    monkeypatch.setattr(signals, "_DUPLICATE_S", 0.0)
    with pytest.raises(KeyboardInterrupt):
        signal.raise_signal(second)


WAITING = {
    "in graceful_shutdown": """with graceful_shutdown("this") as stop:
            while not stop.requested:
                time.sleep(0.01)""",
    "elsewhere": "time.sleep(30)",
}


@pytest.mark.parametrize("waiting", WAITING)
def test_a_command_whose_terminal_is_closed_still_cleans_up(waiting: str, tmp_path: Path) -> None:
    """It gets SIGHUP, and a line that it printed on the terminal now would fail."""
    script = f"""
import sys, tempfile, time
from pathlib import Path
from retipair.runtime.console import console
from retipair.runtime.signals import end_on_signals, graceful_shutdown
end_on_signals()
with tempfile.TemporaryDirectory(dir=sys.argv[1]):
    try:
        console.print("ready")
        {WAITING[waiting]}
    finally:
        console.print("stopped")
        Path(sys.argv[1], "saved").touch()
"""
    process, terminal = pty.fork()
    if process == 0:
        os.execv(sys.executable, [sys.executable, "-c", script, str(tmp_path)])
    assert b"ready" in os.read(terminal, 1000)
    os.close(terminal)
    os.waitpid(process, 0)
    assert [path.name for path in tmp_path.iterdir()] == ["saved"]


def test_a_signal_that_python_swallowed_while_it_loaded_is_heeded() -> None:
    end_on_signals()
    with contextlib.suppress(KeyboardInterrupt):  # as in a __del__
        os.kill(os.getpid(), signal.SIGTERM)
    with pytest.raises(KeyboardInterrupt), graceful_shutdown("this"):
        pass
    end_on_signals()
    with graceful_shutdown("this") as stop:
        assert not stop.requested


def test_a_signal_that_is_ignored_from_the_start_stays_ignored() -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    end_on_signals()
    with graceful_shutdown("this") as stop:
        signal.raise_signal(signal.SIGINT)
    assert not stop.requested
    assert signal.getsignal(signal.SIGINT) == signal.SIG_IGN


def test_of_two_states_of_a_step_the_checkpoint_is_the_last(tmp_path: Path) -> None:
    for place in ("stopped_checkpoint", "latest_checkpoints"):
        (tmp_path / place / "step_000004").mkdir(parents=True)
    assert not Run(tmp_path).is_stopped(Run(tmp_path).checkpoints()[-1])


@pytest.mark.nightly
def test_told_twice_it_ends_at_once_and_loses_nothing_older(
    base_folder: Folder, prepared: Path, tmp_path: Path
) -> None:
    with training(base_folder("sd15"), prepared, tmp_path) as process:
        process.send_signal(signal.SIGSTOP)  # so that both come before it can finish anything
        process.send_signal(signal.SIGTERM)
        process.send_signal(signal.SIGINT)
        process.send_signal(signal.SIGCONT)
        assert process.wait(30) in (130, 143)
        assert process.stderr is not None
        assert "Traceback" not in process.stderr.read()
    checkpoint = Run(tmp_path / "out_joint_sd15_cffa_pairs/exp").latest()
    assert checkpoint is not None
    assert int(checkpoint.name[-6:]) >= 4
