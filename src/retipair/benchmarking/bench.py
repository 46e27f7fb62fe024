"""`retipair bench`: what a step, a pair, an encoding or a judgement costs on this machine, on rendered eyes.

The work is that of `train`, `generate` and `evaluate` themselves, on folders made for it and gone afterwards.
"""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import count
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory
from typing import Any

import torch

from retipair.benchmarking.baseline import PHASES, Original
from retipair.config import BenchConfig, GenerateConfig, PhantomConfig, TrainConfig, check_size
from retipair.data.dataset import load_views, read_dataset
from retipair.evaluation.measurements import measure_set
from retipair.generation.generate import load, paint
from retipair.generation.output import write_pair
from retipair.generation.plan import Job, make_job, settings_of
from retipair.models.base import empty_unet, open_base
from retipair.models.device import choose_device
from retipair.models.lora import add_adapter, save_adapter
from retipair.models.memory import meta_forward
from retipair.models.vae import encode_moments
from retipair.phantoms.phantom import phantom
from retipair.runs.run_dir import environment
from retipair.runtime.atomic_io import write_json
from retipair.runtime.console import console, unsaid
from retipair.runtime.distributed import ALONE
from retipair.runtime.errors import UserError
from retipair.runtime.profiling import (
    Work,
    flop_of,
    in_turns,
    matrix_rate,
    memory_kind,
    peak_memory,
    profiled,
    shares_of_operators,
    shares_of_parts,
)
from retipair.runtime.schema import to_values
from retipair.training.plan import Data, Plan, adapter_config, describe, make_plan, read_data
from retipair.training.step import PARTS, Training, set_up, take_step

SCHEMA = "retipair.bench/1"
EYES = 6
"""Rendered for it: five to train on and one to validate by, as the split has it."""
AGAINST = {"train": ("none", "bare", "original"), "generate": ("none", "diffusers")}


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


def bench(config: BenchConfig) -> None:
    """Measure, print, and write --json. Raises UserError, before anything runs, for what cannot work."""
    figures = measured(config)
    print_figures(figures)
    if config.json is not None:
        write_json(config.json, figures)
        console.print(f"Written: {config.json}")


def measured(config: BenchConfig) -> dict[str, Any]:
    """What --json holds."""
    _check(config)
    with TemporaryDirectory(prefix="retipair-bench-") as folder:
        cost = MEASURES[config.what](config, Path(folder))
    return figures_of(config, cost, matrix_rate(choose_device(config.device), cost.dtype))


def _check(config: BenchConfig) -> None:
    for name, least in {"batch_size": 1, "steps": 1, "repeats": 1, "warmup": 0}.items():
        if getattr(config, name) < least:
            raise UserError(f"--{name} {getattr(config, name)}: must be at least {least}")
    if config.against not in (fitting := AGAINST.get(config.what, ("none",))):
        raise UserError(f"--against {config.against}: for {config.what} there is {', '.join(fitting)}")
    check_size(config.size)
    if config.json is not None and not config.json.resolve().parent.is_dir():
        raise UserError(f"--json {config.json}: no such folder; make it first")


# What is measured


def measure_train(config: BenchConfig, folder: Path) -> Cost:
    """A step of the optimiser, as `train` takes it."""
    plan, data = planned(config, folder)
    cost = Cost("step", config.batch_size, dtype=plan.dtype)
    with cost.memory_of("encode and load", plan.device):
        training = set_up(plan, data, ALONE)
    ours: Work = lambda: take_step(training)  # noqa: E731
    ours()
    with cost.memory_of("step", plan.device):
        ours()
    works, original = {"ours": ours}, None
    if config.against == "bare":
        works["other"] = bare(training)
    elif config.against == "original":
        original = Original(plan.base, plan.layout, data.train, plan.config.prompt, config.batch_size, plan.device)
        works["other"] = original.step
    took = in_turns(works, plan.device, config.repeats, config.warmup)
    cost.seconds, cost.other = took["ours"], took.get("other", [])
    if original is not None:
        cost.other_phases = {phase: median(original.seconds[phase][-config.repeats :]) for phase in PHASES}
    seen = profiled(ours)
    cost.shares, cost.operators = shares_of_parts(seen, PARTS), shares_of_operators(seen)
    cost.flop = flop_of_step(plan)
    return cost


def bare(training: Training) -> Work:
    """Forward and backward of the same network on one batch, and nothing else."""
    batch = training.batches.draw(range(training.config.batch_size))

    def work() -> None:
        training.denoise(batch.noise, batch.t, batch.conditioning).mean().backward()
        for parameter in training.learner.parameters.values():
            parameter.grad = None

    return work


def flop_of_step(plan: Plan) -> int:
    """Of one forward and backward through the base with its adapter, counted on tensors without storage."""
    config = plan.config
    unet = empty_unet(plan.base).train()
    add_adapter(unet, adapter_config(config))
    if plan.way.checkpointing:
        unet.enable_gradient_checkpointing()
    return flop_of(lambda: meta_forward(unet, plan.latent_shape, config.batch_size).sum().backward())


