"""Generate pairs in memory with a trained adapter."""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

from retipair.config import GenerateConfig
from retipair.generation.generate import generate, load
from retipair.generation.plan import GenerationPlan, check_generation, plan_generation
from retipair.interfaces.loading import LoadedPair
from retipair.interfaces.output import command_output
from retipair.runs.recorded import adapter_at
from retipair.runs.run_dir import Run
from retipair.runtime.errors import SettingError
from retipair.runtime.library_logging import quiet_libraries
from retipair.runtime.schema import from_settings

_INSTEAD = {
    "amount": "sample(count) or save(out, count)",
    "seed": "sample(count, seed=...) or save(out, count, seed=...)",
    "shard": "the command `retipair generate`",
    "out": "save(out, count)",
    "savedir": "save(out, count)",
    "per_view": "sample(count) or save(out, count), with a multiple of the number of given views",
}
"""The settings of `GenerateConfig` that `from_pretrained` refuses, and what to use instead."""


@dataclass(frozen=True)
class _AdapterChoice:
    """The arguments of `from_pretrained` that select the adapter."""

    adapter: Path
    checkpoint: Literal["best", "latest"]


@dataclass(frozen=True)
class _Count:
    """The number of pairs, which unlike `amount` has no default."""

    count: int


class PairGenerator:
    """Generates pairs in memory with a trained adapter.

    >>> generator = PairGenerator.from_pretrained("results/out_joint_sdxl_cffa_pairs/first")
    >>> for pair in generator.sample(10, seed=0): ...
    """

    def __init__(self, plan: GenerationPlan) -> None:
        self._plan = plan

    @classmethod
    def from_pretrained(
        cls, adapter: Run | str | Path, *, checkpoint: str = "best", verbose: bool = False, **settings: Any
    ) -> "PairGenerator":
        """Return a generator for a trained adapter. Its weights are loaded later, by `sample` or `save`.

        adapter: a run, the folder of a run or checkpoint, a `unet_lora` folder, or a LoRA file.
        checkpoint: which checkpoint of a run to use, "best" or "latest".
        verbose: print messages, for example of the preparation of raw pairs in `data`, instead of logging them.
        settings: fields of `GenerateConfig`, which have the names and meanings of the flags of `retipair generate`:
        `base`, `device`, `precision`, `steps`, `sampler`, `guidance_scale`, `prompt`, `batch_size` (for `save`), ...
        The number of pairs, the seed and the folder to write are arguments of `sample` and `save`.
        Raises UserError for invalid settings, if there is no adapter, or if its base cannot be found.
        """
        if refused := sorted(settings.keys() & _INSTEAD.keys()):
            raise SettingError(refused[0], None, f"not a setting of `from_pretrained`; use {_INSTEAD[refused[0]]}")
        given = adapter.folder if isinstance(adapter, Run) else adapter
        choice = from_settings(_AdapterChoice, {"adapter": given, "checkpoint": checkpoint})
        if isinstance(adapter, Run):
            path = adapter.adapter_folder(choice.checkpoint)
        else:
            path = adapter_at(choice.adapter, choice.checkpoint)
        config = from_settings(GenerateConfig, {**settings, "checkpoint": path, "out": Path()})
        with command_output(verbose, config.offline):
            return cls(plan_generation(config))

    def sample(self, count: int, *, seed: int = 0, verbose: bool = False) -> Iterator[LoadedPair]:
        """Generate `count` pairs one by one, and write nothing.

        Pair i is a function of (seed, i), as in `retipair generate`. If `min_consistency` or `max_copy` rejects an
        attempt at a pair, another attempt is made, up to `max_tries` attempts (with `best_of` above 1, up to
        `max_tries` rounds of `best_of` attempts); then the pair is left out. Raises SettingError for an invalid count
        or seed.
        """
        return self._sample(self._config(count, seed=seed), verbose)

    def _sample(self, config: GenerateConfig, verbose: bool) -> Iterator[LoadedPair]:
        """Load the weights when the first pair is taken, and generate each pair when it is taken."""
        plan = replace(self._plan, config=config)
        indices = range(1, plan.amount + 1)
        with command_output(verbose, config.offline):
            loop = load(plan, {}, indices)  # {}: no settings, as no manifest is written
        for index in indices:
            while loop.tries[index] < config.max_tries:
                with quiet_libraries():
                    [images] = loop.sample([index])
                    rejected = loop.reject(index, images)
                if rejected is None:
                    yield LoadedPair(**vars(images.pair), id=str(index))
                    break

    def save(self, out: str | Path, count: int, *, seed: int = 0, verbose: bool = False) -> Path:
        """Write the pairs that `sample` generates to the folder `out`, as `retipair generate` does; return `out`.

        Pairs that exist already, with the same settings, are kept. To continue an interrupted call, repeat it. Raises
        UserError if `out` contains other files, and Stopped if a signal stops the generation.
        """
        config = self._config(count, seed=seed, out=out)
        with command_output(verbose, config.offline):
            return generate(config)

    def _config(self, count: int, **settings: Any) -> GenerateConfig:
        """Return the settings of the generator, with `amount` set to `count` and the fields in `settings` replaced.

        Raises SettingError for an invalid value; it names `count`, not `amount`.
        """
        try:
            amount = from_settings(_Count, {"count": count}).count
            config = from_settings(GenerateConfig, {**vars(self._plan.config), **settings, "amount": amount})
            check_generation(config)
        except SettingError as error:
            if error.setting != "amount":
                raise
            raise SettingError("count", error.value, error.problem) from None
        return config
