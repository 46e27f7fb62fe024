"""Run the commands from Python, with the settings in `config/` as keywords."""

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, overload

from retipair.config import (
    CardConfig,
    EvaluateConfig,
    ExportAdapterConfig,
    ExportMatchesConfig,
    ExportPairsConfig,
    MergeConfig,
    PhantomConfig,
    PrepareConfig,
    RegisterConfig,
    RunsConfig,
    TrainConfig,
    UtilityConfig,
)
from retipair.evaluation import card as describing
from retipair.evaluation import evaluate as evaluation
from retipair.evaluation import runs as comparing
from retipair.evaluation.compared_scores import ComparedScores, read_compared_scores
from retipair.evaluation.runs import RunSummary
from retipair.evaluation.scores import Scores, read_scores
from retipair.generation import merge as merging
from retipair.interfaces.output import command_output
from retipair.matching.export import export
from retipair.matching.utility import utility as matching_test
from retipair.matching.utility.report import SCORES_NAME
from retipair.phantoms import phantom as rendering
from retipair.preparation import export_pairs as writing
from retipair.preparation import register as registering
from retipair.preparation.prepare import prepare_pairs
from retipair.preparation.registered import RegisteredPair, RegistrationRecord
from retipair.runs import export_adapter as exporting
from retipair.runs.run_dir import Run
from retipair.runtime.atomic_io import read_json
from retipair.runtime.errors import SettingError
from retipair.runtime.schema import from_settings
from retipair.training import train as training


def phantom(out: str | Path, *, verbose: bool = False, **settings: Any) -> Path:
    """Render synthetic eyes with their ground truth into the folder `out`, and return this folder.

    out: receives a prepared folder, or with `unregistered=True` a subfolder `raw` with raw pairs for `prepare`.
    verbose: print the messages of the command instead of logging them.
    settings: fields of `PhantomConfig`, which have the names and meanings of the flags of `retipair phantom`.
    Raises UserError for invalid settings, or if `out` contains other files.
    """
    config = from_settings(PhantomConfig, {**settings, "out": out})
    with command_output(verbose):
        return rendering.phantom(config)


def prepare(raw: str | Path, out: str | Path, *, verbose: bool = False, **settings: Any) -> Path:
    """Align the raw pairs in `raw`, write the prepared folder `out`, and return this folder.

    verbose: print the messages of the command instead of logging them.
    settings: fields of `PrepareConfig`, which have the names and meanings of the flags of `retipair prepare`.
    In a script, call this function below `if __name__ == "__main__":` if there are several workers, which is the
    default on several cores. Raises UserError for input that cannot be used.
    """
    config = from_settings(PrepareConfig, {**settings, "raw": raw, "out": out})
    with command_output(verbose):
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
    with command_output(verbose):
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
    with command_output(verbose):
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
    with command_output(verbose, config.offline):
        folder = training.train(config)
    assert folder is not None, "only dry_run creates no run"
    return Run(folder)


@overload
def evaluate(
    real: str | Path, generated: str | Path | None = None, *, verbose: bool = False, **settings: Any
) -> Scores: ...


@overload
def evaluate(
    real: str | Path, generated: Sequence[str | Path], *, verbose: bool = False, **settings: Any
) -> ComparedScores: ...


def evaluate(
    real: str | Path,
    generated: str | Path | Sequence[str | Path] | None = None,
    *,
    verbose: bool = False,
    **settings: Any,
) -> Scores | ComparedScores:
    """Compare generated pairs with real pairs, or only check the real pairs, and return the scores.

    >>> scores = evaluate("pairs", "generated", out="evaluation")
    >>> scores.headline, scores.consistency.correlation["generated"].mean, scores.copies

    With a list of folders, all are compared in one report, and the result has the scores of each by its name:

    >>> compared = evaluate("pairs", ["new/A", "new/B"], out="comparison")
    >>> compared.sets["A"].headline, compared.best.get("consistency"), compared.settings

    verbose: print the messages of the command instead of logging them.
    settings: fields of `EvaluateConfig`, which have the names and meanings of the flags of `retipair evaluate`.
    The report and `scores.json` are written to the folder `out`. `to_json` of the result is the content of
    `scores.json`. Raises UserError for folders without pairs, and if `out` contains the scores of other pairs.
    """
    if generated is None or isinstance(generated, str | os.PathLike):
        folders: Sequence[str | Path] = () if generated is None else (generated,)
    elif not generated:
        raise SettingError("generated", None, "the list has no folder; pass at least one, or None")
    else:
        folders = generated
    config = from_settings(EvaluateConfig, {**settings, "real": real, "generated": folders})
    with command_output(verbose, config.offline):
        evaluation.evaluate(config)
    return read_compared_scores(config.out) if folders is generated else read_scores(config.out)