def measure_generate(config: BenchConfig, folder: Path) -> Cost:
    """Pairs from noise, judged and written, as `generate` draws them with a fresh adapter."""
    plan, data = planned(config, folder)
    job = job_of(config, plan, data, folder)
    cost = Cost("pairs" if config.batch_size > 1 else "pair", config.batch_size, dtype=job.dtype)
    works: dict[str, Callable[[], Work]] = {"ours": lambda: drawing(job)}
    if config.against == "diffusers":
        works["other"] = lambda: drawing_by_library(job)
    with cost.memory_of("load", job.device):
        loaded = {"ours": works["ours"]()}
    with cost.memory_of("draw", job.device):
        loaded["ours"]()
    loaded |= {name: work() for name, work in works.items() if name != "ours"}
    took = in_turns(loaded, job.device, config.repeats, config.warmup)
    cost.seconds, cost.other = took["ours"], took.get("other", [])
    cost.operators = shares_of_operators(profiled(loaded["ours"]))
    del loaded
    if job.base.form != "random":  # making random weights is no start
        first = {name: (lambda work=work: work()()) for name, work in works.items()}
        cost.start = {name: min(took) for name, took in in_turns(first, job.device, 3, 0).items()}
    unet = empty_unet(plan.base)
    with torch.no_grad():
        forward = flop_of(lambda: meta_forward(unet, plan.latent_shape, config.batch_size))
    cost.flop = config.steps * forward  # the autoencoder's are left out: 3 % of 50 steps of SDXL
    return cost


def job_of(config: BenchConfig, plan: Plan, data: Data, folder: Path) -> Job:
    """What `generate` draws with: an adapter as training begins with, which changes nothing but has its cost."""
    unet = plan.base.unet()
    add_adapter(unet, adapter_config(plan.config))
    save_adapter(folder / "adapter", plan.base, unet, describe(plan, data))
    return make_job(
        GenerateConfig(
            checkpoint=str(folder / "adapter"),
            base=config.base,
            out=folder / "drawn",
            tokenizer=config.tokenizer,
            steps=config.steps,
            batch_size=config.batch_size,
            precision=config.precision,
            memory=config.memory,
            device=config.device,
        )
    )


def drawing(job: Job) -> Work:
    """Load what draws; what is returned draws, judges and writes the next pairs."""
    text, settings, numbers = job.prompt(1), settings_of(job), count(1)
    painter, conditioning = load(job, [text])

    def work() -> None:
        indices = [next(numbers) for _ in range(job.config.batch_size)]
        painted = paint(job, painter, conditioning, [0] * len(indices), [(index, 0) for index in indices])
        for index, one in zip(indices, painted, strict=True):
            write_pair(job, painter, settings, index, 0, one, one.pair.consistency())

    return work


def drawing_by_library(job: Job) -> Work:
    """The same by the library's own pipeline: load it and the adapter, draw, and write the joint image."""
    pipeline = job.base.pipeline(job.dtype, job.device)
    pipeline.load_lora_weights(str(job.adapter))
    pipeline.set_progress_bar_config(disable=True)
    height, width = job.layout.joint_size
    numbers, folder = count(1), job.out / "library"
    folder.mkdir(parents=True, exist_ok=True)

    def work() -> None:
        prompts = [job.prompt(1)] * job.config.batch_size
        drawn = pipeline(
            prompts, height=height, width=width, num_inference_steps=job.config.steps, guidance_scale=1.0
        ).images
        for image in drawn:
            image.save(folder / f"{next(numbers)}.png")

    return work


def measure_encode(config: BenchConfig, folder: Path) -> Cost:
    """Joint images into latents, as `train` does once for each variant of a pair."""
    plan, data = planned(config, folder)
    cost = Cost("pairs" if config.batch_size > 1 else "pair", config.batch_size)
    with cost.memory_of("load", plan.device):
        vae = plan.base.vae(device=plan.device)
    views = [load_views(data.train[number % len(data.train)], plan.layout.view_size) for number in range(cost.pairs)]
    joints = [plan.layout.join(*both) for both in views]
    ours: Work = lambda: [encode_moments(vae, joint[None]) for joint in joints]  # noqa: E731
    with cost.memory_of("encode", plan.device):
        ours()
    cost.seconds = in_turns({"ours": ours}, plan.device, config.repeats, config.warmup)["ours"]
    cost.operators, cost.flop = shares_of_operators(profiled(ours)), flop_of(ours)
    return cost


def measure_evaluate(config: BenchConfig, folder: Path) -> Cost:
    """Every figure of the rendered pairs, on all cores, as `evaluate` measures them."""
    entries = read_dataset(rendered(folder, 512, EYES))
    kept = count(1)
    cost = Cost("pairs", len(entries))
    ours: Work = lambda: measure_set("pairs", entries, folder / f"kept{next(kept)}")  # noqa: E731
    with cost.memory_of("measure", "cpu"):
        ours()
    cost.seconds = in_turns({"ours": ours}, "cpu", config.repeats, max(config.warmup - 1, 0))["ours"]
    return cost


MEASURES = {
    "train": measure_train,
    "generate": measure_generate,
    "encode": measure_encode,
    "evaluate": measure_evaluate,
}


def planned(config: BenchConfig, folder: Path, eyes: int | None = None) -> tuple[Plan, Data]:
    """What `train` would do with these settings and a few rendered eyes."""
    base = open_base(config.base, config.tokenizer)
    settings = TrainConfig(
        name="bench",
        data=rendered(folder, config.size or base.view_size, eyes or EYES),
        base=config.base,
        tokenizer=config.tokenizer,
        results=folder,
        size=config.size,
        batch_size=config.batch_size,
        precision=config.precision,
        gradient_checkpointing=config.gradient_checkpointing,
        memory=config.memory,
        optimizer=config.optimizer,
        augment_variants=1,
        device=config.device,
    )
    plan = make_plan(settings)
    return plan, read_data(plan)


def rendered(folder: Path, size: int, eyes: int) -> Path:
    """A prepared folder of rendered eyes."""
    with unsaid():
        return phantom(PhantomConfig(out=folder / "eyes", amount=eyes, size=size))


# What is said


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
