"""Run the commands from Python, with the settings in `config.py` as keywords, and load or generate pairs in memory."""

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any, TypeVar, get_args, get_type_hints

from retipair.config import EvaluateConfig, GenerateConfig, PhantomConfig, PrepareConfig, TrainConfig
from retipair.data.dataset import load_pair, read_dataset
from retipair.data.manifest import Split
from retipair.data.pair import Pair
from retipair.evaluation import evaluate as evaluation
from retipair.evaluation.scores import Scores, read_scores
from retipair.generation.generate import generate, load
from retipair.generation.plan import GenerationPlan, check_generation, plan_generation
from retipair.phantoms import phantom as rendering
from retipair.preparation.prepare import prepare_pairs
from retipair.runs.run_dir import Run
from retipair.runtime.console import log_output
from retipair.runtime.errors import UserError
from retipair.runtime.library_logging import quiet_libraries
from retipair.runtime.setting_checks import check_values
from retipair.training import train as training

Config = TypeVar("Config")
Source = Run | str | Path


def phantom(out: str | Path, *, verbose: bool = False, **settings: Any) -> Path:
    """Render synthetic eyes with their ground truth into the folder `out`, and return this folder.

    out: receives a prepared folder, or with `unregistered=True` a subfolder `raw` with raw pairs for `prepare`.
    verbose: print the messages of the command instead of logging them.
    settings: fields of `PhantomConfig`, which have the names and meanings of the flags of `retipair phantom`.
    Raises UserError for invalid settings, or if `out` holds other files.
    """
    config = _config(PhantomConfig, settings, out=Path(out))
    with _output(verbose):
        return rendering.phantom(config)


def prepare(raw: str | Path, out: str | Path, *, verbose: bool = False, **settings: Any) -> Path:
    """Align the raw pairs in `raw`, write the prepared folder `out`, and return this folder.

    verbose: print the messages of the command instead of logging them.
    settings: fields of `PrepareConfig`, which have the names and meanings of the flags of `retipair prepare`.
    In a script, call this function below `if __name__ == "__main__":` if there are several workers, which is the
    default on several cores. Raises UserError for input that cannot be used.
    """
    config = _config(PrepareConfig, settings, raw=Path(raw), out=Path(out))
    with _output(verbose):
        return prepare_pairs(config)


def train(data: str | Path, *, verbose: bool = False, **settings: Any) -> Run:
    """Train an adapter on a prepared, generated or raw folder, and return the run.

    verbose: print the messages of the command instead of logging them.
    settings: fields of `TrainConfig`, which have the names and meanings of the flags of `retipair train`; `name` is
    required.
    Raises UserError for invalid settings or unusable pairs, and Stopped if a signal stops the training.
    """
    config = _config(TrainConfig, settings, data=Path(data))
    with _output(verbose):
        folder = training.train(config)
    assert folder is not None, "dry_run creates no run"
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
    config = _config(EvaluateConfig, settings, real=Path(real), generated=Path(generated) if generated else None)
    with _output(verbose):
        evaluation.evaluate(config)
    return read_scores(config.out)


@dataclass(frozen=True)
class LoadedPair(Pair):
    """A pair in memory, with its id and its split (None for a pair that was just generated)."""

    id: str = ""
    split: Split | None = None


def load_pairs(folder: str | Path, split: Split | None = None) -> Iterator[LoadedPair]:
    """Load the pairs of a prepared or generated folder one by one, without the pairs in rejected.txt.

    split: "train", "val" or "test"; None for all pairs.
    Raises UserError if the folder does not exist, or if all its pairs are rejected.
    """
    for record in read_dataset(Path(folder)):
        if split in (None, record.split):
            pair = load_pair(record)
            yield LoadedPair(pair.cf, pair.fa, pair.mask, record.id, record.split)


