"""Uploads of a page are deleted at its end, and those of a killed page when the next one starts."""

import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

import retipair
from retipair.interfaces.app.temporary import PREFIX, temporary_folder

SCRIPT = """
import time
from retipair.interfaces.app.temporary import temporary_folder
with temporary_folder() as folder:
    (folder / "photo.png").touch()
    print(folder, flush=True)
    time.sleep(60)
"""


@pytest.fixture(autouse=True)
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    return tmp_path


@contextmanager
def used_by_another(place: Path) -> Iterator[Path]:
    """The folder of another process, which is killed at the end."""
    environment = {**os.environ, "PYTHONPATH": str(Path(retipair.__file__).parent.parent), "TMPDIR": str(place)}
    command = [sys.executable, "-c", SCRIPT]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment) as process:
        try:
            assert process.stdout is not None
            yield Path(process.stdout.readline().strip())
        finally:
            process.send_signal(signal.SIGKILL)


def test_a_folder_is_deleted_at_the_end(place: Path) -> None:
    with temporary_folder() as folder:
        (folder / "photo.png").touch()
        assert folder.parent == place
    assert list(place.iterdir()) == []


def test_a_folder_in_use_is_kept_and_that_of_a_killed_process_deleted(place: Path) -> None:
    with used_by_another(place) as other, temporary_folder():
        assert (other / "photo.png").is_file()
    assert (other / "photo.png").is_file()  # after SIGKILL
    with temporary_folder() as folder:
        assert list(place.iterdir()) == [folder]


def test_links_and_empty_folders_are_kept(place: Path) -> None:
    """A link may lead to any folder; an empty folder may be that of a command that has just started."""
    kept = place / "mine/photo.png"
    kept.parent.mkdir()
    kept.touch()
    (place / f"{PREFIX}link").symlink_to(kept.parent)
    (place / f"{PREFIX}new").mkdir()
    with temporary_folder():
        assert kept.is_file()
        assert (place / f"{PREFIX}new").is_dir()
