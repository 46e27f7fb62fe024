"""Resolve the settings of a run: base, layout, precision, memory strategy and pairs."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch

from retipair.config import DEFAULT_PROMPT, Precision, TrainConfig
from retipair.data.dataset import PairRecord, content_sha256, read_dataset
from retipair.data.layout import Layout
from retipair.data.manifest import has_manifest
from retipair.data.pair import image_size
from retipair.data.review import check_reviewed
from retipair.data.selection import filter_split
from retipair.models.base import Base, check_steps, open_base
from retipair.models.device import MIN_BF16_SPEED, choose_device, choose_dtype, cpu_bf16_speed, free_memory
from retipair.models.lora import lora_config
from retipair.models.memory import Adapter, Estimate, Workload, training_memory
from retipair.models.memory_strategies import (
    TRAINING_STRATEGIES,
    MemoryStrategy,
    next_smaller_preset,
    require_backend,
    select_strategy,
    supported_on,
)
from retipair.preparation.prepare import prepared_folder
from retipair.runs.run_dir import Run, results_folder
from retipair.runtime.console import console
from retipair.runtime.errors import SettingError, UserError
from retipair.runtime.setting_checks import check_folder_name, check_size
from retipair.runtime.threads import process_count
from retipair.vision.modality import Modalities

VALIDATION_TIMESTEPS = (200, 500, 800)
FULL_SAMPLES_FROM = 500
"""A run of at least this many steps generates as many sample pairs at each validation as the original scripts."""
AT_LEAST_ONE = (
    *("max_steps", "batch_size", "gradient_accumulation_steps", "unet_lora_rank", "hf_max_timestep"),
    *("augment_variants", "val_every", "log_every", "sample_steps", "sample_pair_guidance"),
)
NOT_NEGATIVE = (
    *("learning_rate", "lr_end", "lr_warmup_steps", "weight_decay", "max_grad_norm", "hf_lambda", "seed"),
    *("offset_noise_strength", "min_snr_gamma", "half_clean_fraction", "num_samples"),
)

AT_MOST = {
    **{"seed": 2**32 - 1, "size": 4096, "unet_lora_rank": 4096, "batch_size": 4096, "augment_variants": 10_000},
    **{
        "half_clean_fraction": 1,
        "sample_pair_guidance": 20,
        "num_samples": 10_000,
        "max_steps": 10**9,
        "gradient_accumulation_steps": 10**6,
    },
}


@dataclass(frozen=True)
class Plan:
    """The resolved settings of a run. A plan is made before weights are loaded or files are written.

    precision_reason: the measurement that chose the precision, as text; "" if none was made.
    """

    config: TrainConfig
    base: Base
    layout: Layout
    device: str
    dtype: torch.dtype
    folder: Path
    strategy: MemoryStrategy = TRAINING_STRATEGIES[0]
    precision_reason: str = ""

    @property
    def latent_shape(self) -> tuple[int, int, int]:
        """Shape of the latents of one joint image: (channels, height, width)."""
        return self.base.latent_shape(self.layout.joint_size)

    @property
    def work(self) -> Workload:
        """Inputs of the memory estimate: base, adapter, shape of the latents, precision and device."""
        latents = (self.config.batch_size, *self.latent_shape)
        return Workload(self.base, Adapter(*adapter_settings(self.config)), latents, self.dtype, self.device)

    def memory(self, strategy: MemoryStrategy) -> Estimate:
        """Estimate the memory that each phase of the training needs with this strategy, in bytes."""
        config = self.config
        return training_memory(self.work, strategy, config.optimizer, bool(config.num_samples), config.ema_decay > 0)

    def memory_of(self, strategy: MemoryStrategy) -> int:
        """Estimate the peak memory of the training with this strategy, in bytes."""
        return max(self.memory(strategy).values())

    def original_sizes(self, entries: Sequence[PairRecord]) -> list[int]:
        """Return, for each pair, the side of its views in px that its size ids state (see --size_ids)."""
        size = self.layout.view_size
        return [min(entry.native_size, size) if self.config.size_ids == "native" else size for entry in entries]

    @property
    def strategies(self) -> list[MemoryStrategy]:
        """The memory strategies that this run may use, from the fastest to the one that needs the least memory."""
        required = self.config.gradient_checkpointing
        strategies = [strategy for strategy in TRAINING_STRATEGIES if strategy.checkpointing or not required]
        return supported_on(self.device, strategies)


@dataclass(frozen=True)
class Data:
    """The training and validation pairs of a run, with hashes of their content.

    sha256: the hash of all pairs of the folder, the test pairs included.
    train_sha256: the hash of the training pairs.
    val_sha256: the hash of the validation pairs.
    """

    train: list[PairRecord]
    val: list[PairRecord]
    sha256: str
    train_sha256: str
    val_sha256: str

    @property
    def modalities(self) -> Modalities:
        return self.train[0].modalities

    def prompts(self, default: str) -> list[tuple[str, int]]:
        """Return (prompt, number of training pairs with it) for each prompt. A pair without a caption has `default`."""
        return sorted(Counter(entry.caption or default for entry in self.train).items())

    def captions(self, default: str) -> list[tuple[str, str]]:
        """Return (id, prompt) of all training and validation pairs. A pair without a caption has `default`."""
        return [(entry.id, entry.caption or default) for entry in (*self.train, *self.val)]


def make_plan(config: TrainConfig) -> Plan:
    """Check the settings, open the base, and return the plan. Raises UserError for invalid settings."""
    _check(config)
    base = open_base(config.base, config.tokenizer)
    device = choose_device(config.device)
    folder = results_folder(config.results, base.family.name) / config.name
    if config.size_ids == "native" and not base.family.size_ids:
        raise SettingError("size_ids", config.size_ids, f"{config.base} has no size ids; only SDXL has")
    name = base.family.layout if config.layout == "auto" else config.layout
    layout = Layout(name, config.size or base.view_size)
    previous = Run(folder).read_config() if config.resume and (folder / "config.json").is_file() else None
    precision, reason = choose_precision(config, device, previous)
    config = with_samples(replace(config, precision=precision), previous)
    plan = Plan(config, base, layout, device, choose_dtype(precision, device), folder, precision_reason=reason)
    check_steps("sample_steps", plan.config.sample_steps or 0, base)
    if base.timesteps <= max(VALIDATION_TIMESTEPS):
        raise SettingError("base", config.base, f"has {base.timesteps} timesteps; SDXL and SD1.5 have 1000")
    _, height, width = plan.latent_shape
    if config.hf_kernel // 2 >= (narrowest := min(height, width // 2)):
        raise SettingError(
            "hf_kernel", config.hf_kernel, f"must be at most {2 * narrowest - 1} to fit the latents of one view"
        )
    return replace(plan, strategy=require_backend(_select_strategy(plan)))


def choose_precision(config: TrainConfig, device: str, previous: TrainConfig | None) -> tuple[Precision, str]:
    """Return the precision of a run, and the measurement that chose it, as text; "" if none was made.

    With --precision auto, a resumed run keeps its precision. A new run on a CPU has bf16 if `cpu_bf16_speed` is at
    least MIN_BF16_SPEED. It is not measured with several processes, which could choose differently.

    previous: the settings of the run that is resumed; None for a new run.
    """
    if config.precision != "auto":
        return config.precision, ""
    if previous is not None:
        return previous.precision, ""
    if device == "cpu" and process_count() == 1:
        speed = cpu_bf16_speed()
        measured = f"matrix products in bf16 are {speed:.3g} times as fast as in fp32 on this CPU"
        return "bf16" if speed >= MIN_BF16_SPEED else "fp32", f"{measured} (bf16 from {MIN_BF16_SPEED})"
    return "bf16" if choose_dtype("auto", device) == torch.bfloat16 else "fp32", ""


def with_samples(config: TrainConfig, previous: TrainConfig | None) -> TrainConfig:
    """Fill in the defaults of --num_samples and --sample_steps: the sample pairs of a validation and their steps.

    The defaults are 10 pairs with 50 denoising steps each, as in the original scripts. For a run of fewer than 500
    steps, both numbers are reduced in proportion to its length, to no less than 2 pairs and 10 denoising steps, because
    generating the samples would otherwise take longer than training. They are not reduced if --best_by is
    "consistency" or "both", because the choice of the best step then depends on the samples. A resumed run keeps its
    values.

    previous: the settings of the run that is resumed; None for a new run.
    """
    fraction = 1.0 if config.best_by != "loss" else min(1.0, config.max_steps / FULL_SAMPLES_FROM)
    default = max(2, round(10 * fraction)), max(10, round(50 * fraction))
    if previous is not None:
        default = previous.num_samples or 0, previous.sample_steps or default[1]
    number = default[0] if config.num_samples is None else config.num_samples
    return replace(config, num_samples=number, sample_steps=config.sample_steps or default[1])


def _select_strategy(plan: Plan) -> MemoryStrategy:
    """Select the memory strategy that --memory asks for. With "auto", a resumed run keeps its strategy if possible."""
    config, previous = plan.config, Run(plan.folder).memory_strategy() if plan.config.resume else None
    for strategy in plan.strategies:
        if config.memory == "auto" and strategy.name == previous:
            return strategy
    free = partial(free_memory, plan.device)
    advice = "lower --batch_size or --size"
    if plan.dtype == torch.float32:
        advice = f"try --precision bf16 (which halves the weights), or {advice}"
    return select_strategy(config.memory, plan.strategies, plan.memory_of, free, advice)


def smaller_flags(plan: Plan, resume: bool) -> str:
    """Return, as text, the flags that reduce the memory of this run, to be tried after an out-of-memory error.

    resume: whether the run has a checkpoint, from which it can be resumed with these flags.
    """
    more = " --resume" if resume else ""
    if smaller := next_smaller_preset(plan.strategy, plan.strategies, plan.memory_of):
        return f"--memory {smaller}{more}"
    if not plan.strategy.checkpointing:
        return f"--gradient_checkpointing{more}"
    return "a smaller --batch_size or --size, with another --name"


def _check(config: TrainConfig) -> None:
    if config.data is None:
        raise UserError(
            "--data is missing: pass a prepared or raw folder; `retipair prepare RAW OUT` writes a prepared one"
        )
    if not config.data.exists():
        raise SettingError("data", config.data, "no such file or folder")
    if config.reviewed and not has_manifest(config.data):
        raise SettingError(
            "reviewed", None, f"{config.data} has no manifest; give a prepared or generated folder as --data"
        )
    check_folder_name("name", config.name)
    for name, upper in AT_MOST.items():
        if (getattr(config, name) or 0) > upper:
            raise SettingError(name, getattr(config, name), f"must be at most {upper}")
    minimum = dict.fromkeys(AT_LEAST_ONE, 1) | dict.fromkeys(NOT_NEGATIVE, 0)
    for name, lower in minimum.items():
        if (value := getattr(config, name)) is not None and not value >= lower:
            raise SettingError(name, getattr(config, name), f"must be at least {lower}")
    for name in ("ema_decay", "prompt_dropout"):
        if not 0 <= getattr(config, name) < 1:
            raise SettingError(name, getattr(config, name), "must be in [0, 1)")
    if not (config.unet_lora_alpha > 0 and config.hf_sigma > 0):
        raise UserError("--unet_lora_alpha and --hf_sigma must be above 0")
    if config.hf_kernel < 3 or config.hf_kernel % 2 == 0:
        raise SettingError("hf_kernel", config.hf_kernel, "must be odd and at least 3")
    check_size(config.size)
    if config.best_by != "loss" and config.num_samples == 0:
        raise SettingError("best_by", config.best_by, "evaluates samples; raise --num_samples (10 is usual)")
    if config.tracker != "none" and find_spec(config.tracker) is None:
        raise SettingError("tracker", config.tracker, f"not installed; pip install 'retipair[{config.tracker}]'")


def read_data(plan: Plan) -> Data:
    """Read the pairs of --data. A folder of raw pairs is first prepared, once, in a folder under RESULTS/prepared."""
    folder = plan.config.data
    assert folder is not None
    folder = prepared_folder(folder, plan.config.results, plan.layout.view_size)
    entries = read_pairs(folder, plan.config.reviewed)
    train, val = filter_split(entries, "train", folder), filter_split(entries, "val", folder)
    hashes: dict[PairRecord, bytes] = {}
    return Data(train, val, *(content_sha256(pairs, hashes) for pairs in (entries, train, val)))


def read_pairs(folder: Path, reviewed: bool) -> list[PairRecord]:
    if reviewed:
        check_reviewed([folder])
    return read_dataset(folder, console.print, reviewed)


def with_prompt(plan: Plan, modalities: Modalities) -> Plan:
    """Return the plan with the default prompt of these modalities, unless --prompt is given."""
    prompt = modalities.prompt if plan.config.prompt == DEFAULT_PROMPT else plan.config.prompt
    return replace(plan, config=replace(plan.config, prompt=prompt))


def adapter_config(config: TrainConfig) -> Any:
    """Return the PEFT configuration of the adapter."""
    return lora_config(*adapter_settings(config))


def adapter_settings(config: TrainConfig) -> tuple[int, float, str, bool, bool]:
    """Return the arguments of `lora_config`: rank, alpha, targets, DoRA, rsLoRA."""
    return config.unet_lora_rank, config.unet_lora_alpha, config.lora_targets, config.dora, config.rslora


def samples_text(config: TrainConfig) -> str:
    """Describe how many sample pairs each validation generates, and with how many denoising steps."""
    if not config.num_samples:
        return "none"
    return f"{config.num_samples} pairs of {config.sample_steps} denoising steps at each validation"


def view_size_on_disk(entries: Sequence[PairRecord]) -> int:
    """Return the side of the first CF, px. All views that `prepare` or `generate` writes to a folder have one size."""
    return image_size(entries[0].cf)[0]


def views_text(size: int, on_disk: int) -> str:
    """Describe the size of the views in training, and whether the views on disk are resized to this size.

    size: the side of the views in training, px.
    on_disk: the side of the views on disk, px.
    """
    if on_disk >= size:
        return f"{size} px" if on_disk == size else f"{size} px, reduced from {on_disk}"
    return f"{size} px, enlarged from {on_disk}: prepare them with --size {size} for more detail"


def size_warnings(plan: Plan, entries: Sequence[PairRecord]) -> list[str]:
    """Return a warning if training enlarges the pairs. Else return a warning if `prepare` enlarged some of them.

    With --size_ids native, there is no warning about pairs that `prepare` enlarged.
    """
    size, on_disk = plan.layout.view_size, view_size_on_disk(entries)
    if on_disk < size:
        return [f"views: {views_text(size, on_disk)}"]
    small = [entry.native_size for entry in entries if entry.native_size < size]
    if not small or plan.config.size_ids == "native":
        return []
    advice = "; with --size_ids native, the size ids state the size before this" if plan.base.family.size_ids else ""
    return [
        f"{len(small)} of {len(entries)} training pairs were enlarged to {size} px (smallest: {min(small)} px){advice}"
    ]