class PairGenerator:
    """Generates pairs in memory with a trained adapter.

    >>> generator = PairGenerator.from_pretrained("results/out_joint_sdxl_cffa_pairs/first")
    >>> for pair in generator.sample(10, seed=0): ...
    """

    def __init__(self, plan: GenerationPlan) -> None:
        self._plan = plan

    @classmethod
    def from_pretrained(cls, adapter: Source, *, checkpoint: str = "best", **settings: Any) -> "PairGenerator":
        """Return a generator for a trained adapter. Its weights are loaded later, by `sample` or `save`.

        adapter: a run, the folder of a run, a checkpoint folder that contains `unet_lora`, or a `unet_lora` folder.
        checkpoint: which checkpoint of a run to use, "best" or "latest".
        settings: fields of `GenerateConfig`, which have the names and meanings of the flags of `retipair generate`:
        `base`, `device`, `precision`, `steps`, `sampler`, `guidance_scale`, `batch_size`, `prompt`, ...
        Raises UserError if there is no adapter, or if its base cannot be found.
        """
        run = adapter if isinstance(adapter, Run) else None
        folder = Path(adapter) if run is None else run.folder  # type: ignore[arg-type]
        if run is None and (folder / "config.json").is_file():
            run = Run(folder)
        path = run.adapter_folder(checkpoint) if run else folder
        with quiet_libraries():
            plan = plan_generation(_config(GenerateConfig, {"checkpoint": str(path), "out": Path(), **settings}))
        return cls(plan)

    def sample(self, count: int, *, seed: int = 0, verbose: bool = False) -> Iterator[LoadedPair]:
        """Generate `count` pairs one by one, and write nothing.

        Pair i is a function of (seed, i), as in `retipair generate`. If `min_consistency` or `max_copy` rejects an
        attempt at a pair, another attempt is made, up to `max_tries` attempts; then the pair is left out.
        """
        config = replace(self._plan.config, amount=count, seed=seed)
        check_values(config)
        check_generation(config)
        plan = replace(self._plan, config=config)
        with _output(verbose):
            loop = load(plan, {}, range(1, count + 1))  # {}: no settings, as no manifest is written
        for index in range(1, count + 1):
            while loop.tries[index] < config.max_tries:
                with quiet_libraries():
                    [images] = loop.sample([index])
                    rejected = loop.reject(index, images)
                if rejected is None:
                    yield LoadedPair(images.cf, images.fa, images.pair.mask, str(index))
                    break

    def save(self, out: str | Path, count: int, *, seed: int = 0, verbose: bool = False) -> Path:
        """Write the pairs that `sample` generates to the folder `out`, as `retipair generate` does; return `out`.

        Pairs that exist already, with the same settings, are kept. To continue an interrupted call, repeat it. Raises
        UserError if `out` holds other files, and Stopped if a signal stops the generation.
        """
        config = replace(self._plan.config, amount=count, seed=seed, out=Path(out))
        check_values(config)
        with _output(verbose):
            return generate(config)


def _config(kind: type[Config], settings: dict[str, Any], **given: Any) -> Config:
    """Build the config of a command from keyword arguments.

    Raises UserError for an unknown keyword; the message lists the valid keywords.
    """
    names = [field.name for field in fields(kind)]  # type: ignore[arg-type]
    if unknown := sorted(set(settings) - set(names)):
        raise UserError(f"unknown setting {unknown[0]!r}; {kind.__name__} has {', '.join(names)}")
    hints = get_type_hints(kind)
    paths = {name: Path(value) for name, value in settings.items() if isinstance(value, str) and _is_path(hints[name])}
    config = kind(**{**settings, **paths, **given})
    check_values(config)
    return config


def _is_path(hint: Any) -> bool:
    return Path in (hint, *get_args(hint))


@contextmanager
def _output(verbose: bool) -> Iterator[None]:
    """Print the output of a command if `verbose`, else send it to the logger; silence the messages of libraries."""
    with quiet_libraries(), nullcontext() if verbose else log_output():
        yield
