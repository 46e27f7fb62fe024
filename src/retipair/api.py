"""Run the commands from Python, with the settings in `config/` as keywords, and load or generate pairs in memory."""

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

from retipair.config import (
    EvaluateConfig,
    ExportAdapterConfig,
    ExportMatchesConfig,
    GenerateConfig,
    PhantomConfig,
    PrepareConfig,
    RegisterConfig,
    TrainConfig,
    UtilityConfig,
)
from retipair.data.dataset import PairRecord, load_pair, select_pairs
from retipair.data.manifest import Split
from retipair.data.pair import Pair
from retipair.evaluation import evaluate as evaluation
from retipair.evaluation.scores import Scores, read_scores
from retipair.generation.generate import generate, load
from retipair.generation.plan import GenerationPlan, check_generation, plan_generation
from retipair.matching.export import export
from retipair.matching.utility import utility as matching_test
from retipair.matching.utility.report import SCORES_NAME
from retipair.phantoms import phantom as rendering
from retipair.preparation import register as registering
from retipair.preparation.prepare import prepare_pairs
from retipair.preparation.registered import RegisteredPair, RegistrationRecord
from retipair.runs import export_adapter as exporting
from retipair.runs.run_dir import Run
from retipair.runtime.atomic_io import read_json
from retipair.runtime.console import log_output
from retipair.runtime.errors import SettingError
from retipair.runtime.library_logging import quiet_libraries
from retipair.runtime.schema import from_settings
from retipair.training import train as training

Source = Run | str | Path
_INSTEAD = {
    "amount": "sample(count) or save(out, count)",
    "seed": "sample(count, seed=...) or save(out, count, seed=...)",
    "out": "save(out, count)",
    "savedir": "save(out, count)",
    "per_view": "sample(count) or save(out, count), with a multiple of the number of given views",
}
"""The settings of `GenerateConfig` that `from_pretrained` refuses, and what to use instead."""


def phantom(out: str | Path, *, verbose: bool = False, **settings: Any) -> Path:
    """Render synthetic eyes with their ground truth into the folder `out`, and return this folder.

    out: receives a prepared folder, or with `unregistered=True` a subfolder `raw` with raw pairs for `prepare`.
    verbose: print the messages of the command instead of logging them.
    settings: fields of `PhantomConfig`, which have the names and meanings of the flags of `retipair phantom`.
    Raises UserError for invalid settings, or if `out` contains other files.
    """
    config = from_settings(PhantomConfig, {**settings, "out": out})
    with _output(verbose):
        return rendering.phantom(config)


def prepare(raw: str | Path, out: str | Path, *, verbose: bool = False, **settings: Any) -> Path:
    """Align the raw pairs in `raw`, write the prepared folder `out`, and return this folder.

    verbose: print the messages of the command instead of logging them.
    settings: fields of `PrepareConfig`, which have the names and meanings of the flags of `retipair prepare`.
    In a script, call this function below `if __name__ == "__main__":` if there are several workers, which is the
    default on several cores. Raises UserError for input that cannot be used.
    """
    config = from_settings(PrepareConfig, {**settings, "raw": raw, "out": out})
    with _output(verbose):
        return prepare_pairs(config)


def register(
    cf: str | Path, fa: str | Path, out: str | Path | None = None, *, verbose: bool = False, **settings: Any
) -> RegisteredPair:
    """Register the FA of one raw pair to its CF, and return the FA in the frame of the CF, and how it was registered.

    >>> registered = register("eye_01.png", "eye_02.png", matches="eye.npz")
    >>> registered.fa_warped, registered.homography, registered.consistency, registered.refused, registered.doubt

    A registration that must not be used is returned too; its `refused` says why. Check `refused` before you use the
    other fields.

    out: the folder to write, as `retipair register` does; with None, nothing is written.
    verbose: print the messages of the command instead of logging them.
    settings: fields of `RegisterConfig`, which have the names and meanings of the flags of `retipair register`.
    Raises UserError for input that cannot be used, and if `out` contains other files.
    """
    views = from_settings(_RawViews, {"cf": cf, "fa": fa, "out": out})
    paths = [path for path in (views.cf, views.fa, views.out) if path is not None]
    config = from_settings(RegisterConfig, {**settings, "paths": paths})
    if config.folder:
        raise SettingError("folder", None, "only for the command; use `register_folder`")
    with _output(verbose):
        registered = registering.register_pair(config)
        registering.print_result(registered, views.out)
    return registered


