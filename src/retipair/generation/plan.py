"""Plan a generation: find and check the run, adapter, base, prompts and training pairs, before weights are loaded."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import torch

from retipair.config import MAX_AMOUNT, GenerateConfig
from retipair.data.dataset import PairRecord, content_sha256, read_folder, read_with_content
from retipair.data.layout import Layout
from retipair.data.manifest import check_one_kind
from retipair.data.selection import filter_split
from retipair.data.views import SingleView
from retipair.diffusion.guidance import Guidance
from retipair.generation.adapter import find_adapter, training_layout_and_prompts
from retipair.generation.checks import check_generation, shard_of
from retipair.generation.given_views import GivenView, crop_view, read_views, views_sha256
from retipair.generation.modes import MODES, REPEATS, GenerationMode, guidance_of
from retipair.generation.pair_generator import draw_prompt
from retipair.metrics import memorisation
from retipair.models.base import Base, check_steps, open_base
from retipair.models.captions import prompt_warnings
from retipair.models.device import choose_device, choose_dtype
from retipair.models.lora import AdapterMetadata, adapter_sha256, read_adapter_metadata, weights_file
from retipair.models.memory import Workload, generation_memory
from retipair.models.memory_strategies import (
    GENERATION_STRATEGIES,
    MemoryStrategy,
    require_backend,
    select_strategy,
    supported_on,
)
from retipair.models.trained_views import TrainedViews, trained_views_of
from retipair.preparation.prepare import prepared_folder
from retipair.runs.recorded import adapter_warnings, recorded_base, recorded_tokenizer
from retipair.runs.run_dir import Run, results_folder, run_around
from retipair.runtime.errors import FileError, MissingError, SettingError, UserError
from retipair.runtime.profiling import GIB
from retipair.runtime.schema import to_values
from retipair.vision.appearance import Appearance
from retipair.vision.modality import CF_FA, Modalities

DEFAULT_AMOUNT = 10
"""The number of pairs without --amount, in the modes without given views."""


@dataclass(frozen=True)
class GenerationPlan:
    """The resolved settings of a generation, before a model is loaded or a pair is generated.

    prompts: the prompts to draw from, as (text, number of training pairs with this prompt).
    adapter: the folder of the adapter; None if the base generates without one.
    sources: the training pairs that --mode from_data varies, or the views from which --mode cf2fa and fa2cf draw the
        other view; empty in --mode noise.
    trained_views: facts about the training views of the base and the adapter.
    known: the training pairs that --max_copy compares each generated pair with; empty without --max_copy.
    modalities: the modalities of the training pairs of the adapter.
    """

    config: GenerateConfig
    base: Base
    layout: Layout
    adapter: Path | None
    prompts: list[tuple[str, int]]
    out: Path
    sources: Sequence[PairRecord | SingleView]
    trained_views: TrainedViews
    known: list[PairRecord]
    device: str
    dtype: torch.dtype
    warnings: list[str]
    strategy: MemoryStrategy = GENERATION_STRATEGIES[0]
    modalities: Modalities = CF_FA

    @property
    def mode(self) -> GenerationMode:
        return MODES[self.config.mode]

    @property
    def amount(self) -> int:
        """The number of pairs: --amount, or its default."""
        if self.config.amount is not None:
            return self.config.amount
        return len(self.sources) * self.config.per_view if self.mode.given else DEFAULT_AMOUNT

    @property
    def indices(self) -> range:
        """The indices of the pairs to generate: from 1 to `amount`, or those of --shard among them."""
        part, parts = shard_of(self.config)
        return range(part, self.amount + 1, parts)

    @property
    def strength(self) -> float | None:
        return self.config.strength if self.mode.varies_pairs else None

    @property
    def guidance(self) -> Guidance:
        return guidance_of(self.config)

    @property
    def batch_size(self) -> int:
        """1 on the CPU, so that pairs do not depend on --batch_size: batched kernels round differently there."""
        return 1 if self.device == "cpu" else self.config.batch_size

    def memory_of(self, strategy: MemoryStrategy) -> int:
        """Estimate the peak memory with this strategy, in bytes."""
        rows = self.batch_size * (1 + self.guidance.has_unconditional + (self.guidance.pair_scale != 1))
        latents = (rows, *self.base.latent_shape(self.layout.joint_size))
        work = Workload(self.base, None, latents, self.dtype, self.device)
        adapter = weights_file(self.adapter).stat().st_size if self.adapter else 0
        return max(generation_memory(work, strategy, adapter, bool(self.sources)).values())

    @property
    def memory_summary(self) -> str:
        return f"memory: {self.memory_of(self.strategy) / GIB:.1f} GiB estimated, with {self.strategy.name}"

    @property
    def oom_hint(self) -> str:
        """What to do if no memory strategy suffices."""
        return "lower --batch_size" if self.batch_size > 1 else "use an adapter trained at a smaller --size"

    @property
    def strategies(self) -> list[MemoryStrategy]:
        """The memory strategies that the device supports, from the fastest to the one that needs the least memory."""
        return supported_on(self.device, GENERATION_STRATEGIES)

    def source(self, index: int) -> PairRecord | SingleView | None:
        """Return the source of the generated pair number `index` (from 1), or None if there are no sources.

        The sources are used in order. After the last source, the first one is used again.
        """
        return self.sources[(index - 1) % len(self.sources)] if self.sources else None

    @property
    def trained_appearance(self) -> Appearance | None:
        """The appearance to which given views are brought; None if it is not known, or if no views are given."""
        return self.trained_views.appearance.get(self.mode.given) if self.mode.given else None

    @property
    def noises_given_view(self) -> bool:
        """Whether a given view must get noise, because the network was not trained with half-clean samples."""
        return self.mode.given is not None and not self.trained_views.half_clean_fraction

    def given(self, index: int) -> GivenView:
        """Load the view from which the other view of pair `index` is drawn."""
        source = self.source(index)
        assert isinstance(source, SingleView)
        assert self.mode.given is not None
        return crop_view(source, self.mode.given, self.layout.view_size, self.trained_appearance, self.modalities.first)

    def prompt(self, index: int) -> str:
        """Return the prompt of a pair: the caption of its source if `prompts` has it, else drawn by (seed, index).

        A source without such a caption gets the prompt that training pairs without a caption had. The adapter does not
        record which of its prompts this is, so it is drawn from those that may be it: the prompts that are the caption
        of no source; or else those that more training pairs had than there are sources with this caption; or else all.
        """
        source = self.source(index)
        if source is not None and source.caption in dict(self.prompts):
            return str(source.caption)
        return draw_prompt(self._default_prompts or self.prompts, self.config.seed, index)

    @cached_property
    def _default_prompts(self) -> list[tuple[str, int]]:
        captions = Counter(source.caption for source in self.sources)
        unused = [(text, count) for text, count in self.prompts if text not in captions]
        return unused or [(text, count) for text, count in self.prompts if count > captions[text]]


def plan_generation(config: GenerateConfig) -> GenerationPlan:
    """Find the run, adapter, base and training pairs, and return the plan. Raises UserError for invalid settings."""
    check_generation(config)
    base = open_base(config.base, config.tokenizer) if config.base else None
    run, adapter = find_adapter(config, base)
    description = read_adapter_metadata(adapter) if adapter else None
    training_run = run or (run_around(adapter) if adapter else None)
    base = base or recorded_base(training_run, description, adapter, config.tokenizer)
    if config.tokenizer is None and training_run is not None:
        base = replace(base, tokenizer=recorded_tokenizer(training_run))
    check_steps("steps", config.steps, base)
    warnings = [*base.warnings, *(prompt_warnings(base, config.prompt) if config.prompt is not None else [])]
    layout, prompts = training_layout_and_prompts(config, base, description, adapter, warnings)
    if adapter and description:
        warnings += adapter_warnings(adapter, description, base)
    out = config.out or results_folder(config.results, base.family.name, "_preds") / str(config.name) / config.savedir
    device = choose_device(config.device)
    dtype = choose_dtype(config.precision, device)
    read_training_pairs = partial(training_pairs, config, run, layout, description, warnings)
    modalities = description.pair_modalities if description else CF_FA
    sources: Sequence[PairRecord | SingleView] = []
    if MODES[config.mode].varies_pairs:
        sources = read_training_pairs(f"--mode {config.mode}")
    elif given := MODES[config.mode].given:
        assert config.data is not None  # `check_generation` requires it
        sources = read_views(config.data, given, modalities)
    known = read_training_pairs("--max_copy") if config.max_copy is not None else []
    views = trained_views_of(base, description.views if description else None, as_base=modalities == CF_FA)
    plan = GenerationPlan(config, base, layout, adapter, prompts, out, sources, views, known, device, dtype, warnings)
    if plan.amount > MAX_AMOUNT:
        raise SettingError("per_view", config.per_view, f"gives {plan.amount:,} pairs; at most {MAX_AMOUNT:,}")
    if not plan.indices:
        raise SettingError("shard", config.shard, f"contains none of the {plan.amount} pairs; raise --amount")
    if plan.noises_given_view:
        warnings.append(_noised_view_warning(config))
    return replace(
        plan,
        modalities=modalities,
        strategy=require_backend(
            select_strategy(config.memory, plan.strategies, plan.memory_of, lambda: 0, plan.oom_hint)
        ),
    )


def _noised_view_warning(config: GenerateConfig) -> str:
    """Return the warning that the given view gets noise. Raises SettingError for a sampler that cannot repeat steps."""
    if config.sampler not in ("ddpm", "ddim"):
        raise SettingError(
            "sampler", config.sampler, f"cannot draw one view from the other: {_NOT_HALF_CLEAN}; use ddpm"
        )
    return (
        f"{_NOT_HALF_CLEAN}, so the given view gets noise and each step is taken {REPEATS} times; "
        "the views agree less. To avoid this, train an adapter with --half_clean_fraction 0.5, the default"
    )


_NOT_HALF_CLEAN = "neither base nor adapter was trained with --half_clean_fraction"


def training_pairs(
    config: GenerateConfig,
    run: Run | None,
    layout: Layout,
    description: AdapterMetadata | None,
    warnings: list[str],
    needed_by: str,
) -> list[PairRecord]:
    """Return the training pairs, without validation and test pairs.

    Pairs in rejected.txt are left out, except with --max_copy: the adapter may have memorised them.

    needed_by: the flag that needs the pairs, for messages.

    Raises UserError if the pairs are missing. Also raises it if the pairs of the run have changed since the training:
    they may have been split again, so that validation eyes would count as training eyes. With --data, this is only a
    warning.
    """
    data = trained_on(config, run)
    if data is None:
        raise UserError(f"{needed_by} needs pairs: pass --data FOLDER (a prepared folder)")
    if not data.exists():
        raise MissingError(data, "no such file or folder; pass the folder of the training pairs with --data FOLDER")
    folder = prepared_folder(data, config.results, layout.view_size)
    trained = read_with_content(folder, description.data_sha256) if description else None
    pairs = trained or read_folder(folder)
    if pairs.note:
        warnings.append(pairs.note)
    modalities = description.pair_modalities if description else CF_FA
    for pair in pairs.entries[:1]:
        check_one_kind(folder, modalities, pair.modalities, pair.id)
    if description and not trained:
        if config.data is None:
            raise FileError(
                folder,
                "its pairs have changed since this adapter was trained (prepared again?); "
                "pass --data FOLDER to use its training pairs anyway",
            )
        warnings.append(f"this adapter was not trained on {folder}; {needed_by} uses the training pairs of that folder")
    return filter_split(pairs.kept if config.max_copy is None else pairs.known, "train", folder)


def trained_on(config: GenerateConfig, run: Run | None) -> Path | None:
    """Return the folder of the training pairs: --data, else the --data of the run, else None."""
    return config.data or (run.read_config().data if run else None)


def settings_of(plan: GenerationPlan) -> dict[str, Any]:
    """Return the values that the generated pairs depend on, apart from their indices and the tokenizer."""
    config, guidance = plan.config, plan.guidance
    pair = {"pair_guidance": guidance.pair_scale, "pair_guidance_from": guidance.pair_from}
    pair |= {"pair_guidance_other": guidance.other_scale} if guidance.other_scale != 1 else {}
    return {
        "adapter_sha256": adapter_sha256(plan.adapter) if plan.adapter else None,
        "base_sha256": plan.base.fingerprint(),
        "layout": plan.layout.name,
        "size": plan.layout.view_size,
        "prompts": plan.prompts,
        "seed": config.seed,
        "mode": config.mode,
        "strength": plan.strength,
        "sources_sha256": _sources_sha256(plan),
        **({"appearance": to_values(seen)} if (seen := plan.trained_appearance) else {}),
        **({"given_view_repeats": REPEATS} if plan.noises_given_view else {}),
        "steps": config.steps,
        "sampler": config.sampler,
        "guidance_scale": config.guidance_scale,
        **(pair if guidance.pair_scale != 1 else {}),
        **({"best_of": config.best_of} if config.best_of > 1 else {}),
        "min_consistency": config.min_consistency,
        "max_copy": config.max_copy,
        **({"copy_search": memorisation.VERSION} if config.max_copy is not None else {}),
        "known_sha256": content_sha256(plan.known) if plan.known else None,
        "record_source": config.record_source or None,  # None if off: older folders lack the key
        "dtype": str(plan.dtype).removeprefix("torch.") + (f", {plan.strategy.name}" if plan.strategy.stored else ""),
    }


def _sources_sha256(plan: GenerationPlan) -> str | None:
    """Return a hash of the content of the sources, or None if there are none."""
    pairs = [source for source in plan.sources if isinstance(source, PairRecord)]
    views = [source for source in plan.sources if isinstance(source, SingleView)]
    if views:
        return views_sha256(views)
    return content_sha256(pairs) if pairs else None
