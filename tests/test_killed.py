"""Killed at any of its writes, a command that is given again leaves what one leaves that nobody killed."""

import os
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from compare import contents
from eyes import write_raw
from killing import Death, kill_all
from retipair.interfaces.cli import main

Command = Callable[[Path], list[str]]


def aligned(folder: Path, trained: Path) -> tuple[Path, Command]:
    """What an earlier call prepared of raw views, of which since then one pair is gone, one other, one new."""
    raw, before = folder / "raw", folder / "before"
    command = lambda out: ["prepare", str(raw), str(out), "--size", "64", "--workers", "1"]  # noqa: E731
    write_raw(raw, n=5, size=96, jitter=0.3)
    later = shutil.move(raw / "005", folder / "005")
    assert main(command(before)) == 0
    shutil.move(later, raw / "005")
    shutil.rmtree(raw / "001")
    for view in ("01", "02"):
        path = raw / f"002/002_{view}.txt"
        path.write_text("".join(path.read_text().splitlines(keepends=True)[:-1]))
    return before, command


def registered(folder: Path, trained: Path) -> tuple[Path, Command]:
    """Two raw pairs by the matches of a network: one is registered already, but its matches have changed since."""
    raw, before = folder / "raw", folder / "before"
    words = ["register", "--folder", "--workers", "1", "--matches", str(folder)]
    command = lambda out: [*words, str(raw), str(out)]  # noqa: E731
    write_raw(raw, n=2, size=192, jitter=0.3)
    for name in ("001", "002"):
        points = [np.loadtxt(raw / name / f"{name}_{view}.txt") for view in ("01", "02")]
        np.savez(folder / f"{name}.npz", cf=points[0], fa=points[1])
    later = shutil.move(raw / "002", folder / "later")
    assert main(command(before)) == 0
    shutil.move(later, raw / "002")
    points = [np.loadtxt(raw / "001" / f"001_{view}.txt")[:12] for view in ("01", "02")]
    np.savez(folder / "001.npz", cf=points[0], fa=points[1])
    return before, command


def rendered(folder: Path, trained: Path) -> tuple[Path, Command]:
    """Two eyes, to which one is added."""
    before = folder / "before"
    command = lambda out, amount=3: ["phantom", str(out), "--size", "64", "--amount", str(amount)]  # noqa: E731
    assert main(command(before, 2)) == 0
    return before, command


def judged(folder: Path, trained: Path) -> tuple[Path, Command]:
    """Nothing yet of two eyes: one of them passes through the layouts, in this process as in others."""
    eyes, before = folder / "eyes", folder / "before"
    assert main(["phantom", str(eyes), "--size", "64", "--amount", "2"]) == 0
    before.mkdir()
    return before, lambda out: ["evaluate", "--real", str(eyes), "--out", str(out), "--workers", "1"]


def drawn(folder: Path, trained: Path) -> tuple[Path, Command]:
    """One pair, to which two are added."""
    before = folder / "before"
    words = ["generate", "-n", "exp", "--results", str(trained), "--device", "cpu", "--steps", "1"]
    command = lambda out, amount=3: [*words, "--amount", str(amount), "--out", str(out)]  # noqa: E731
    assert main(command(before, 1)) == 0
    return before, command


def drawn_first(folder: Path, trained: Path) -> tuple[Path, Command]:
    """No pair yet."""
    _, command = drawn(folder / "other", trained)
    (folder / "before").mkdir()
    return folder / "before", command


@pytest.mark.parametrize("every", [False, pytest.param(True, marks=pytest.mark.slow)])
@pytest.mark.parametrize(
    "begin",
    [
        *(pytest.param(one, marks=pytest.mark.nightly) for one in (drawn_first, aligned, registered)),
        *(pytest.param(one, marks=pytest.mark.slow) for one in (rendered, judged, drawn)),
    ],
)
def test_at_any_write(
    every: bool,
    begin: Callable[[Path, Path], tuple[Path, Command]],
    trained: Callable[[str], Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    before, command = begin(tmp_path, trained("sd15"))
    whole = shutil.copytree(before, tmp_path / "whole")
    sync, syncs = os.fsync, 0

    def counted(descriptor: int) -> None:
        nonlocal syncs
        syncs += 1
        sync(descriptor)

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", counted)
        assert main(command(whole)) == 0
    assert syncs > 5
    numbers = range(1, syncs + 1) if every else (1, 2, syncs // 2, syncs)
    outs = {number: shutil.copytree(before, tmp_path / f"{number}") for number in numbers}
    kill_all([Death(command(out), "os:fsync", number) for number, out in outs.items()])
    for number, out in outs.items():
        assert main(command(out)) == 0
        made = contents(out)
        assert made.keys() == contents(whole).keys(), number
        others = [name for name, content in contents(whole).items() if made[name] != content]
        assert set(others) <= {"settings.json"}, number  # which says with how many threads