def register_folder(
    raw: str | Path, out: str | Path, *, verbose: bool = False, **settings: Any
) -> list[RegistrationRecord]:
    """Register all pairs of the raw folder or table `raw`, write the folder `out`, and return the records of the pairs.

    verbose: print the messages of the command instead of logging them.
    settings: fields of `RegisterConfig`, which have the names and meanings of the flags of `retipair register`.
    In a script, call this function below `if __name__ == "__main__":` if there are several workers, which is the
    default on several cores. Raises UserError for input that cannot be used, and if all pairs were refused.
    """
    folders = from_settings(_RawFolder, {"raw": raw, "out": out})
    config = from_settings(RegisterConfig, {**settings, "paths": [folders.raw, folders.out], "folder": True})
    with _output(verbose):
        return registering.register_folder(config)


def train(data: str | Path, *, verbose: bool = False, **settings: Any) -> Run:
    """Train an adapter on a prepared, generated or raw folder, and return the run.

    verbose: print the messages of the command instead of logging them.
    settings: fields of `TrainConfig`, which have the names and meanings of the flags of `retipair train`; `name` is
    required, and `dry_run` is only for the command.
    Raises UserError for invalid settings or unusable pairs, and Stopped if a signal stops the training.
    """
    config = from_settings(TrainConfig, {**settings, "data": data})
    if config.dry_run:
        raise SettingError("dry_run", None, "only for the command; use `retipair train --dry_run`")
    with _output(verbose):
        folder = training.train(config)
    assert folder is not None, "only dry_run creates no run"
    return Run(folder)


def evaluate(
    real: str | Path, generated: str | Path | None = None, *, verbose: bool = False, **settings: Any
) -> Scores:
    """Compare generated pairs with real pairs, or only check the real pairs, and return the scores.

    >>> scores = evaluate("pairs", "generated", out="evaluation")
    >>> scores.headline, scores.consistency.correlation["generated"].mean, scores.copies

    verbose: print the messages of the command instead of logging them.
    settings: fields of `EvaluateConfig`, which have the names and meanings of the flags of `retipair evaluate`.
    The report and `scores.json` are written to the folder `out`. `Scores.to_json` returns the content of `scores.json`.
    Raises UserError for folders without pairs, and if `out` contains the scores of other pairs.
    """
    config = from_settings(EvaluateConfig, {**settings, "real": real, "generated": generated})
    with _output(verbose):
        evaluation.evaluate(config)
    return read_scores(config.out)


def export_matches(pairs: str | Path, out: str | Path, *, verbose: bool = False, **settings: Any) -> Path:
    """Write warped pairs with known transforms into the folder `out`, and return this folder.

    pairs: a prepared or generated folder.
    verbose: print the messages of the command instead of logging them.
    settings: fields of `ExportMatchesConfig`, as the flags of `retipair export matches`.
    In a script, call this function below `if __name__ == "__main__":` if there are several workers, which is the
    default on several cores. Raises UserError for invalid settings, a folder without pairs, or other files in `out`.
    """
    config = from_settings(ExportMatchesConfig, {**settings, "pairs": pairs, "out": out})
    with _output(verbose):
        return export(config)


def export_adapter(adapter: Source, out: str | Path, *, verbose: bool = False, **settings: Any) -> Path:
    """Write an adapter in the format of another program to `out`, and return `out`.

    adapter: a run, the folder of a run, checkpoint or `unet_lora`, or a LoRA file. verbose: print all messages.
    settings: fields of `ExportAdapterConfig`, as the flags of `retipair export adapter`, for example `to="merged"`.
    Raises UserError for an adapter or base that cannot be read, a format that cannot hold it, or if `out` exists.
    """
    adapter = adapter.folder if isinstance(adapter, Run) else adapter
    config = from_settings(ExportAdapterConfig, {**settings, "adapter": adapter, "out": out})
    with _output(verbose):
        return exporting.export_adapter(config)


