"""`retipair bench`: measure the time and memory of training, generation, encoding and evaluation on this machine.

The data are phantoms, i.e. rendered eyes. The benchmark runs the code of `train`, `generate` and `evaluate` in a
temporary folder.
"""

from collections.abc import Callable
from itertools import count
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory
from typing import Any

import torch

from retipair.config import BenchConfig, GenerateConfig, PhantomConfig, TrainConfig
from retipair.data.dataset import load_views, read_dataset
from retipair.evaluation.measurements import measure_set
from retipair.generation.generate import load
from retipair.generation.output import write_pair
from retipair.generation.plan import GenerationPlan, plan_generation, settings_of
from retipair.models.base import open_base
from retipair.models.device import choose_device
from retipair.models.empty import empty_unet
from retipair.models.lora import add_adapter, save_adapter
from retipair.models.peak_memory import meta_forward
from retipair.models.vae import encode_moments
from retipair.phantoms.phantom import phantom
from retipair.runtime.atomic_io import write_json
from retipair.runtime.console import console, quiet
from retipair.runtime.distributed import SINGLE_PROCESS
from retipair.runtime.errors import SettingError
from retipair.runtime.profiling import (
    Function,
    count_flop,
    matrix_rate,
    profile_function,
    time_fractions_of_operators,
    time_fractions_of_parts,
    time_interleaved,
)
from retipair.runtime.setting_checks import check_size
from retipair.training.description import describe_adapter
from retipair.training.plan import Data, Plan, adapter_config, make_plan, read_data
from retipair.training.step import PARTS, Training, build_training, training_step
from retipair.trials.baseline import PHASES, BaselineStep
from retipair.trials.summary import Cost, print_figures, summarize_cost

EYES = 6
"""Number of phantoms, which the split divides into five for training and one for validation."""
AGAINST = {"train": ("none", "bare", "original"), "generate": ("none", "diffusers")}


def bench(config: BenchConfig) -> None:
    """Run the benchmark, print the results and write them to --json. Raises UserError for invalid settings first."""
    figures = measured(config)
    print_figures(figures)
    if config.json is not None:
        write_json(config.json, figures)
        console.print(f"Written: {config.json}")


def measured(config: BenchConfig) -> dict[str, Any]:
    """Run the benchmark, and return the results as JSON values (see `summarize_cost`)."""
    _check(config)
    with TemporaryDirectory(prefix="retipair-bench-") as folder:
        cost = MEASURES[config.what](config, Path(folder))
    return summarize_cost(config, cost, matrix_rate(choose_device(config.device), cost.dtype))


def _check(config: BenchConfig) -> None:
    for name, minimum in {"batch_size": 1, "steps": 1, "repeats": 1, "warmup": 0}.items():
        if getattr(config, name) < minimum:
            raise SettingError(name, getattr(config, name), f"must be at least {minimum}")
    if config.against not in (choices := AGAINST.get(config.what, ("none",))):
        raise SettingError("against", config.against, f"for {config.what} choose {', '.join(choices)}")
    check_size(config.size)
    if config.json is not None and not config.json.resolve().parent.is_dir():
        raise SettingError("json", config.json, "no such folder; create it first")


# Measurements


def measure_train(config: BenchConfig, folder: Path) -> Cost:
    """Measure an optimiser step of `train`, and a step of the baseline that --against names."""
    plan, data = planned(config, folder)
    cost = Cost("step", config.batch_size, dtype=plan.dtype)
    with cost.memory_of("encode and load", plan.device):
        training = build_training(plan, data, SINGLE_PROCESS)
    ours: Function = lambda: training_step(training)  # noqa: E731
    ours()
    with cost.memory_of("step", plan.device):
        ours()
    functions, baseline = {"ours": ours}, None
    if config.against == "bare":
        functions["other"] = bare(training)
    elif config.against == "original":
        baseline = BaselineStep(plan.base, plan.layout, data.train, plan.config.prompt, config.batch_size, plan.device)
        functions["other"] = baseline.step
    times = time_interleaved(functions, plan.device, config.repeats, config.warmup)
    cost.seconds, cost.other = times["ours"], times.get("other", [])
    if baseline is not None:
        cost.other_phases = {phase: median(baseline.seconds[phase][-config.repeats :]) for phase in PHASES}
    events = profile_function(ours)
    cost.shares, cost.operators = time_fractions_of_parts(events, PARTS), time_fractions_of_operators(events)
    cost.flop = flop_of_step(plan)
    return cost


def bare(training: Training) -> Function:
    """Return a baseline: a function that only runs the forward and backward pass of the UNet, always on one batch."""
    batch = training.batches.batch_of(range(training.config.batch_size))

    def work() -> None:
        training.denoise(batch.noise, batch.t, batch.conditioning).mean().backward()
        for parameter in training.optimizer.parameters.values():
            parameter.grad = None

    return work


def flop_of_step(plan: Plan) -> int:
    """Count the FLOP of one forward and backward pass through the base's UNet with an adapter, on meta tensors."""
    config = plan.config
    unet = empty_unet(plan.base).train()
    add_adapter(unet, adapter_config(config))
    if plan.strategy.checkpointing:
        unet.enable_gradient_checkpointing()
    return count_flop(lambda: meta_forward(unet, plan.latent_shape, config.batch_size).sum().backward())


