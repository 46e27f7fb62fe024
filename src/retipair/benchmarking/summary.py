"""Figures of a benchmark, and how they are printed."""

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
    """What was measured of one kind of work, done again and again.

    unit, pairs: what one repeat is, and how many pairs are in it. seconds, other: of each repeat, ours and what it was
    held against. other_phases: medians of the latter's parts. start: seconds from nothing loaded to the first repeat.
    memory_gib: peak by phase. flop: of one repeat, None where nobody counts them; dtype: the arithmetic they are in.
    shares, operators: of the time, by part of a step and by operator.
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
        """Note the peak of what is done inside."""
        with peak_memory(device) as peak:
            yield
        self.memory_gib[phase] = peak.gib


def figures_of(config: BenchConfig, cost: Cost, limit: float) -> dict[str, Any]:
    """What --json holds: settings, machine, medians, and each beside its limit."""
    took = median(cost.seconds)
    figures: dict[str, Any] = {
        "schema": SCHEMA,
        "what": config.what,
        "unit": cost.unit,
        "milliseconds": round(1000 * took, 2),
        "pairs_per_second": round(cost.pairs / took, 4),
        "seconds": [round(value, 5) for value in cost.seconds],
        "memory_gib": {name: round(value, 3) for name, value in cost.memory_gib.items()},
        "matrix_tflops": round(limit / 1e12, 4),
    }
    if cost.flop is not None:
        rate = cost.flop / took
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


def _rounded(shares: Mapping[str, float]) -> dict[str, float]:
    return {name: round(share, 4) for name, share in shares.items()}


def print_figures(figures: Mapping[str, Any]) -> None:
    """The same for the eye."""
    settings, machine = figures["settings"], figures["machine"]
    where = machine["gpu"] or f"CPU, {machine['threads']} threads"
    lines = {
        f"{figures['what']}, {settings['base']}": f"{settings['precision']} on {settings['device']} ({where})",
        f"a {figures['unit']}": f"{figures['milliseconds']:.1f} ms; {figures['pairs_per_second']:.3g} pairs/s",
    }
    if "tflop" in figures:
        lines["arithmetic"] = (
            f"{figures['tflop']:.4g} TFLOP at {figures['tflops']:.3g} TFLOP/s, "
            f"{figures['share_of_matrix']:.0%} of a matrix product's {figures['matrix_tflops']:.3g}"
        )
    memory = ", ".join(f"{name} {gib:.2f} GiB" for name, gib in figures["memory_gib"].items())
    device = "cpu" if figures["what"] == "evaluate" else settings["device"]
    lines["memory at most"] = f"{memory} ({memory_kind(device)})"
    lines |= {f"where the time goes, {kind}": _listed(figures[kind]) for kind in ("shares", "operators")}
    if "ratio" in figures:
        least, most = min(figures["ratios"]), max(figures["ratios"])
        lines[f"{settings['against']} takes"] = (
            f"{figures['against_milliseconds']:.1f} ms, {figures['ratio']:.3f} times ours ({least:.3f} to {most:.3f})"
        )
        phases = figures["against_phases_milliseconds"]
        lines["of these"] = ", ".join(f"{name} {took:.1f} ms" for name, took in phases.items())
    lines["from nothing to the first"] = ", ".join(f"{k} {v:.2f} s" for k, v in figures["start_seconds"].items())
    for name, text in lines.items():
        if text:
            print(f"{name:34} {text}")


def _listed(shares: Mapping[str, float]) -> str:
    return ", ".join(f"{name} {share:.0%}" for name, share in shares.items())
