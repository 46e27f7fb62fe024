"""A clock that jumps: whatever files and the machine say of the time, the same is made, and what is there is kept."""

import ast
import itertools
import os
import time
from collections.abc import Callable
from pathlib import Path

import pytest

import retipair
from compare import adapter, contents, same
from conftest import train_command
from eyes import write_raw
from retipair.interfaces.cli import main

Folder = Callable[[str], Path]
YEARS = (0, 2_000_000_000, 10**9, 4_000_000_000)
"""Seconds since 1970, as a machine with an empty battery or a wrong zone might say one after the other."""


@pytest.fixture
def jumping(monkeypatch: pytest.MonkeyPatch) -> Callable[[], None]:
    """From when it is called on, each look at the clock says another year."""

    def jump() -> None:
        years = itertools.cycle(YEARS)
        monkeypatch.setattr(time, "time", lambda: float(next(years)))
        monkeypatch.setattr(time, "time_ns", lambda: next(years) * 10**9)

    return jump


def test_pairs_are_prepared_alike_and_not_again(
    tmp_path: Path, jumping: Callable[[], None], capsys: pytest.CaptureFixture[str]
) -> None:
    raw = tmp_path / "raw"
    write_raw(raw, n=3, size=96, jitter=0.3)
    flags = ["--size", "64", "--workers", "1"]
    assert main(["prepare", str(raw), str(tmp_path / "a"), *flags]) == 0
    for path, year in zip(sorted(raw.rglob("*.*")), itertools.cycle(YEARS)):
        os.utime(path, (year, year))
    jumping()
    for out in ("a", "b"):
        capsys.readouterr()
        assert main(["prepare", str(raw), str(tmp_path / out), *flags]) == 0
        assert "re-aligning" not in capsys.readouterr().out
    assert contents(tmp_path / "a") == contents(tmp_path / "b")


@pytest.mark.nightly
def test_a_training_goes_on_to_the_bit(
    base_folder: Folder, prepared: Path, tmp_path: Path, jumping: Callable[[], None]
) -> None:
    def command(results: str, *more: object) -> list[str]:
        flags = ("--num_samples", 0, "--augment_variants", 1, *more)
        return train_command("exp", base_folder("sd15"), prepared, tmp_path / results, *flags)

    assert main(command("b")) == 0
    jumping()
    assert main(command("a", "--max_steps", 2)) == 0
    for path, year in zip(sorted((tmp_path / "a").rglob("*")), itertools.cycle(reversed(YEARS))):
        os.utime(path, (year, year))
    assert main(command("a", "--resume")) == 0
    run, whole = (tmp_path / name / "out_joint_sd15_cffa_pairs/exp" for name in "ab")
    assert same(adapter(run, 4), adapter(whole, 4))


def test_nothing_asks_what_time_it_is() -> None:
    """Seconds that pass are told by a clock that cannot be set."""
    asks = {"time.time", "time.time_ns", "datetime.now", "datetime.utcnow", "datetime.today", "date.today"}
    of_files = {"st_mtime", "st_ctime", "st_atime", "getmtime", "getctime"}
    for path in Path(retipair.__file__).parent.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Attribute):
                assert ast.unparse(node) not in asks, f"{path}, line {node.lineno}"
                assert node.attr not in of_files, f"{path}, line {node.lineno}"
