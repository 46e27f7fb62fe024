"""Measure the time, peak memory and FLOP of a function, and the FLOP rate of the machine."""

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

Function = Callable[[], object]
GIB = 2**30
SAMPLE_INTERVAL = 0.02
"""Seconds between samples of the memory in use, on devices that do not record the peak."""
MATRIX_SIDES = {"cuda": 8192, "mps": 4096, "cpu": 1024}
"""Side of the square matrices in `matrix_rate`; larger matrices do not reach a higher rate."""


def synchronize(device: str) -> None:
    """Wait until the device has finished all queued work."""
    if device.startswith("cuda"):
        torch.cuda.synchronize()
    elif device == "mps":
        torch.mps.synchronize()


def time_once(function: Function, device: str) -> float:
    """Return the seconds that `function` takes, with the device synchronised before and after."""
    synchronize(device)
    started = time.perf_counter()
    function()
    synchronize(device)
    return time.perf_counter() - started


def time_interleaved(
    functions: Mapping[str, Function], device: str, repeats: int, warmup: int
) -> dict[str, list[float]]:
    """Time the functions round-robin, so that machine noise affects all of them equally; return seconds by name."""
    for _ in range(warmup):
        for function in functions.values():
            function()
    seconds: dict[str, list[float]] = {name: [] for name in functions}
    for _ in range(repeats):
        for name, function in functions.items():
            seconds[name].append(time_once(function, device))
    return seconds


# Memory


def memory_kind(device: str) -> str:
    """Return what `memory_used` and `peak_memory` measure on this device."""
    if device.startswith("cuda"):
        return "allocated by torch on the GPU"
    return "allocated by Metal" if device == "mps" else "resident memory of the process"


def memory_used(device: str) -> float:
    """Return the GiB in use: the peak so far on a CUDA GPU, otherwise the current use of this process."""
    return (torch.cuda.max_memory_allocated() if device.startswith("cuda") else _used_now(device)) / GIB


def _used_now(device: str) -> int:
    if device == "mps":
        return torch.mps.driver_allocated_memory()
    return psutil.Process().memory_info().rss


@dataclass
class Peak:
    """Peak memory in GiB, set at the end of the `with` block; baseline: memory in use at its start."""

    gib: float = 0.0
    baseline: float = 0.0


@contextmanager
def peak_memory(device: str) -> Iterator[Peak]:
    """Measure the peak memory of the block on the device; on the CPU, the resident memory of the process."""
    if device.startswith("cuda"):
        synchronize(device)
        torch.cuda.reset_peak_memory_stats()
        peak = Peak(baseline=memory_used(device))
        yield peak
        peak.gib = memory_used(device)
        return
    peak = Peak(baseline=memory_used(device))
    ended = threading.Event()

    def sample() -> None:
        while not ended.wait(SAMPLE_INTERVAL):
            peak.gib = max(peak.gib, _used_now(device) / GIB)

    sampler = threading.Thread(target=sample, daemon=True)
    sampler.start()
    try:
        yield peak
    finally:
        ended.set()
        sampler.join()
        peak.gib = max(peak.gib, _used_now(device) / GIB)


# Arithmetic


def count_flop(function: Function) -> int:
    """Return the FLOP of all matrix products and convolutions in `function`, including attention."""
    counter = FlopCounterMode(display=False)
    with sdpa_kernel(SDPBackend.MATH), counter:  # fused attention is not counted on every device
        function()
    return counter.get_total_flops()


def matrix_rate(device: str, dtype: torch.dtype, repeats: int = 8) -> float:
    """Return the FLOP/s of a product of two large square matrices: the upper limit for a training step."""
    side = MATRIX_SIDES[device.split(":")[0]]
    left, right = (torch.randn(side, side, device=device).to(dtype) for _ in range(2))
    [seconds] = time_interleaved({"product": lambda: left @ right}, device, repeats, warmup=2).values()
    return 2 * side**3 / min(seconds)


def profile_function(function: Function) -> Sequence[Any]:
    """Return the events of torch's profiler for `function`, by operator and by `record_function` label."""
    os.environ.setdefault("KINETO_LOG_LEVEL", "99")  # otherwise the profiler prints to stderr at start and stop
    kinds = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if torch.cuda.is_available() else [])]
    with profile(activities=kinds) as profiler:
        function()
    return profiler.key_averages()


def time_fractions_of_parts(events: Sequence[Any], parts: Sequence[str]) -> dict[str, float]:
    """Return the time of each part (a `record_function` label) as a fraction of the time of all `parts`."""
    times = {event.key: _total_time(event) for event in events}
    return _fractions({part: times.get(part, 0.0) for part in parts})


def time_fractions_of_operators(events: Sequence[Any], most: int = 8) -> dict[str, float]:
    """Return the `most` slowest operators, by self time, with their fractions of the self time of all operators."""
    times = {e.key.removeprefix("aten::"): _self_time(e) for e in events if e.key.startswith("aten::")}
    ranked = sorted(_fractions(times).items(), key=lambda item: item[1], reverse=True)
    return dict(ranked[:most])


def _total_time(event: Any) -> float:
    return float(event.device_time_total or event.cpu_time_total)


def _self_time(event: Any) -> float:
    return float(event.self_device_time_total or event.self_cpu_time_total)


def _fractions(times: Mapping[str, float]) -> dict[str, float]:
    total = sum(times.values()) or 1.0
    return {name: value / total for name, value in times.items()}
