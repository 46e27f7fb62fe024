"""Memory strategies: their order, which one --memory selects, and the estimates."""

from collections.abc import Callable, Sequence

import pytest
import torch

from retipair.models.base import open_base
from retipair.models.memory import Adapter, Workload, count_step, generation_memory, training_memory
from retipair.models.memory_strategies import (
    GENERATION_STRATEGIES,
    PRESETS,
    TRAINING_STRATEGIES,
    MemoryStrategy,
    next_smaller_preset,
    select_strategy,
)
from retipair.runtime.errors import UserError
from retipair.runtime.profiling import GIB

NAMES = ["no memory savings", "gradient checkpointing"] + [
    f"gradient checkpointing and weights in {bits}" for bits in ("fp8", "nf4")
]
LATENTS = {"sdxl": (1, 4, 64, 128), "sd15": (1, 4, 64, 64)}


def work(base: str, latents: Sequence[int], dtype: torch.dtype = torch.bfloat16, device: str = "cuda") -> Workload:
    adapter = Adapter(16, 16, "attention", dora=False, rslora=False)
    return Workload(open_base(f"random:{base}"), adapter, tuple(latents), dtype, device)  # type: ignore[arg-type]


def sized(*gib: float) -> Callable[[MemoryStrategy], int]:
    """Return estimates for the training strategies in their order."""
    return lambda strategy: round(gib[TRAINING_STRATEGIES.index(strategy)] * GIB)


@pytest.mark.nightly
def test_the_table_goes_from_the_fastest_to_the_smallest() -> None:
    assert [way.name for way in TRAINING_STRATEGIES] == NAMES
    assert [way.name for way in GENERATION_STRATEGIES] == ["no memory savings", "weights in fp8", "weights in nf4"]
    small = work("tiny-sdxl", (8, 4, 16, 32))
    for phase in ("load", "step"):
        needed = [training_memory(small, way)[phase] for way in TRAINING_STRATEGIES]
        assert needed == sorted(needed, reverse=True)
        assert len(set(needed)) >= 3


@pytest.mark.nightly
@pytest.mark.parametrize(
    ("memory", "way"), [("24", 0), ("16", 0), ("12", 0), pytest.param("8", 2, marks=pytest.mark.slow)]
)
def test_what_each_number_leads_to_for_sdxl(memory: str, way: int) -> None:
    """At 1024x512, one pair a step, bf16 on CUDA."""
    full = work("sdxl", LATENTS["sdxl"])
    needed: Callable[[MemoryStrategy], int] = lambda way: max(training_memory(full, way).values())  # noqa: E731
    chosen = select_strategy(memory, TRAINING_STRATEGIES, needed, lambda: 0, "")
    assert chosen == TRAINING_STRATEGIES[way]
    assert needed(chosen) < int(memory) * GIB


def test_a_number_takes_the_first_that_fits_and_leaves_a_tenth_free() -> None:
    needed = sized(20, 10, 7.3, 7.1)
    assert [select_strategy(memory, TRAINING_STRATEGIES, needed, lambda: 0, "") for memory in PRESETS] == [
        TRAINING_STRATEGIES[1] if memory == "16" or memory == "12" else TRAINING_STRATEGIES[0 if memory == "24" else 3]
        for memory in PRESETS
    ]


def test_what_cannot_fit_is_refused_with_the_smallest_estimate() -> None:
    with pytest.raises(UserError, match=r"--memory 8: 9\.5 GiB is the smallest estimate, with .*nf4.*--batch_size"):
        select_strategy("8", TRAINING_STRATEGIES, sized(30, 20, 10, 9.5), lambda: 0, "lower --batch_size")


def test_auto_only_recomputes_and_only_when_it_must() -> None:
    needed = sized(20, 10, 7, 4)
    for free, way in ((24, 0), (22, 1), (12, 1), (2, 1)):  # if nothing fits, the smallest without a change of results
        assert (
            select_strategy("auto", TRAINING_STRATEGIES, needed, lambda free=free: free * GIB, "")
            == TRAINING_STRATEGIES[way]
        )  # type: ignore[misc]
    assert select_strategy("auto", GENERATION_STRATEGIES, sized(), lambda: 0, "") == MemoryStrategy()


def test_after_running_out_the_next_smaller_number_is_named() -> None:
    needed = sized(20, 10, 7, 4)
    assert [next_smaller_preset(way, TRAINING_STRATEGIES, needed) for way in TRAINING_STRATEGIES] == [
        "16",
        "8",
        None,
        None,
    ]


@pytest.mark.parametrize("system", LATENTS)
def test_the_weights_are_those_that_are_known(system: str) -> None:
    step = count_step(work(system, LATENTS[system]), MemoryStrategy(), backward=False)
    millions = {"sdxl": 2567, "sd15": 860}[system]
    assert step.unquantized == step.weights == pytest.approx(millions * 2e6, rel=1e-3)


@pytest.mark.nightly
def test_fewer_bits_are_that_much_smaller() -> None:
    full = work("sd15", LATENTS["sd15"])
    whole, fp8, nf4 = (count_step(full, way, backward=False).weights for way in GENERATION_STRATEGIES)
    assert fp8 / whole == pytest.approx(8 / 16, abs=0.01)
    assert nf4 / whole == pytest.approx(4.5 / 16, abs=0.01)


def test_more_pairs_take_more_to_learn_and_to_denoise_but_not_to_decode() -> None:
    one, four = (work("tiny-sdxl", (pairs, 4, 16, 32), torch.float32, "cpu") for pairs in (1, 4))
    assert count_step(four, MemoryStrategy(), backward=True).live == pytest.approx(
        4 * count_step(one, MemoryStrategy(), backward=True).live, rel=0.1
    )
    phases = [generation_memory(each, MemoryStrategy()) for each in (one, four)]
    assert phases[0]["decode"] == phases[1]["decode"]
    assert phases[0]["denoise"] < phases[1]["denoise"]
