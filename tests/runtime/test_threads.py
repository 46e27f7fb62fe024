"""CPU threads: as many as the process may use; they wait passively where other programs need the cores."""

import math
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from retipair.runtime import threads

BUSY = "while True: pass"
CONFIGURE = "import sys; from retipair.runtime import threads; threads.busy_cores = lambda: {busy}; {then}"
DRY_RUN = (
    "from retipair.interfaces.cli import main; main(sys.argv[1:]); import os; print(os.environ.get('OMP_WAIT_POLICY'))"
)


@pytest.fixture
def openmp(monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    """A process that has not loaded torch, on 8 cores, with no choice of the user's."""
    monkeypatch.delitem(sys.modules, "torch")
    monkeypatch.setattr(threads, "_affinity", lambda: list(range(8)))
    monkeypatch.setattr(threads, "cpu_quota", lambda: math.inf)
    for name in ("OMP_WAIT_POLICY", "OMP_NUM_THREADS", "GOMP_SPINCOUNT", "KMP_BLOCKTIME"):
        monkeypatch.setenv(name, "")  # so that what the test sets is undone after it
        monkeypatch.delenv(name)
    return monkeypatch


@pytest.mark.parametrize(
    ("files", "quota"),
    [
        ({"cpu.max": "max 100000\n"}, math.inf),
        ({"cpu.max": "150000 100000\n"}, 1.5),
        ({"cpu/cpu.cfs_quota_us": "-1\n", "cpu/cpu.cfs_period_us": "100000\n"}, math.inf),
        ({"cpu/cpu.cfs_quota_us": "400000\n", "cpu/cpu.cfs_period_us": "100000\n"}, 4),
        ({"cpu/cpu.cfs_quota_us": "400000\n"}, math.inf),
        ({"cpu.max": "something else"}, math.inf),
        ({}, math.inf),
    ],
)
def test_quota_of_a_container(files: dict[str, str], quota: float, tmp_path: Path) -> None:
    for name, text in files.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(text)
    assert threads.cpu_quota(tmp_path) == quota


@pytest.mark.parametrize(("quota", "cores"), [(math.inf, 8), (12.0, 8), (2.0, 2), (1.5, 2), (0.25, 1)])
def test_cores_are_those_of_affinity_and_quota(quota: float, cores: int, openmp: pytest.MonkeyPatch) -> None:
    openmp.setattr(threads, "cpu_quota", lambda: quota)
    assert threads.available_cores() == cores


@pytest.mark.parametrize(
    ("busy", "quota", "user", "policy", "number"),
    [
        (0.2, math.inf, {}, None, None),  # an idle machine keeps OpenMP's defaults
        (1.0, math.inf, {}, "PASSIVE", None),
        (1.0, math.inf, {"OMP_NUM_THREADS": "4"}, None, "4"),  # four cores are left for the busy one
        (5.0, math.inf, {"OMP_NUM_THREADS": "4"}, "PASSIVE", "4"),
        (8.0, math.inf, {"OMP_NUM_THREADS": "1"}, None, "1"),  # a single thread waits for no other
        (8.0, math.inf, {"OMP_WAIT_POLICY": "ACTIVE"}, "ACTIVE", None),
        (8.0, math.inf, {"GOMP_SPINCOUNT": "100"}, None, None),
        (3.0, 2.0, {}, None, "2"),
        (7.0, 2.0, {}, "PASSIVE", "2"),
        (0.0, 2.0, {"OMP_NUM_THREADS": "3"}, None, "3"),
    ],
)
def test_what_is_chosen(
    busy: float,
    quota: float,
    user: dict[str, str],
    policy: str | None,
    number: str | None,
    openmp: pytest.MonkeyPatch,
) -> None:
    openmp.setattr(threads, "busy_cores", lambda: busy)
    openmp.setattr(threads, "cpu_quota", lambda: quota)
    for name, value in user.items():
        openmp.setenv(name, value)
    sentence = threads.configure_threads()
    assert os.environ.get("OMP_WAIT_POLICY") == policy
    assert os.environ.get("OMP_NUM_THREADS") == number
    assert (sentence is not None) == (policy == "PASSIVE" or quota < 8)
    if policy == "PASSIVE":
        assert f"{busy:.1f} of 8 cores" in str(sentence)


def test_nothing_changes_once_torch_is_loaded(openmp: pytest.MonkeyPatch) -> None:
    openmp.setitem(sys.modules, "torch", sys)
    openmp.setattr(threads, "busy_cores", lambda: 8.0)
    assert threads.configure_threads() is None
    assert "OMP_WAIT_POLICY" not in os.environ


@pytest.mark.nightly
@pytest.mark.parametrize(("busy", "policy"), [(0.0, "None"), (64.0, "PASSIVE")])
def test_a_command_chooses_before_it_loads_torch(busy: float, policy: str, tmp_path: Path) -> None:
    code = CONFIGURE.format(busy=busy, then=DRY_RUN)
    environment = {name: value for name, value in os.environ.items() if not name.startswith("OMP_")}
    arguments = [sys.executable, "-c", code, "train", "--data", str(tmp_path / "missing"), "--name", "first"]
    ended = subprocess.run(arguments, env=environment, capture_output=True, text=True, check=True)
    assert ended.stdout.split()[-1] == policy
    assert ("waiting passively" in ended.stderr) == (policy == "PASSIVE")


@pytest.fixture
def hogs() -> Iterator[int]:
    """A process that computes on each core."""
    cores = threads.available_cores()
    started = [subprocess.Popen([sys.executable, "-c", BUSY]) for _ in range(cores)]
    yield cores
    for one in started:
        one.kill()
        one.wait()


def test_busy_cores_are_seen(hogs: int) -> None:
    assert threads.busy_cores() > hogs / 2
