"""One command a folder: the second is told who has it; a dead one has nothing."""

import os
import socket
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from retipair.errors import UserError
from retipair.owner import owned

HOLD = """
import pathlib, sys
from retipair.owner import owned
with owned(pathlib.Path(sys.argv[1])):
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
        with pytest.raises(UserError) as refused, owned(tmp_path / "run"):
            pass
        for told in (str(tmp_path / "run"), f"process {process.pid}", socket.gethostname()):
            assert told in str(refused.value)
        process.kill()
    with owned(tmp_path / "run"):  # whatever the killed one left
        assert f"process {os.getpid()}" in (tmp_path / "run/.lock").read_text()


def test_it_is_let_go_of_at_the_end_and_after_a_mistake(tmp_path: Path) -> None:
    for _ in range(2):
        with pytest.raises(UserError, match="mistake"), owned(tmp_path / "a/b"):
            raise UserError("mistake")
        assert not list(tmp_path.iterdir())  # nor is anything left
    with owned(tmp_path / "a/b"):
        (tmp_path / "a/b/kept").touch()
    assert [path.name for path in (tmp_path / "a/b").iterdir()] == ["kept"]


def test_a_file_is_no_folder(tmp_path: Path) -> None:
    (tmp_path / "f").touch()
    with pytest.raises(UserError, match="is a file"), owned(tmp_path / "f"):
        pass


def test_who_waits_is_let_in_when_the_first_ends(tmp_path: Path) -> None:
    with holder(tmp_path / "run") as process:
        threading.Timer(0.5, process.kill).start()
        with owned(tmp_path / "run", wait=True):
            assert process.poll() is not None or process.wait(1) is not None
