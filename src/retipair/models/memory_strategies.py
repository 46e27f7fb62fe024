"""Select how to save memory: gradient checkpointing and quantized weights."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from retipair.models.quantization import Stored, bitsandbytes
from retipair.runtime.errors import SettingError, UserError
from retipair.runtime.profiling import GIB


@dataclass(frozen=True)
class MemoryStrategy:
    """A way to save memory.

    checkpointing: whether training uses gradient checkpointing.
    stored: the format in which the quantized weights of the UNet are stored; None for no quantization.
    """

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
"""Strategies for training. Each one needs less memory in a step than the one before it, but is slower.

int8 is not included, because it needs as much memory as fp8.
"""
GENERATION_STRATEGIES = tuple(dict.fromkeys(replace(s, checkpointing=False) for s in TRAINING_STRATEGIES))
"""Strategies for generation, in the same order. Without backward pass, gradient checkpointing has no use."""
PRESETS = ("24", "16", "12", "8")
FILLED = 0.9
"""Fraction of the device memory that an estimate may fill. The rest is a reserve
for the error of the estimate, and for memory that the estimate does not include."""


def select_strategy(
    memory: str,
    strategies: Sequence[MemoryStrategy],
    bytes_of: Callable[[MemoryStrategy], int],
    free: Callable[[], int],
    advice: str,
) -> MemoryStrategy:
    """Return the first strategy whose estimated memory fits the value of --memory.

    memory: a number of GiB, or "auto" for the free memory of the device. "auto" considers only strategies without
    quantization; if none of these fits, it selects the last of them.
    strategies: the strategies to choose from, from the fastest to the one that needs the least memory.
    bytes_of: a function that returns the estimated bytes of a strategy. It takes a second or more.
    free: a function that returns the free bytes of the device.
    advice: the text at the end of the error message.
    Raises UserError if no strategy fits into a number of GiB.
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
        f"10 % of {memory} GiB must stay free; {advice}",
    )


def supported_on(device: str, strategies: Sequence[MemoryStrategy]) -> list[MemoryStrategy]:
    """Return the strategies that the device supports. MPS supports neither fp8 nor nf4."""
    return [strategy for strategy in strategies if device != "mps" or not strategy.stored]


def require_backend(strategy: MemoryStrategy) -> MemoryStrategy:
    """Return the strategy unchanged. Raises UserError if the strategy needs a library that is not installed."""
    if strategy.stored == "nf4":
        bitsandbytes()
    return strategy


def next_smaller_preset(
    strategy: MemoryStrategy, strategies: Sequence[MemoryStrategy], bytes_of: Callable[[MemoryStrategy], int]
) -> str | None:
    """Return the largest value of --memory in PRESETS that selects a strategy needing less memory than `strategy`.

    Returns None if there is no such value. strategies, bytes_of: see `select_strategy`.
    """
    for memory in PRESETS:
        try:
            selected = select_strategy(memory, strategies, bytes_of, lambda: 0, "")
        except UserError:
            return None
        if strategies.index(selected) > strategies.index(strategy):
            return memory
    return None
