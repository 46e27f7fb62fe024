"""What work costs: its time beside other work's, its peak of memory, its arithmetic, and the machine's own limit."""

import os
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import psutil
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.profiler import ProfilerActivity, profile
from torch.utils.flop_counter import FlopCounterMode

Work = Callable[[], object]
GIB = 2**30
LOOK_EVERY = 0.02
"""Seconds between looks at a process's memory, where the device keeps no account of its own."""
SIDES = {"cuda": 8192, "mps": 4096, "cpu": 1024}
"""Of the square matrices whose product is the limit: large enough that larger ones are no faster."""


def synchronize(device: str) -> None:
    """Wait until the device has done what it was told."""
    if device.startswith("cuda"):
        torch.cuda.synchronize()
    elif device == "mps":
        torch.mps.synchronize()


def time_once(work: Work, device: str) -> float:
    synchronize(device)
    started = time.perf_counter()
    work()
    synchronize(device)
    return time.perf_counter() - started


def time_interleaved(works: Mapping[str, Work], device: str, repeats: int, warmup: int) -> dict[str, list[float]]:
    """Seconds of each work, by name: in every round each takes its turn, so that a machine's moods strike all alike."""
    for _ in range(warmup):
        for work in works.values():
            work()
    seconds: dict[str, list[float]] = {name: [] for name in works}
    for _ in range(repeats):
        for name, work in works.items():
            seconds[name].append(time_once(work, device))
    return seconds


# Memory


def memory_kind(device: str) -> str:
    """Name what the figures of used memory count on this device."""
    if device.startswith("cuda"):
        return "allocated by torch on the GPU"
    return "allocated by Metal" if device == "mps" else "resident memory of the process"


def memory_used(device: str) -> float:
    """GiB in use: the most so far on the GPU, or what this process has now."""
    return (torch.cuda.max_memory_allocated() if device.startswith("cuda") else _used_now(device)) / GIB


def _used_now(device: str) -> int:
    if device == "mps":
        return torch.mps.driver_allocated_memory()
    return psutil.Process().memory_info().rss


@dataclass
class Peak:
    """GiB, once its `with` has ended; floor: what was in use before."""

    gib: float = 0.0
    floor: float = 0.0


@contextmanager
def peak_memory(device: str) -> Iterator[Peak]:
    """The most that is in use on the device inside; on the CPU that of this process, all libraries included."""
    if device.startswith("cuda"):
        synchronize(device)
        torch.cuda.reset_peak_memory_stats()
        peak = Peak(floor=memory_used(device))
        yield peak
        peak.gib = memory_used(device)
        return
    peak = Peak(floor=memory_used(device))
    ended = threading.Event()

    def look() -> None:
        while not ended.wait(LOOK_EVERY):
            peak.gib = max(peak.gib, _used_now(device) / GIB)

    watcher = threading.Thread(target=look, daemon=True)
    watcher.start()
    try:
        yield peak
    finally:
        ended.set()
        watcher.join()
        peak.gib = max(peak.gib, _used_now(device) / GIB)


# Arithmetic


def count_flop(work: Work) -> int:
    """Floating-point operations of the matrix products and convolutions in this work, attention's too."""
    counter = FlopCounterMode(display=False)
    with sdpa_kernel(SDPBackend.MATH), counter:  # fused attention is not counted on every device
        work()
    return counter.get_total_flops()


def matrix_rate(device: str, dtype: torch.dtype, repeats: int = 8) -> float:
    """FLOP a second of the machine's own product of two large square matrices: the limit to hold a step against."""
    side = SIDES[device.split(":")[0]]
    left, right = (torch.randn(side, side, device=device).to(dtype) for _ in range(2))
    [seconds] = time_interleaved({"product": lambda: left @ right}, device, repeats, warmup=2).values()
    return 2 * side**3 / min(seconds)


def profile_work(work: Work) -> Sequence[Any]:
    """What torch's profiler saw of a work, by operator and by marked part: for the shares below."""
    os.environ.setdefault("KINETO_LOG_LEVEL", "99")  # else the profiler prints to stderr when it starts and stops
    kinds = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if torch.cuda.is_available() else [])]
    with profile(activities=kinds) as seen:
        work()
    return seen.key_averages()


def time_fractions_of_parts(events: Sequence[Any], parts: Sequence[str]) -> dict[str, float]:
    """Share of a work's time that each of its parts takes, which it marks with `record_function`."""
    took = {event.key: _total(event) for event in events}
    return _fractions({part: took.get(part, 0.0) for part in parts})


def time_fractions_of_operators(events: Sequence[Any], most: int = 8) -> dict[str, float]:
    """Share of a work's time of the operators that take most, those they call not counted."""
    took = {e.key.removeprefix("aten::"): _own(e) for e in events if e.key.startswith("aten::")}
    ranked = sorted(_fractions(took).items(), key=lambda one: one[1], reverse=True)
    return dict(ranked[:most])


def _total(event: Any) -> float:
    return float(event.device_time_total or event.cpu_time_total)


def _own(event: Any) -> float:
    return float(event.self_device_time_total or event.self_cpu_time_total)


def _fractions(took: Mapping[str, float]) -> dict[str, float]:
    whole = sum(took.values()) or 1.0
    return {name: value / whole for name, value in took.items()}