def utility(
    real: str | Path, out: str | Path, generated: str | Path | None = None, *, verbose: bool = False, **settings: Any
) -> dict[str, Any]:
    """Test whether generated pairs help to match real pairs, and return the content of `out/utility.json`.

    >>> scores = utility("pairs", "utility", "generated")
    >>> scores["sentences"]["recall@1"], scores["arms"]["generated"]["hard"]["recall@1"]["interval"]

    verbose: print the messages of the command instead of logging them.
    settings: fields of `UtilityConfig`, which have the names and meanings of the flags of `retipair utility`.
    In a script, call this function below `if __name__ == "__main__":` if there are several workers, which is the
    default on several cores. Raises UserError for input that cannot be used, or other scores in `out`.
    """
    config = from_settings(UtilityConfig, {**settings, "real": real, "out": out, "generated": generated})
    with _output(verbose):
        matching_test.utility(config)
    return read_json(config.out / SCORES_NAME)


@dataclass(frozen=True)
class LoadedPair(Pair):
    """A pair in memory, with its id and its split (None for a pair that was just generated)."""

    id: str = ""
    split: Split | None = None


def load_pairs(folder: str | Path, split: Split | None = None) -> Iterator[LoadedPair]:
    """Load the pairs of a prepared or generated folder one by one, without the pairs in rejected.txt.

    split: "train", "val" or "test"; None for all pairs.
    Raises UserError if the folder does not exist, or if all its pairs are rejected, and SettingError for an unknown
    split.
    """
    return map(_load, select_pairs(folder, split))


def _load(record: PairRecord) -> LoadedPair:
    return LoadedPair(**vars(load_pair(record)), id=record.id, split=record.split)


@dataclass(frozen=True)
class _RawViews:
    """The paths that are arguments of `register`."""

    cf: Path
    fa: Path
    out: Path | None


@dataclass(frozen=True)
class _RawFolder:
    """The paths that are arguments of `register_folder`."""

    raw: Path
    out: Path


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
        cls, adapter: Source, *, checkpoint: str = "best", verbose: bool = False, **settings: Any
    ) -> "PairGenerator":
        """Return a generator for a trained adapter. Its weights are loaded later, by `sample` or `save`.

        adapter: a run, the folder of a run or checkpoint, a `unet_lora` folder, or a LoRA file.
        checkpoint: which checkpoint of a run to use, "best" or "latest".
        verbose: print messages, for example of the preparation of raw pairs in `data`, instead of logging them.
        settings: fields of `GenerateConfig`, which have the names and meanings of the flags of `retipair generate`:
        `base`, `device`, `precision`, `steps`, `sampler`, `guidance_scale`, `batch_size`, `prompt`, ...
        The number of pairs, the seed and the folder to write are arguments of `sample` and `save`.
        Raises UserError for invalid settings, if there is no adapter, or if its base cannot be found.
        """
        if refused := sorted(settings.keys() & _INSTEAD.keys()):
            raise SettingError(refused[0], None, f"not a setting of `from_pretrained`; use {_INSTEAD[refused[0]]}")
        given = adapter.folder if isinstance(adapter, Run) else adapter
        choice = from_settings(_AdapterChoice, {"adapter": given, "checkpoint": checkpoint})
        path = choice.adapter
        if isinstance(adapter, Run) or (path / "config.json").is_file():
            path = Run(path).adapter_folder(choice.checkpoint)
        with _output(verbose):
            plan = plan_generation(from_settings(GenerateConfig, {**settings, "checkpoint": path, "out": Path()}))
        return cls(plan)

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
        with _output(verbose):
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
        with _output(verbose):
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


@contextmanager
def _output(verbose: bool) -> Iterator[None]:
    """Print the output of a command if `verbose`, else send it to the logger; silence the messages of libraries."""
    with quiet_libraries(), nullcontext() if verbose else log_output():
        yield
