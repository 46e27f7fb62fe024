"""One command a folder: the second is told who has it; a dead one has nothing."""

import errno
import fcntl
import os
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path

import pytest

from compare import contents
from conftest import train_command
from eyes import write_raw
from refusals import raises_file
from retipair.interfaces.cli import main
from retipair.runtime.errors import OccupiedError, UserError
from retipair.runtime.lock import directory_lock
from running import started, wait_for

Folder = Callable[[str], Path]
SLOW = pytest.mark.slow
HOLD = """
import pathlib, sys
from retipair.runtime.lock import directory_lock
with directory_lock(pathlib.Path(sys.argv[1])):
    print("has", flush=True)
    input()
"""


def holder(folder: Path) -> subprocess.Popen[str]:
    """A process that has the folder, until it is killed or told to end."""
    process = subprocess.Popen([sys.executable, "-c", HOLD, str(folder)], stdin=-1, stdout=-1, text=True)
    assert process.stdout is not None
    assert process.stdout.readline() == "has\n"
    return process


def test_the_second_is_refused_with_the_firsts_process_and_host(tmp_path: Path) -> None:
    with holder(tmp_path / "run") as process:
        with pytest.raises(UserError) as refused, directory_lock(tmp_path / "run"):
            pass
        for told in (str(tmp_path / "run"), f"process {process.pid}", socket.gethostname()):
            assert told in str(refused.value)
        process.kill()
    with directory_lock(tmp_path / "run"):  # whatever the killed one left
        assert f"process {os.getpid()}" in (tmp_path / "run/.lock").read_text()


def test_it_is_let_go_of_at_the_end_and_after_a_mistake(tmp_path: Path) -> None:
    for _ in range(2):
        with pytest.raises(UserError, match="mistake"), directory_lock(tmp_path / "a/b"):
            raise UserError("mistake")
        assert not list(tmp_path.iterdir())  # nor is anything left
    with directory_lock(tmp_path / "a/b"):
        (tmp_path / "a/b/kept").touch()
    assert [path.name for path in (tmp_path / "a/b").iterdir()] == ["kept"]


def test_a_file_is_no_folder(tmp_path: Path) -> None:
    (tmp_path / "f").touch()
    with raises_file(tmp_path / "f", OccupiedError), directory_lock(tmp_path / "f"):
        pass


def test_who_waits_is_let_in_when_the_first_ends(tmp_path: Path) -> None:
    with holder(tmp_path / "run") as process:
        threading.Timer(0.5, process.kill).start()
        with directory_lock(tmp_path / "run", wait=True):
            assert process.poll() is not None or process.wait(1) is not None


def test_without_locks_it_works_and_says_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def none(descriptor: int, operation: int) -> None:
        raise OSError(errno.ENOSYS, "Function not implemented")

    monkeypatch.setattr(fcntl, "flock", none)
    for _ in range(2):
        with directory_lock(tmp_path / "run"):
            (tmp_path / "run/kept").touch()
        assert "does not support locks" in capsys.readouterr().err
        assert [path.name for path in (tmp_path / "run").iterdir()] == ["kept"]


# Two commands at once


@pytest.mark.parametrize(
    "verb",
    [
        *(pytest.param(verb, marks=pytest.mark.nightly) for verb in ("generate", "train")),
        *(pytest.param(verb, marks=SLOW) for verb in ("prepare", "evaluate", "phantom")),
    ],
)
def test_of_two_commands_on_one_folder_one_works_and_the_other_refuses(
    verb: str, commands: Callable[[str], tuple[list[str], Path]], capsys: pytest.CaptureFixture[str]
) -> None:
    command, folder = commands(verb)
    lock = folder / ".lock"
    with started(command) as first:
        wait_for(lambda: lock.exists() and str(first.pid) in lock.read_text(), first)
        first.send_signal(signal.SIGSTOP)
        before = contents(folder)
        assert main(command) == 2
        said = capsys.readouterr().err.splitlines()[-1]
        for told in (str(folder), f"process {first.pid} on {socket.gethostname()}", "wait for it to end"):
            assert told in said
        assert contents(folder) == before
        first.send_signal(signal.SIGCONT)
        assert first.wait(200) == 0
    assert not lock.exists()


@pytest.fixture
def commands(
    trained: Folder, base_folder: Folder, prepared: Path, tmp_path: Path
) -> Callable[[str], tuple[list[str], Path]]:
    """verb -> (a command of it, the folder that it works in)."""

    def command(verb: str) -> tuple[list[str], Path]:
        out = tmp_path / "out"
        if verb == "train":
            words = train_command("exp", base_folder("sd15"), prepared, out, "--num_samples", 0)
            return words, out / "out_joint_sd15_cffa_pairs/exp"
        if verb == "prepare":
            write_raw(tmp_path / "raw", n=3, size=96, jitter=0.3)
            return ["prepare", str(tmp_path / "raw"), str(out), "--size", "64", "--workers", "1"], out
        if verb == "generate":
            words = ["-n", "exp", "--results", str(trained("sd15")), "--amount", "2", "--steps", "1"]
            return ["generate", *words, "--device", "cpu", "--out", str(out)], out
        if verb == "evaluate":
            return ["evaluate", "--real", str(prepared), "--out", str(out), "--workers", "1"], out
        return ["phantom", str(out), "--amount", "2", "--size", "64"], out

    return command
