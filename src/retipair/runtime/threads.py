"""Choose the number of CPU threads and how they wait for one another, before torch is loaded.

OpenMP threads spin while they wait, which is fastest on an idle machine. If other programs use the same cores, a
spinning thread takes time from the thread that it waits for, and a training step takes several times as long. Threads
that wait passively (sleep) lose little then, but are slower on an idle machine. See docs/benchmarks.md for figures.
"""

import math
import os
import sys
from pathlib import Path

import psutil

CGROUP = Path("/sys/fs/cgroup")
_INTERVAL = 0.2
"""Seconds over which the load of the cores is measured."""
_TOLERATED = 0.3
"""Threads spin only if other programs occupy at most this many of the cores that the threads need. On an idle machine,
other programs occupy less."""
_WAIT_POLICY = "OMP_WAIT_POLICY"
_NUM_THREADS = "OMP_NUM_THREADS"
_WAIT_VARIABLES = {_WAIT_POLICY, "GOMP_SPINCOUNT", "KMP_BLOCKTIME"}
"""If one of these is set, the user has chosen how threads wait."""


def available_cores() -> int:
    """Return the number of cores this process may use, at least 1: its CPU affinity, limited by the cgroup's quota."""
    return max(1, math.ceil(min(len(_affinity()), cpu_quota())))


def cpu_quota(cgroup: Path = CGROUP) -> float:
    """Return the CPU time a container may use, in cores; infinity without a limit (cgroup v2, else v1)."""
    try:
        if (limits := cgroup / "cpu.max").is_file():
            quota, period = limits.read_text().split()
        else:
            quota, period = ((cgroup / "cpu" / f"cpu.cfs_{name}_us").read_text() for name in ("quota", "period"))
        return int(quota) / int(period) if int(quota) > 0 else math.inf
    except (OSError, ValueError):  # no cgroup here, or "max"
        return math.inf


def configure_threads() -> str | None:
    """Set OMP_NUM_THREADS and OMP_WAIT_POLICY for this process and its children, unless the user has set them.

    Returns a sentence that describes the choice, or None for OpenMP's defaults. Has no effect after torch is loaded,
    which is when OpenMP reads its environment.
    """
    if "torch" in sys.modules:
        return None
    cores = available_cores()
    if limited := cores < len(_affinity()):
        os.environ.setdefault(_NUM_THREADS, str(cores))
    chosen = os.environ.get(_NUM_THREADS, "")
    threads = int(chosen) if chosen.isdigit() else cores
    busy = 0.0 if threads == 1 or _WAIT_VARIABLES & set(os.environ) else busy_cores()
    if busy > len(_affinity()) - threads + _TOLERATED:
        os.environ[_WAIT_POLICY] = "PASSIVE"
        return (
            f"other programs keep {busy:.1f} of {len(_affinity())} cores busy: using {threads} threads, waiting "
            f"passively ({_WAIT_POLICY}=PASSIVE)"
        )
    return f"this container may use {cores} cores: using {threads} threads" if limited else None


def busy_cores() -> float:
    """Return the number of cores that other programs keep busy, of those this process may use, measured over 0.2 s."""
    percent = psutil.cpu_percent(interval=_INTERVAL, percpu=True)
    return sum(percent[core] for core in _affinity() if core < len(percent)) / 100


def _affinity() -> list[int]:
    """Return the numbers of the cores this process may run on; all cores if the system has no affinity (macOS)."""
    if hasattr(os, "sched_getaffinity"):
        return sorted(os.sched_getaffinity(0))
    return list(range(os.cpu_count() or 1))
