"""A disk that fills: said in a line, nothing older harmed, and the same command goes on when there is space again."""

import os
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from compare import adapter, contents, same
from conftest import train_command
from retipair.interfaces.cli import main
from retipair.runs.run_dir import Run
from retipair.runtime.atomic_io import verify_checksums

Folder = Callable[[str], Path]
QUICK = ("--num_samples", 0, "--augment_variants", 2, "--max_steps", 4)
SIZE = 4 * 2**20
"""Bytes of the disk: enough for the run."""


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Path]:
    """A small disk of its own."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={SIZE}", "tmpfs", folder], capture_output=True)
    if mounted.returncode:
        pytest.skip("only root can mount a small disk")
    yield folder
    subprocess.run(["umount", "--lazy", folder], check=True)


def fill(disk: Path, free: int) -> Path:
    """A file that leaves so many bytes."""
    path = disk / "filler"
    with path.open("wb") as stream:
        there = os.statvfs(disk)
        stream.write(b"0" * max(0, there.f_bavail * there.f_frsize - free))
    return path


def said(capsys: pytest.CaptureFixture[str]) -> str:
    """The last line, which must tell of the disk."""
    line = capsys.readouterr().err.splitlines()[-1]
    assert "No space left" in line, line
    assert "Traceback" not in line
    return line


def test_while_it_encodes(
    disk: Path, base_folder: Folder, prepared: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    command = train_command("exp", base_folder("sd15"), prepared, disk / "r", *QUICK)
    filler = fill(disk, free=8192)
    assert main(command) == 1
    said(capsys)
    filler.unlink()
    assert main(command) == 0


def test_while_it_saves_a_checkpoint(
    disk: Path, base_folder: Folder, prepared: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    command = train_command("exp", base_folder("sd15"), prepared, disk / "r", *QUICK)
    assert main([*command, "--max_steps", "2", "--val_every", "2"]) == 0
    run = disk / "r/out_joint_sd15_cffa_pairs/exp"
    before = contents(run / "latest_checkpoints") | contents(run / "best_checkpoint")
    filler = fill(disk, free=60_000)
    assert main([*command, "--resume", "--val_every", "1"]) == 1
    said(capsys)
    now = contents(run / "latest_checkpoints") | contents(run / "best_checkpoint")
    assert before.items() <= now.items()
    assert all(verify_checksums(checkpoint) is None for checkpoint in Run(run).checkpoints())
    filler.unlink()
    assert main([*command, "--resume", "--val_every", "2"]) == 0
    whole = train_command("exp", base_folder("sd15"), prepared, tmp_path / "w", *QUICK)
    assert main([*whole, "--val_every", "2"]) == 0
    assert same(adapter(run, 4), adapter(tmp_path / "w/out_joint_sd15_cffa_pairs/exp", 4))


@pytest.mark.nightly
def test_while_it_draws(disk: Path, trained: Folder, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    def command(out: Path, amount: int) -> list[str]:
        words = ["generate", "-n", "exp", "--results", trained("sd15"), "--device", "cpu", "--steps", 1]
        return [*map(str, words), "--amount", str(amount), "--out", str(out)]

    assert main(command(disk / "a", 1)) == 0
    before = contents(disk / "a/1")
    filler = fill(disk, free=40_000)
    assert main(command(disk / "a", 20)) == 1
    said(capsys)
    assert contents(disk / "a/1") == before
    filler.unlink()
    assert main(command(disk / "a", 20)) == 0
    assert main(command(tmp_path / "b", 20)) == 0
    ours, theirs = contents(disk / "a"), contents(tmp_path / "b")
    assert ours.keys() == theirs.keys()
    assert all(ours[name] == theirs[name] for name in ours if name != "settings.json")
