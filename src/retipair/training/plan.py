"""Settings -> decisions: which base, layout, arithmetic and pairs a run has. `--dry_run` stops here."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch

from retipair.config import TrainConfig, check_folder_name, check_size
from retipair.data.dataset import PairRecord, content_sha256, filter_split, read_dataset
from retipair.data.layout import Layout
from retipair.data.pair import image_size
from retipair.data.sources import find_pairs
from retipair.models.base import Base, check_steps, open_base
from retipair.models.captions import caption_warnings
from retipair.models.conditioning import size_ids_for
from retipair.models.device import choose_device, choose_dtype, free_memory
from retipair.models.lora import AdapterMetadata, lora_config
from retipair.models.memory import (
    GIB,
    TRAINING_STRATEGIES,
    Adapter,
    Estimate,
    MemoryStrategy,
    Workload,
    count_step,
    next_smaller_preset,
    require_backend,
    select_strategy,
    supported_on,
    training_memory,
)
from retipair.preparation.prepare import is_prepared, prepared_folder
from retipair.runs.run_dir import Run, results_folder
from retipair.runtime.console import console
from retipair.runtime.errors import UserError, printable
from retipair.runtime.schema import to_values

VALIDATION_TIMESTEPS = (200, 500, 800)
FULL_SAMPLES_FROM = 500
"""Steps of a run, from which on its validations sample as many pairs as the original's."""
AT_LEAST_ONE = (
    *("max_steps", "batch_size", "gradient_accumulation_steps", "unet_lora_rank", "hf_max_timestep"),
    *("augment_variants", "val_every", "log_every", "sample_steps"),
)
NOT_NEGATIVE = (
    *("learning_rate", "lr_end", "lr_warmup_steps", "weight_decay", "max_grad_norm", "hf_lambda", "seed"),
    *("offset_noise_strength", "min_snr_gamma", "half_clean_fraction", "num_samples"),
)

AT_MOST = {
    **{"seed": 2**32 - 1, "size": 4096, "unet_lora_rank": 4096, "batch_size": 4096, "augment_variants": 10_000},
    **{"half_clean_fraction": 1, "num_samples": 10_000, "max_steps": 10**9, "gradient_accumulation_steps": 10**6},
}


@dataclass(frozen=True)
class Plan:
    """What the settings lead to, before anything is loaded or written."""

    config: TrainConfig
    base: Base
    layout: Layout
    device: str
    dtype: torch.dtype
    folder: Path
    strategy: MemoryStrategy = TRAINING_STRATEGIES[0]

    @property
    def latent_shape(self) -> tuple[int, int, int]:
        """(channels, height, width) of a joint image's latents."""
        return self.base.latent_shape(self.layout.joint_size)

    @property
    def work(self) -> Workload:
        """What its memory depends on."""
        latents = (self.config.batch_size, *self.latent_shape)
        return Workload(self.base, Adapter(*adapter_settings(self.config)), latents, self.dtype, self.device)

    def memory(self, way: MemoryStrategy) -> Estimate:
        """Bytes of each phase of the training, if it saved memory in this way."""
        config = self.config
        return training_memory(self.work, way, config.optimizer, bool(config.num_samples), config.ema_decay > 0)

    def memory_of(self, way: MemoryStrategy) -> int:
        """The most of them."""
        return max(self.memory(way).values())

    @property
    def strategies(self) -> list[MemoryStrategy]:
        """The ways to save memory that are open to it, from the fastest to the smallest."""
        ways = [way for way in TRAINING_STRATEGIES if way.checkpointing or not self.config.gradient_checkpointing]
        return supported_on(self.device, ways)


@dataclass(frozen=True)
class Data:
    """The pairs of a run: both sides of the split, and the fingerprint of everything in them."""

    train: list[PairRecord]
    val: list[PairRecord]
    sha256: str

    def prompts(self, default: str) -> list[tuple[str, int]]:
        """Distinct sentences of the training pairs, with how many have each."""
        return sorted(Counter(entry.caption or default for entry in self.train).items())

    def captions(self, default: str) -> list[tuple[str, str]]:
        """Each pair's id and sentence, of both sides of the split."""
        return [(entry.id, entry.caption or default) for entry in (*self.train, *self.val)]


