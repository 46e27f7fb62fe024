"""Select how to save memory: gradient checkpointing and quantized weights."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from retipair.models.quantization import Stored, bitsandbytes
from retipair.runtime.errors import SettingError, UserError
from retipair.runtime.profiling import GIB


@dataclass(frozen=True)
class MemoryStrategy:
    """How to save memory. stored: quantized storage of the base's weights; None keeps them as loaded."""

    checkpointing: bool = False
    stored: Stored | None = None

    @property
    def name(self) -> str:
        parts = ["gradient checkpointing"] * self.checkpointing
        parts += [f"weights in {self.stored}"] if self.stored else []
        return " and ".join(parts) or "no memory savings"


TRAINING_STRATEGIES = (
    MemoryStrategy(),
    MemoryStrategy(checkpointing=True),
    MemoryStrategy(True, "fp8"),
    MemoryStrategy(True, "nf4"),
)
"""From the fastest to the smallest. int8 is omitted, because it is no smaller than fp8."""
GENERATION_STRATEGIES = tuple(dict.fromkeys(replace(s, checkpointing=False) for s in TRAINING_STRATEGIES))
"""Strategies for generation, which has no backward pass and thus no gradient checkpointing."""
PRESETS = ("24", "16", "12", "8")
FILLED = 0.9
"""Usable fraction of the device memory; the rest is for estimation error, the CUDA context and fragmentation."""


def select_strategy(
    memory: str,
    strategies: Sequence[MemoryStrategy],
    bytes_of: Callable[[MemoryStrategy], int],
    free: Callable[[], int],
    advice: str,
) -> MemoryStrategy:
    """Return the first strategy whose estimate fits into `memory` GiB.

    "auto" considers only unquantized strategies and fits them into `free` bytes; if none fits, it returns the smallest.
    Raises UserError, with `advice`, if none fits a number of GiB. An estimate takes a second or more, so it is computed
    only when needed.
    """
    if memory == "auto":
        unquantized = [s for s in strategies if s.stored is None] or list(strategies[:1])
        limit = FILLED * free() if len(unquantized) > 1 else 0
        return next((s for s in unquantized[:-1] if bytes_of(s) <= limit), unquantized[-1])
    for strategy in strategies:
        if bytes_of(strategy) <= FILLED * int(memory) * GIB:
            return strategy
    smallest = min(strategies, key=bytes_of)
    raise SettingError(
        "memory",
        memory,
        f"{bytes_of(smallest) / GIB:.1f} GiB is the smallest estimate, with {smallest.name}, and "
        f"10 % must stay free; {advice}",
    )


def supported_on(device: str, strategies: Sequence[MemoryStrategy]) -> list[MemoryStrategy]:
    """Return the strategies that the device supports: MPS has no fp8 or nf4."""
    return [strategy for strategy in strategies if device != "mps" or not strategy.stored]


def require_backend(strategy: MemoryStrategy) -> MemoryStrategy:
    """Return the strategy unchanged. Raises UserError if a library that it needs is not installed."""
    if strategy.stored == "nf4":
        bitsandbytes()
    return strategy


def next_smaller_preset(
    strategy: MemoryStrategy, strategies: Sequence[MemoryStrategy], bytes_of: Callable[[MemoryStrategy], int]
) -> str | None:
    """Return the largest preset that selects a smaller strategy than this one; None if there is none."""
    for memory in PRESETS:
        try:
            selected = select_strategy(memory, strategies, bytes_of, lambda: 0, "")
        except UserError:
            return None
        if strategies.index(selected) > strategies.index(strategy):
            return memory
    return None