def measure_generate(config: BenchConfig, folder: Path) -> Cost:
    """Measure `generate` with an untrained adapter: sample pairs from noise, compute their consistency, write them.

    Cross-view guidance is off, because the pipeline of diffusers does not have it.
    """
    plan, data = planned(config, folder)
    generation = make_generation_plan(config, plan, data, folder)
    cost = Cost("pairs" if config.batch_size > 1 else "pair", config.batch_size, dtype=generation.dtype)
    loaders: dict[str, Callable[[], Function]] = {"ours": lambda: generation_work(generation)}
    if config.against == "diffusers":
        loaders["other"] = lambda: diffusers_work(generation)
    with cost.memory_of("load", generation.device):
        loaded = {"ours": loaders["ours"]()}
    with cost.memory_of("draw", generation.device):
        loaded["ours"]()
    loaded |= {name: loader() for name, loader in loaders.items() if name != "ours"}
    times = time_interleaved(loaded, generation.device, config.repeats, config.warmup)
    cost.seconds, cost.other = times["ours"], times.get("other", [])
    cost.operators = time_fractions_of_operators(profile_function(loaded["ours"]))
    del loaded
    if generation.base.source_kind != "random":  # a random base has no weights to load
        first = {name: (lambda loader=loader: loader()()) for name, loader in loaders.items()}
        cost.start = {name: min(seconds) for name, seconds in time_interleaved(first, generation.device, 3, 0).items()}
    unet = empty_unet(plan.base)
    with torch.no_grad():
        forward = count_flop(lambda: meta_forward(unet, plan.latent_shape, config.batch_size))
    cost.flop = config.steps * forward  # UNet only; the autoencoder adds 3 % to 50 steps of SDXL
    return cost


def make_generation_plan(config: BenchConfig, plan: Plan, data: Data, folder: Path) -> GenerationPlan:
    """Save an untrained adapter, and return the plan to generate with it.

    Generation with an untrained adapter takes as long as with a trained adapter.
    """
    unet = plan.base.unet()
    add_adapter(unet, adapter_config(plan.config))
    save_adapter(folder / "adapter", plan.base, unet, describe_adapter(plan, data))
    return plan_generation(
        GenerateConfig(
            checkpoint=str(folder / "adapter"),
            base=config.base,
            out=folder / "drawn",
            tokenizer=config.tokenizer,
            steps=config.steps,
            pair_guidance=1.0,  # off; diffusers' pipeline has no cross-view guidance
            batch_size=config.batch_size,
            precision=config.precision,
            memory=config.memory,
            device=config.device,
        )
    )


def generation_work(plan: GenerationPlan) -> Function:
    """Load the pair generator; return a function that samples, measures and writes the next pairs.

    It applies no filter and writes no manifest.
    """
    settings, numbers = settings_of(plan), count(1)
    loop = load(plan, settings, [1])

    def work() -> None:
        indices = [next(numbers) for _ in range(plan.config.batch_size)]
        for index, images in zip(indices, loop.sample(indices), strict=True):
            write_pair(plan, loop.pair_generator, settings, index, images)

    return work


def diffusers_work(plan: GenerationPlan) -> Function:
    """Load the diffusers pipeline and the adapter; return a function that generates and writes joint images."""
    pipeline = plan.base.pipeline(plan.dtype, plan.device)
    pipeline.load_lora_weights(str(plan.adapter))
    pipeline.set_progress_bar_config(disable=True)
    height, width = plan.layout.joint_size
    numbers, folder = count(1), plan.out / "library"
    folder.mkdir(parents=True, exist_ok=True)

    def work() -> None:
        prompts = [plan.prompt(1)] * plan.config.batch_size
        images = pipeline(
            prompts, height=height, width=width, num_inference_steps=plan.config.steps, guidance_scale=1.0
        ).images
        for image in images:
            image.save(folder / f"{next(numbers)}.png")

    return work


def measure_encode(config: BenchConfig, folder: Path) -> Cost:
    """Measure the encoding of joint images to latents, which `train` does once per variant of a pair."""
    plan, data = planned(config, folder)
    cost = Cost("pairs" if config.batch_size > 1 else "pair", config.batch_size)
    with cost.memory_of("load", plan.device):
        vae = plan.base.vae(device=plan.device)
    views = [load_views(data.train[number % len(data.train)], plan.layout.view_size) for number in range(cost.pairs)]
    joints = [plan.layout.join(cf, fa) for cf, fa in views]
    ours: Function = lambda: [encode_moments(vae, joint[None]) for joint in joints]  # noqa: E731
    with cost.memory_of("encode", plan.device):
        ours()
    cost.seconds = time_interleaved({"ours": ours}, plan.device, config.repeats, config.warmup)["ours"]
    cost.operators, cost.flop = time_fractions_of_operators(profile_function(ours)), count_flop(ours)
    return cost


def measure_evaluate(config: BenchConfig, folder: Path) -> Cost:
    """Measure the time and memory that the pair metrics of `evaluate` need, on phantoms and on all cores."""
    entries = read_dataset(rendered(folder, 512, EYES))
    caches = count(1)
    cost = Cost("pairs", len(entries))
    ours: Function = lambda: measure_set("pairs", entries, folder / f"cache{next(caches)}")  # noqa: E731
    with cost.memory_of("measure", "cpu"):
        ours()
    cost.seconds = time_interleaved({"ours": ours}, "cpu", config.repeats, max(config.warmup - 1, 0))["ours"]
    return cost


MEASURES = {
    "train": measure_train,
    "generate": measure_generate,
    "encode": measure_encode,
    "evaluate": measure_evaluate,
}


def planned(config: BenchConfig, folder: Path, eyes: int | None = None) -> tuple[Plan, Data]:
    """Render a few phantoms; return the training plan for these settings, and the phantoms as its data."""
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
    """Render phantoms into a prepared folder, and return the folder."""
    with quiet():
        return phantom(PhantomConfig(out=folder / "eyes", amount=eyes, size=size))