def make_plan(config: TrainConfig) -> Plan:
    """Check the settings and open the base. Raises UserError for what cannot work."""
    _check(config)
    base = open_base(config.base, config.tokenizer)
    device = choose_device(config.device)
    folder = results_folder(config.results, base.family.name) / config.name
    name = base.family.layout if config.layout == "auto" else config.layout
    layout = Layout(name, config.size or base.view_size)
    plan = Plan(config, base, layout, device, choose_dtype(config.precision, device), folder)
    plan = replace(plan, config=with_samples(config, Run(folder)))
    check_steps("--sample_steps", plan.config.sample_steps or 0, base)
    if base.timesteps <= max(VALIDATION_TIMESTEPS):
        raise UserError(f"--base {config.base}: has {base.timesteps} timesteps; SDXL and SD1.5 have 1000")
    _, height, width = plan.latent_shape
    if config.hf_kernel // 2 >= (narrowest := min(height, width // 2)):
        raise UserError(f"--hf_kernel {config.hf_kernel}: at most {2 * narrowest - 1} fits the latents of one view")
    return replace(plan, strategy=require_backend(_select_strategy(plan)))


def with_samples(config: TrainConfig, run: Run) -> TrainConfig:
    """Fill in how many pairs are sampled at a validation, and in how many steps, where the flags do not say.

    A resumed run keeps its own. Else the original's 10 pairs of 50 steps; a run of less than 500 steps takes a share
    of both (2 pairs of 10 steps at least), lest samples take longer than training; not where --best_by needs them.
    """
    share = 1.0 if config.best_by != "loss" else min(1.0, config.max_steps / FULL_SAMPLES_FROM)
    default = max(2, round(10 * share)), max(10, round(50 * share))
    if config.resume and (run.folder / "config.json").is_file():
        before = run.read_config()
        default = before.num_samples or 0, before.sample_steps or default[1]
    number = default[0] if config.num_samples is None else config.num_samples
    return replace(config, num_samples=number, sample_steps=config.sample_steps or default[1])


def _select_strategy(plan: Plan) -> MemoryStrategy:
    """What --memory leads to; a resumed run whose user leaves that to us goes on as it began."""
    config, before = plan.config, Run(plan.folder).memory_strategy() if plan.config.resume else None
    for way in plan.strategies:
        if config.memory == "auto" and way.name == before:
            return way
    free = partial(free_memory, plan.device)
    advice = "lower --batch_size or --size"
    if plan.dtype == torch.float32:
        advice = f"try --precision bf16 (it loads half as much), or {advice}"
    return select_strategy(config.memory, plan.strategies, plan.memory_of, free, advice)


def smaller_flags(plan: Plan) -> str:
    """The flags to try when memory has run out after all."""
    if smaller := next_smaller_preset(plan.strategy, plan.strategies, plan.memory_of):
        return f"--memory {smaller}"
    if not plan.strategy.checkpointing:
        return "--gradient_checkpointing"
    return "a smaller --batch_size or --size, as another --name"


def _check(config: TrainConfig) -> None:
    if config.data is None:
        raise UserError("--data is missing: give a prepared or raw folder; `retipair prepare RAW OUT` makes the former")
    if not config.data.exists():
        raise UserError(f"--data {config.data}: no such file or folder")
    check_folder_name("--name", config.name)
    for name, most in AT_MOST.items():
        if (getattr(config, name) or 0) > most:
            raise UserError(f"--{name} {getattr(config, name)}: must be at most {most}")
    least = dict.fromkeys(AT_LEAST_ONE, 1) | dict.fromkeys(NOT_NEGATIVE, 0)
    for name, bound in least.items():
        if (value := getattr(config, name)) is not None and not value >= bound:
            raise UserError(f"--{name} {getattr(config, name)}: must be at least {bound}")
    for name in ("ema_decay", "prompt_dropout"):
        if not 0 <= getattr(config, name) < 1:
            raise UserError(f"--{name} {getattr(config, name)}: must be in [0, 1)")
    if not (config.unet_lora_alpha > 0 and config.hf_sigma > 0):
        raise UserError("--unet_lora_alpha and --hf_sigma must be above 0")
    if config.hf_kernel < 3 or config.hf_kernel % 2 == 0:
        raise UserError(f"--hf_kernel {config.hf_kernel}: must be odd and at least 3")
    check_size(config.size)
    if config.best_by != "loss" and config.num_samples == 0:
        raise UserError(f"--best_by {config.best_by}: looks at samples; raise --num_samples, 10 is usual")
    if config.tracker != "none" and find_spec(config.tracker) is None:
        raise UserError(f"--tracker {config.tracker}: not installed; pip install 'retipair[{config.tracker}]'")