def export_matches(pairs: str | Path, out: str | Path, *, verbose: bool = False, **settings: Any) -> Path:
    """Write warped pairs with known transforms into the folder `out`, and return this folder.

    pairs: a prepared or generated folder.
    verbose: print the messages of the command instead of logging them.
    settings: fields of `ExportMatchesConfig`, as the flags of `retipair export matches`.
    In a script, call this function below `if __name__ == "__main__":` if there are several workers, which is the
    default on several cores. Raises UserError for invalid settings, a folder without pairs, or other files in `out`.
    """
    config = from_settings(ExportMatchesConfig, {**settings, "pairs": pairs, "out": out})
    with command_output(verbose):
        return export(config)


def merge(out: str | Path, parts: Sequence[str | Path], *, verbose: bool = False) -> Path:
    """Copy the pairs of several generated folders into the folder `out`, and return it.

    >>> merge("many", ["part1", "part2"])

    parts: folders that `retipair generate --shard` wrote, with the same settings. verbose: print all messages.
    Raises UserError if they cannot be merged; no file is copied then.
    """
    config = from_settings(MergeConfig, {"out": out, "parts": parts})
    with command_output(verbose):
        return merging.merge(config)


def export_adapter(adapter: Run | str | Path, out: str | Path, *, verbose: bool = False, **settings: Any) -> Path:
    """Write an adapter in the format of another program to `out`, and return `out`.

    adapter: a run, the folder of a run, checkpoint or `unet_lora`, or a LoRA file. verbose: print all messages.
    settings: fields of `ExportAdapterConfig`, as the flags of `retipair export adapter`, for example `to="merged"`.
    Raises UserError for an adapter or base that cannot be read, a format that cannot hold it, or if `out` exists.
    """
    adapter = adapter.folder if isinstance(adapter, Run) else adapter
    config = from_settings(ExportAdapterConfig, {**settings, "adapter": adapter, "out": out})
    with command_output(verbose, config.offline):
        return exporting.export_adapter(config)


def export_pairs(pairs: str | Path, out: str | Path, *, verbose: bool = False, **settings: Any) -> Path:
    """Write aligned pairs as a data set of Parquet or tar files into the folder `out`, and return this folder.

    pairs: a prepared or generated folder.
    verbose: print the messages of the command instead of logging them.
    settings: fields of `ExportPairsConfig`, as the flags of `retipair export pairs`; `to` is required.
    Raises UserError for invalid settings, a folder without pairs, or other files in `out`.
    """
    config = from_settings(ExportPairsConfig, {**settings, "pairs": pairs, "out": out})
    with command_output(verbose):
        return writing.export_pairs(config)


def card(directory: Run | str | Path, *, verbose: bool = False, **settings: Any) -> Path:
    """Write README.md, the card of a data set or of an adapter, into a folder, and return its path.

    directory: a prepared or generated folder, the folder of an export of pairs, a run, or the folder of a run.
    verbose: print the messages of the command instead of logging them.
    settings: fields of `CardConfig`, as the flags of `retipair card`.
    Raises UserError for any other folder, for an --evaluation of other pairs, or if you wrote or edited its README.md.
    """
    directory = directory.folder if isinstance(directory, Run) else directory
    config = from_settings(CardConfig, {**settings, "directory": directory})
    with command_output(verbose):
        return describing.card(config)


def compare_runs(
    results: str | Path = RunsConfig.results, *, verbose: bool = False, **settings: Any
) -> list[RunSummary]:
    """Return the summaries of all training runs in a results folder: settings, best step, scores of their pairs.

    verbose: print the table of the command `retipair runs`, and its messages, instead of logging them.
    settings: fields of `RunsConfig`, as the flags of `retipair runs`.
    Raises UserError if the folder contains no run.
    """
    config = from_settings(RunsConfig, {**settings, "results": results})
    with command_output(verbose):
        return comparing.compare_runs(config)


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
    with command_output(verbose):
        matching_test.utility(config)
    return read_json(config.out / SCORES_NAME)


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
