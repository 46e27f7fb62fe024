"""What work costs, where the answer is known: its turns, its memory, its arithmetic."""

import time

import pytest
import torch
from torch.profiler import record_function

from retipair.models.base import open_base
from retipair.models.empty import empty_unet
from retipair.models.lora import add_adapter, lora_config
from retipair.models.peak_memory import meta_forward
from retipair.runtime.profiling import (
    count_flop,
    matrix_rate,
    peak_memory,
    profile_function,
    time_fractions_of_operators,
    time_fractions_of_parts,
    time_interleaved,
)

MIB = 2**20


def test_works_take_turns_and_warm_up_uncounted() -> None:
    seen: list[str] = []
    took = time_interleaved({"a": lambda: seen.append("a"), "b": lambda: seen.append("b")}, "cpu", repeats=3, warmup=2)
    assert seen == ["a", "b"] * 5
    assert {name: len(seconds) for name, seconds in took.items()} == {"a": 3, "b": 3}


def test_time_is_told_in_seconds() -> None:
    [took] = time_interleaved({"sleep": lambda: time.sleep(0.02)}, "cpu", repeats=2, warmup=0).values()
    assert min(took) >= 0.02


def test_a_peak_is_seen_after_it_has_passed() -> None:
    with peak_memory("cpu") as before:
        pass
    with peak_memory("cpu") as during:
        torch.ones(256 * MIB // 4)  # float32, touched, and gone again
        time.sleep(0.05)
    with peak_memory("cpu") as held:
        block = torch.ones(256 * MIB // 4)
        time.sleep(0.05)
    assert before.gib > 0
    assert held.gib >= before.gib + 0.24
    assert during.gib >= before.gib
    assert block[0] == 1


def test_products_are_counted_in_full() -> None:
    a, b = torch.zeros(3, 5), torch.zeros(5, 7)
    assert count_flop(lambda: a @ b) == 2 * 3 * 5 * 7
    q = torch.zeros(1, 2, 11, 4)  # 2 heads of 11 queries and keys, 4 wide: their product, and that with the values
    assert count_flop(lambda: torch.nn.functional.scaled_dot_product_attention(q, q, q)) == 2 * (2 * 2 * 11 * 11 * 4)


@pytest.mark.nightly
@pytest.mark.parametrize(("base", "shape", "tera"), [("sdxl", (4, 64, 128), 3.22), ("sd15", (4, 64, 64), 0.80)])
def test_a_forward_of_the_full_size_costs_what_is_known(base: str, shape: tuple[int, int, int], tera: float) -> None:
    unet = empty_unet(open_base(f"random:{base}"))
    with torch.no_grad():
        assert count_flop(lambda: meta_forward(unet, shape)) / 1e12 == pytest.approx(tera, abs=0.02)


@pytest.mark.nightly
def test_a_step_costs_two_forwards_for_weights_that_do_not_learn_need_no_gradient() -> None:
    unet, shape = empty_unet(open_base("random:sd15")).requires_grad_(False), (4, 64, 64)
    add_adapter(unet, lora_config(16, 16, "attention", dora=False, rslora=False))
    with torch.no_grad():
        forward = count_flop(lambda: meta_forward(unet, shape))
    step = count_flop(lambda: meta_forward(unet.train(), shape).sum().backward())
    assert step == pytest.approx(2 * forward, rel=0.08)


def test_the_limit_is_a_rate_of_products() -> None:
    assert matrix_rate("cpu", torch.float32, repeats=2) > 1e8


def test_shares_are_of_the_whole_and_the_larger_work_has_the_larger() -> None:
    small, large = torch.ones(64, 64), torch.ones(1024, 1024)

    def work() -> None:
        with record_function("little"):
            small @ small
        with record_function("much"):
            large @ large

    seen = profile_function(work)
    parts = time_fractions_of_parts(seen, ("little", "much"))
    assert sum(parts.values()) == pytest.approx(1)
    assert parts["much"] > parts["little"] > 0
    operators = time_fractions_of_operators(seen)
    assert next(iter(operators)) == "mm"
    assert sum(operators.values()) == pytest.approx(1)
