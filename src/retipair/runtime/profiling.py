"""Measure the time, the peak memory and the floating-point operations (FLOP) of a function.

The module also measures how many FLOP per second the machine can reach.
"""

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
"""Seconds between measurements of the memory in use, on devices that do not record the peak themselves."""
MATRIX_SIDES = {"cuda": 8192, "mps": 4096, "cpu": 1024}
"""Rows and columns of the matrices that `matrix_rate` multiplies; larger matrices reach no higher rate."""


def synchronize(device: str) -> None:
    """Wait until the device has finished all queued work."""
    if device.startswith("cuda"):
        torch.cuda.synchronize()
    elif device == "mps":
        torch.mps.synchronize()


def time_once(function: Function, device: str) -> float:
    """Return the seconds that one call of `function` takes, including all work that it queues on the device."""
    synchronize(device)
    started = time.perf_counter()
    function()
    synchronize(device)
    return time.perf_counter() - started


def time_interleaved(
    functions: Mapping[str, Function], device: str, repeats: int, warmup: int
) -> dict[str, list[float]]:
    """Return the seconds of each call of each function, by name.

    The functions are called in turn, so that slow phases of the machine affect all of them equally.
    repeats: the number of timed calls of each function.
    warmup: the number of calls of each function that are not timed, before the timed calls.
    """
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
    """Return a phrase that states which memory `memory_used` and `peak_memory` measure on this device."""
    if device.startswith("cuda"):
        return "allocated by torch on the GPU"
    return "allocated by Metal" if device == "mps" else "resident memory of the process"


def memory_used(device: str) -> float:
    """Return the memory that this process uses, in GiB. `memory_kind` describes which memory is measured.

    On a CUDA GPU, this is the peak since the last reset; on other devices, it is the memory in use now.
    """
    return (torch.cuda.max_memory_allocated() if device.startswith("cuda") else _used_now(device)) / GIB


def _used_now(device: str) -> int:
    if device == "mps":
        return torch.mps.driver_allocated_memory()
    return psutil.Process().memory_info().rss


@dataclass
class Peak:
    """Result of `peak_memory`.

    gib: the peak memory in GiB, final at the end of the `with` block.
    baseline: the memory in use at the start of the block, in GiB.
    """

    gib: float = 0.0
    baseline: float = 0.0


@contextmanager
def peak_memory(device: str) -> Iterator[Peak]:
    """Measure the peak memory during the `with` block. `memory_kind` describes which memory is measured."""
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
    """Return the number of floating-point operations (FLOP) of one call of `function`.

    Only matrix products and convolutions are counted, including the matrix products of attention.
    """
    counter = FlopCounterMode(display=False)
    with sdpa_kernel(SDPBackend.MATH), counter:  # the counter misses fused attention on some devices
        function()
    return counter.get_total_flops()


def matrix_rate(device: str, dtype: torch.dtype, repeats: int = 8) -> float:
    """Return the FLOP per second of a product of two large matrices, the highest rate that training could reach."""
    side = MATRIX_SIDES[device.split(":")[0]]
    left, right = (torch.randn(side, side, device=device).to(dtype) for _ in range(2))
    [seconds] = time_interleaved({"product": lambda: left @ right}, device, repeats, warmup=2).values()
    return 2 * side**3 / min(seconds)


def profile_function(function: Function) -> Sequence[Any]:
    """Profile one call of `function`; return one event of torch's profiler per operator and `record_function` label."""
    os.environ.setdefault("KINETO_LOG_LEVEL", "99")  # prevents messages on standard error at start and stop
    kinds = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if torch.cuda.is_available() else [])]
    with profile(activities=kinds) as profiler:
        function()
    return profiler.key_averages()


def time_fractions_of_parts(events: Sequence[Any], parts: Sequence[str]) -> dict[str, float]:
    """Return the time of each part as a fraction of the sum of the times of all parts, by part.

    events: the result of `profile_function`.
    parts: labels that the code passes to `record_function`.
    """
    times = {event.key: _total_time(event) for event in events}
    return _fractions({part: times.get(part, 0.0) for part in parts})


def time_fractions_of_operators(events: Sequence[Any], most: int = 8) -> dict[str, float]:
    """Return the time fractions of the slowest operators, by name, the slowest first.

    The time of an operator does not include the operators that it calls. Each time is divided by the total time of all
    operators.
    events: the result of `profile_function`.
    most: the maximum number of operators to return.
    """
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
