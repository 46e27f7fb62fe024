"""Count the processes of a command and its cores, and choose the threads of torch, before torch is loaded.

The threads are chosen by their number and by how they wait for one another.

By default, OpenMP threads spin: a waiting thread keeps its core busy. This is fastest on an idle machine. If other
programs use the same cores, a spinning thread takes time from the thread that it waits for, and a training step takes
several times as long. Threads that wait passively (sleep) lose little time on a busy machine, but are slower on an idle
one. See docs/benchmarks.md for figures.
"""

import math
import os
import sys
from pathlib import Path

import psutil

CGROUP = Path("/sys/fs/cgroup")
_INTERVAL = 0.2
"""Seconds for which the load of the cores is measured."""
_TOLERATED = 0.3
"""In cores. If other programs take more than this from the cores that the threads need, the threads wait passively.

On an idle machine, other programs take less.
"""
_WAIT_POLICY = "OMP_WAIT_POLICY"
_NUM_THREADS = "OMP_NUM_THREADS"
_WAIT_VARIABLES = {_WAIT_POLICY, "GOMP_SPINCOUNT", "KMP_BLOCKTIME"}
"""Environment variables by which users choose how threads wait; if one is set, that choice is kept."""


def process_count() -> int:
    """Return the number of processes that `accelerate launch` started; 1 without it."""
    return int(os.environ.get("WORLD_SIZE", "1"))


def available_cores() -> int:
    """Return the number of CPU cores that this process may use, at least 1.

    It is the number of cores in the CPU affinity of the process. If the CPU quota of its container is lower, it is this
    quota, rounded up.
    """
    return max(1, math.ceil(min(len(_affinity()), cpu_quota())))


def cpu_quota(cgroup: Path = CGROUP) -> float:
    """Return the CPU quota of the container in which the process runs, in cores, or infinity if there is none.

    cgroup: the folder of the cgroup file system, version 2 or 1, which states the quota.
    """
    try:
        if (limits := cgroup / "cpu.max").is_file():
            quota, period = limits.read_text().split()
        else:
            quota, period = ((cgroup / "cpu" / f"cpu.cfs_{name}_us").read_text() for name in ("quota", "period"))
        return int(quota) / int(period) if int(quota) > 0 else math.inf
    except (OSError, ValueError):  # no cgroup here, or "max"
        return math.inf


def configure_threads() -> str | None:
    """Set OMP_NUM_THREADS and OMP_WAIT_POLICY for this process and its children if OpenMP's defaults do not suit.

    Variables that the user has set are not changed. Returns a sentence that describes the choice, or None if the
    defaults are kept. The function does nothing after torch is loaded, because OpenMP reads these variables when torch
    is loaded.
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
    """Measure for 0.2 s how many of the cores in this process's affinity are busy, as a fractional number.

    This process sleeps during the measurement. The result is therefore the load that other programs cause.
    """
    percent = psutil.cpu_percent(interval=_INTERVAL, percpu=True)
    return sum(percent[core] for core in _affinity() if core < len(percent)) / 100


def _affinity() -> list[int]:
    """Return the indices of the cores on which this process may run.

    These are all cores if the operating system has no CPU affinity (macOS).
    """
    if hasattr(os, "sched_getaffinity"):
        return sorted(os.sched_getaffinity(0))
    return list(range(os.cpu_count() or 1))
