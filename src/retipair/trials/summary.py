"""Summarise and print the results of a benchmark."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from statistics import median
from typing import Any

import torch

from retipair.config import BenchConfig
from retipair.models.device import choose_device
from retipair.runs.run_dir import environment
from retipair.runtime.profiling import (
    memory_kind,
    peak_memory,
)
from retipair.runtime.schema import to_values

SCHEMA = "retipair.bench/1"


@dataclass
class Cost:
    """Measurements of one kind of work over several repeats.

    unit: what one repeat processes: "step", "pair" or "pairs".
    pairs: the number of pairs that one repeat processes.
    dtype: the precision of the computation.
    seconds: the duration of each repeat of retipair, in seconds.
    other: the duration of each repeat of the baseline that --against names, in seconds.
    other_phases: the median duration of each phase of the baseline, in seconds.
    start: the seconds to load everything and run the first repeat (minimum of three), for retipair and the baseline.
    memory_gib: the peak memory of each phase.
    flop: the number of floating-point operations in one repeat; None if not counted.
    shares: the fraction of the time that each part of a training step takes.
    operators: the fraction of the time that each operator takes.
    """

    unit: str
    pairs: int
    dtype: torch.dtype = torch.float32
    seconds: list[float] = field(default_factory=list)
    other: list[float] = field(default_factory=list)
    other_phases: dict[str, float] = field(default_factory=dict)
    start: dict[str, float] = field(default_factory=dict)
    memory_gib: dict[str, float] = field(default_factory=dict)
    flop: int | None = None
    shares: dict[str, float] = field(default_factory=dict)
    operators: dict[str, float] = field(default_factory=dict)

    @contextmanager
    def memory_of(self, phase: str, device: str) -> Iterator[None]:
        """Record the peak memory of the `with` block, in GiB, as that of the phase."""
        with peak_memory(device) as peak:
            yield
        self.memory_gib[phase] = peak.gib


def summarize_cost(config: BenchConfig, cost: Cost, limit: float) -> dict[str, Any]:
    """Return the JSON values that --json saves: the results, the settings, and a description of the machine.

    limit: the measured rate of a matrix product on the device, in FLOP/s.
    """
    duration = median(cost.seconds)
    figures: dict[str, Any] = {
        "schema": SCHEMA,
        "what": config.what,
        "unit": cost.unit,
        "milliseconds": round(1000 * duration, 2),
        "pairs_per_second": round(cost.pairs / duration, 4),
        "seconds": [round(value, 5) for value in cost.seconds],
        "memory_gib": {name: round(value, 3) for name, value in cost.memory_gib.items()},
        "matrix_tflops": round(limit / 1e12, 4),
    }
    if cost.flop is not None:
        rate = cost.flop / duration
        figures |= {"tflop": round(cost.flop / 1e12, 5), "tflops": round(rate / 1e12, 4)}
        figures["share_of_matrix"] = round(rate / limit, 4)
    if cost.other:
        ratios = [other / ours for ours, other in zip(cost.seconds, cost.other, strict=True)]
        figures |= {"ratio": round(median(ratios), 4), "ratios": [round(value, 4) for value in ratios]}
        figures["against_milliseconds"] = round(1000 * median(cost.other), 2)
        figures["against_phases_milliseconds"] = {k: round(1000 * v, 2) for k, v in cost.other_phases.items()}
    figures |= {"start_seconds": {name: round(value, 3) for name, value in cost.start.items()}}
    figures |= {"shares": _rounded(cost.shares), "operators": _rounded(cost.operators)}
    precision = str(cost.dtype).removeprefix("torch.")
    settings = to_values(config) | {"precision": precision, "device": choose_device(config.device)}
    return figures | {"settings": settings, "machine": environment()}


def _rounded(fractions: Mapping[str, float]) -> dict[str, float]:
    return {name: round(fraction, 4) for name, fraction in fractions.items()}


def print_figures(figures: Mapping[str, Any]) -> None:
    """Print the results as a table."""
    settings, machine = figures["settings"], figures["machine"]
    where = machine["gpu"] or f"CPU, {machine['threads']} threads"
    work = "the pairs of a repeat" if figures["unit"] == "pairs" else f"a {figures['unit']}"
    lines = {
        f"{figures['what']}, {settings['base']}": f"{settings['precision']} on {settings['device']} ({where})",
        work: f"{figures['milliseconds']:.1f} ms; {figures['pairs_per_second']:.3g} pairs/s",
    }
    if "tflop" in figures:
        lines["arithmetic"] = (
            f"{figures['tflop']:.4g} TFLOP at {figures['tflops']:.3g} TFLOP/s, "
            f"{figures['share_of_matrix']:.0%} of the {figures['matrix_tflops']:.3g} TFLOP/s of a matrix product"
        )
    memory = ", ".join(f"{name} {gib:.2f} GiB" for name, gib in figures["memory_gib"].items())
    device = "cpu" if figures["what"] == "evaluate" else settings["device"]
    lines["peak memory"] = f"{memory} ({memory_kind(device)})"
    lines["time by part of the step"] = _listed(figures["shares"])
    lines["time by operator"] = _listed(figures["operators"])
    if "ratio" in figures:
        lowest, highest = min(figures["ratios"]), max(figures["ratios"])
        lines[f"{settings['against']} takes"] = (
            f"{figures['against_milliseconds']:.1f} ms, {figures['ratio']:.3f} times as long as retipair "
            f"({lowest:.3f} to {highest:.3f})"
        )
        phases = figures["against_phases_milliseconds"]
        lines[f"phases of {settings['against']}"] = ", ".join(
            f"{name} {duration:.1f} ms" for name, duration in phases.items()
        )
    programs = {"ours": "retipair", "other": settings["against"]}
    lines["loading and first result"] = ", ".join(
        f"{programs[name]} {seconds:.2f} s" for name, seconds in figures["start_seconds"].items()
    )
    for name, text in lines.items():
        if text:
            print(f"{name:34} {text}")


def _listed(fractions: Mapping[str, float]) -> str:
    return ", ".join(f"{name} {fraction:.0%}" for name, fraction in fractions.items())
