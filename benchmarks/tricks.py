"""Measure a training step and the generation of a pair with one optimisation at a time, against the baseline.

    python benchmarks/tricks.py --base tiny-sdxl --batch_size 1

Prints Markdown tables; the measurements of a table alternate. An optimisation that helps is moved into the package.
"""

import argparse
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory
from typing import Any

import torch
from torch.nn.attention import SDPBackend, sdpa_kernel

from retipair.config import BenchConfig, Precision
from retipair.generation.generate import load
from retipair.generation.plan import GenerationPlan, settings_of
from retipair.runtime.console import quiet
from retipair.runtime.distributed import SINGLE_PROCESS
from retipair.runtime.profiling import Function, time_interleaved
from retipair.training.plan import Data, Plan
from retipair.training.step import Training, build_training, training_step
from retipair.trials.bench import make_generation_plan, planned

Optimisation = Callable[[Any, Function], Function] | torch.dtype
"""Either a function (UNet, work) -> optimised work, which may modify the UNet, or the dtype to load the base in."""


def baseline(unet: Any, work: Function) -> Function:
    return work


def channels_last(unet: Any, work: Function) -> Function:
    unet.to(memory_format=torch.channels_last)
    return work


def unfused_attention(unet: Any, work: Function) -> Function:
    def changed() -> None:
        with sdpa_kernel(SDPBackend.MATH):
            work()

    return changed


def tf32_products(unet: Any, work: Function) -> Function:
    def changed() -> None:
        before = torch.get_float32_matmul_precision()
        torch.set_float32_matmul_precision("high")
        work()
        torch.set_float32_matmul_precision(before)

    return changed


def compiled_blocks(unet: Any, work: Function) -> Function:
    unet.compile_repeated_blocks()
    return work


OPTIMISATIONS: dict[str, Optimisation] = {
    "baseline": baseline,
    "channels_last weights": channels_last,
    "attention without fusion": unfused_attention,
    "compiled blocks": compiled_blocks,
    "--precision bf16": torch.bfloat16,
    "--precision fp32": torch.float32,
}
if torch.cuda.is_available():
    OPTIMISATIONS |= {"fp32 products in TF32": tf32_products}


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--base", default="tiny-sdxl")
    parser.add_argument("--batch_size", type=int, default=1)
    parser.add_argument("--repeats", type=int, default=10)
    args = parser.parse_args(arguments)
    with TemporaryDirectory() as folder:
        with quiet():
            precision: Precision = "auto" if torch.cuda.is_available() else "fp32"
            config = BenchConfig(
                what="train", base=args.base, batch_size=args.batch_size, steps=10, precision=precision
            )
            plan, data = planned(config, Path(folder))
        print_table("Training step", time_interleaved(steps(plan, data), plan.device, args.repeats, 2))
        job = make_generation_plan(config, plan, data, Path(folder))
        print_table("Pair in 10 steps", time_interleaved(generations(job), job.device, max(args.repeats // 2, 1), 1))


def fused_optimiser(training: Training) -> None:
    for group in training.optimizer._optimizer.param_groups:
        group["fused"] = True


def steps(plan: Plan, data: Data) -> dict[str, Function]:
    works = {}
    for name, optimisation in OPTIMISATIONS.items():
        training = build_training(with_dtype(plan, optimisation), data, SINGLE_PROCESS)
        works[name] = optimised(optimisation, training.unet, partial(training_step, training))
    training = build_training(plan, data, SINGLE_PROCESS)
    fused_optimiser(training)
    return {**works, "fused optimiser": partial(training_step, training)}


def generations(job: GenerationPlan) -> dict[str, Function]:
    works = {}
    for name, optimisation in OPTIMISATIONS.items():
        changed = with_dtype(job, optimisation)
        loop = load(changed, settings_of(job), [1])
        works[name] = optimised(optimisation, loop.pair_generator.denoise.unet, partial(loop.sample, [1]))
    return works


def with_dtype(plan: Any, optimisation: Optimisation) -> Any:
    """Return a plan with the dtype, if the optimisation is one."""
    return replace(plan, dtype=optimisation) if isinstance(optimisation, torch.dtype) else plan


def optimised(optimisation: Optimisation, unet: Any, work: Function) -> Function:
    return work if isinstance(optimisation, torch.dtype) else optimisation(unet, work)


def print_table(title: str, times: Mapping[str, Sequence[float]]) -> None:
    print(f"\n| {title} | ms | relative | range |\n|---|---|---|---|")
    for name, seconds in times.items():
        ratios = [one / other for one, other in zip(seconds, times["baseline"], strict=True)]
        print(
            f"| {name} | {1000 * median(seconds):.0f} | {median(ratios):.2f} | {min(ratios):.2f} to {max(ratios):.2f} |"
        )


if __name__ == "__main__":
    main()
