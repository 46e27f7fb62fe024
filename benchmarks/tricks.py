"""What a step and a pair would cost with one trick more: each beside the same without it, in turns in one run.

    python benchmarks/tricks.py --base tiny-sdxl --batch_size 1

Prints Markdown tables. A trick that helps belongs into the package, and then out of here.
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

from retipair.benchmarking.bench import job_of, planned
from retipair.config import BenchConfig
from retipair.generation.generate import load
from retipair.generation.plan import GenerationPlan, settings_of
from retipair.runtime.console import quiet
from retipair.runtime.distributed import SINGLE_PROCESS
from retipair.runtime.profiling import Function, time_interleaved
from retipair.training.plan import Data, Plan
from retipair.training.step import Training, build_training, training_step

Trick = Callable[[Any, Function], Function] | torch.dtype
"""(UNet, work) -> the work with the trick, the network may be changed; or the arithmetic that the base is loaded in."""


def as_it_is(unet: Any, work: Function) -> Function:
    return work


def channels_last(unet: Any, work: Function) -> Function:
    unet.to(memory_format=torch.channels_last)
    return work


def plain_attention(unet: Any, work: Function) -> Function:
    def tricked() -> None:
        with sdpa_kernel(SDPBackend.MATH):
            work()

    return tricked


def tensor_float(unet: Any, work: Function) -> Function:
    def tricked() -> None:
        before = torch.get_float32_matmul_precision()
        torch.set_float32_matmul_precision("high")
        work()
        torch.set_float32_matmul_precision(before)

    return tricked


def regional_compile(unet: Any, work: Function) -> Function:
    unet.compile_repeated_blocks()
    return work


TRICKS: dict[str, Trick] = {
    "as it is": as_it_is,
    "weights in channels_last": channels_last,
    "attention not fused": plain_attention,
    "repeated blocks compiled": regional_compile,
    "--precision bf16": torch.bfloat16,
}
if torch.cuda.is_available():  # where the usual arithmetic is bf16
    TRICKS |= {"--precision fp32": torch.float32, "fp32 products in TF32": tensor_float}


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--base", default="tiny-sdxl")
    parser.add_argument("--batch_size", type=int, default=1)
    parser.add_argument("--repeats", type=int, default=10)
    args = parser.parse_args(arguments)
    with TemporaryDirectory() as folder:
        with quiet():
            config = BenchConfig(what="train", base=args.base, batch_size=args.batch_size, steps=10)
            plan, data = planned(config, Path(folder))
        tell("A step", time_interleaved(steps(plan, data), plan.device, args.repeats, 2))
        job = job_of(config, plan, data, Path(folder))
        tell("A pair in 10 steps", time_interleaved(drawings(job), job.device, max(args.repeats // 2, 1), 1))


def fused_optimiser(training: Training) -> None:
    for group in training.optimizer._optimizer.param_groups:
        group["fused"] = True


def steps(plan: Plan, data: Data) -> dict[str, Function]:
    works = {}
    for name, trick in TRICKS.items():
        training = build_training(with_dtype(plan, trick), data, SINGLE_PROCESS)
        works[name] = with_trick(trick, training.unet, partial(training_step, training))
    training = build_training(plan, data, SINGLE_PROCESS)
    fused_optimiser(training)
    return {**works, "the optimiser's steps fused": partial(training_step, training)}


def drawings(job: GenerationPlan) -> dict[str, Function]:
    works = {}
    for name, trick in TRICKS.items():
        changed = with_dtype(job, trick)
        loop = load(changed, settings_of(job), [1])
        works[name] = with_trick(trick, loop.pair_generator.denoise.unet, partial(loop.sample, [1]))
    return works


def with_dtype(one: Any, trick: Trick) -> Any:
    """A plan or job, in that arithmetic if it is one."""
    return replace(one, dtype=trick) if isinstance(trick, torch.dtype) else one


def with_trick(trick: Trick, unet: Any, work: Function) -> Function:
    return work if isinstance(trick, torch.dtype) else trick(unet, work)


def tell(title: str, took: Mapping[str, Sequence[float]]) -> None:
    plain = took["as it is"]
    print(f"\n| {title} | ms | times as long | smallest and largest |\n|---|---|---|---|")
    for name, seconds in took.items():
        ratios = [one / other for one, other in zip(seconds, plain, strict=True)]
        print(
            f"| {name} | {1000 * median(seconds):.0f} | {median(ratios):.2f} | {min(ratios):.2f} to {max(ratios):.2f} |"
        )


if __name__ == "__main__":
    main()