def read_data(plan: Plan) -> Data:
    """The pairs of --data; a raw folder is prepared first, once, under RESULTS/prepared."""
    folder = plan.config.data
    assert folder is not None
    folder = prepared_folder(folder, plan.config.results, plan.layout.view_size)
    entries = read_dataset(folder, console.print)
    return Data(filter_split(entries, "train", folder), filter_split(entries, "val", folder), content_sha256(entries))


def describe_adapter(plan: Plan, data: Data) -> AdapterMetadata:
    """What the adapter will say of itself."""
    config = plan.config
    return AdapterMetadata(
        system=plan.base.family.name,
        layout=plan.layout.name,
        view_size=plan.layout.view_size,
        base=plan.base.name,
        base_sha256=plan.base.fingerprint(),
        rank=config.unet_lora_rank,
        alpha=config.unet_lora_alpha,
        targets=config.lora_targets,
        dora=config.dora,
        rslora=config.rslora,
        prompts=data.prompts(config.prompt),
        prompt_dropout=config.prompt_dropout,
        size_ids=size_ids_for(plan.base, plan.layout.joint_size),
        data_sha256=data.sha256,
        step=0,
    )


def adapter_config(config: TrainConfig) -> Any:
    """PEFT's settings for the adapter these settings ask for."""
    return lora_config(*adapter_settings(config))


def adapter_settings(config: TrainConfig) -> tuple[int, float, str, bool, bool]:
    """Those of the adapter, in the order that `lora_config` takes them."""
    return config.unet_lora_rank, config.unet_lora_alpha, config.lora_targets, config.dora, config.rslora


def print_plan(plan: Plan) -> None:
    """What --dry_run shows: what the settings lead to, then the settings."""
    memory = plan.memory(plan.strategy)
    phases = ", ".join(f"{phase} {needed / GIB:.2f}" for phase, needed in memory.items())
    exists = (plan.folder / "config.json").is_file()
    size = plan.layout.view_size
    pairs, captions, on_disk = _described_data(plan.config, size)
    warnings = [*plan.base.warnings, *caption_warnings(plan.base, captions)]
    facts = {
        "run": f"{plan.folder}{' (exists: --resume goes on)' if exists else ''}",
        "pairs": pairs,
        "views": views_text(size, on_disk),
        "samples": samples_text(plan.config),
        "system": plan.base.family.name,
        "prediction": plan.base.prediction,
        "layout": f"{plan.layout.name}, joint image {plan.layout.joint_size[1]}x{plan.layout.joint_size[0]}",
        "latent": str([plan.config.batch_size, *plan.latent_shape]),
        "trainable parameters": f"{count_step(plan.work, plan.strategy, learn=True).adapter:,}",
        "memory (estimate)": f"{max(memory.values()) / GIB:.2f} GiB at most, with {plan.strategy.name} ({phases})",
    }
    dtype = str(plan.dtype).removeprefix("torch.")
    resolved = {"size": size, "device": plan.device, "precision": dtype}
    for name, value in {**facts, **to_values(plan.config), **resolved}.items():
        print(f"{name:28} {value}")
    for warning in warnings:
        console.print(f"warning: {printable(warning)}")


def samples_text(config: TrainConfig) -> str:
    """Say what each validation samples."""
    if not config.num_samples:
        return "none"
    return f"{config.num_samples} pairs of {config.sample_steps} denoising steps at each validation"


def view_size_on_disk(entries: Sequence[PairRecord]) -> int:
    """Return the side of the first CF, px; `prepare` and `generate` make all of one size."""
    return image_size(entries[0].cf)[0]


def views_text(size: int, on_disk: int) -> str:
    """Say which size training sees the views in, px, and if they are resized for it."""
    if on_disk >= size:
        return f"{size} px" if on_disk == size else f"{size} px, reduced from {on_disk}"
    return f"{size} px, enlarged from {on_disk}: prepare them with --size {size} for detail"


def _described_data(config: TrainConfig, view_size: int) -> tuple[str, list[tuple[str, str]], int]:
    """Count the pairs, and read (id, caption) of those that training reads, and their views' size on disk, px."""
    assert config.data is not None
    if not is_prepared(config.data):
        raw = find_pairs(config.data)
        count = f"{len(raw)} raw ones in {config.data}, prepared when training starts"
        return count, [(pair.id, pair.caption or config.prompt) for pair in raw], view_size
    entries = read_dataset(config.data, console.print)
    counts = Counter(entry.split for entry in entries)
    count = f"{counts['train']} to train on, {counts['val']} to validate, {counts['test']} kept for testing"
    captions = [(entry.id, entry.caption or config.prompt) for entry in entries if entry.split != "test"]
    return count, captions, view_size_on_disk(entries)
