"""`retipair runs [RESULTS]`: compare training runs: settings that differ, best step, scores of generated pairs."""

import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, fields
from itertools import pairwise
from pathlib import Path
from typing import Any

from rich.table import Table
from rich.text import Text

from retipair.config import RunsConfig, TrainConfig
from retipair.evaluation.compared_scores import differing_names, read_compared_scores
from retipair.evaluation.scores import SCORES_NAME, Scores
from retipair.runs.model_selection import Validation
from retipair.runs.run_dir import METRICS_NAME, Run, pairs_place, results_folder
from retipair.runtime.atomic_io import last_parts, write_json
from retipair.runtime.console import console, show_table
from retipair.runtime.errors import MissingError, UserError, printable
from retipair.runtime.schema import to_values

_NOT_COMPARED = frozenset({"name", "resume", "dry_run", "offline", "results"})


@dataclass(frozen=True)
class RunSummary:
    """What the table shows of a run.

    folder: the folder of the run.
    settings: its settings, as values of JSON.
    step: the number of its steps so far.
    best: the validation of its best step; None before the first validation.
    scores: the scores of evaluations of pairs that its adapter generated, by the folder of the evaluation, or by
    "FOLDER: NAME" if the evaluation compared several sets.
    """

    folder: Path
    settings: dict[str, Any]
    step: int
    best: Validation | None
    scores: dict[str, Scores]


def compare_runs(config: RunsConfig) -> list[RunSummary]:
    """Print a table of all runs in RESULTS, and return their summaries. Raises UserError if there are none.

    Runs and evaluations that cannot be read are left out, with a warning.
    """
    evaluations = list(_evaluations(config.evaluations))
    configs = sorted(config.results.glob(f"{results_folder(Path(), '*')}/*/config.json"))
    runs = [Run(path.parent) for path in configs]
    summaries = [summary for run in runs if (summary := _readable(run, evaluations)) is not None]
    if not summaries:
        problem = "all its runs are damaged" if runs else "contains no run of `retipair train`"
        raise MissingError(config.results, f"{problem}; pass the --results folder of your runs")
    header, rows = _table(summaries)
    _print(header, rows)
    if config.json:
        shown = [[_text(value) if isinstance(value, str) else value for value in row] for row in rows]
        write_json(config.json, [dict(zip(header, row, strict=True)) for row in shown])
    return summaries


def _readable(run: Run, evaluations: Sequence[tuple[str, Scores]]) -> RunSummary | None:
    try:
        return _summary(run, evaluations)
    except UserError as error:
        console.print(f"warning: left out: {printable(str(error))}")
    except (OSError, KeyError, TypeError) as error:
        console.print(f"warning: left out: {printable(str(run.folder))}: damaged ({type(error).__name__}: {error})")
    return None


def _summary(run: Run, evaluations: Sequence[tuple[str, Scores]]) -> RunSummary:
    metrics = run.read_metrics() if (run.folder / METRICS_NAME).is_file() else []
    return RunSummary(
        folder=run.folder,
        settings=to_values(run.read_config()),
        step=max((line["step"] for line in metrics), default=0),
        best=run.best_validation(),
        scores={place: scores for place, scores in evaluations if is_about(scores, run.folder)},
    )


def _evaluations(places: Sequence[Path]) -> Iterator[tuple[str, Scores]]:
    """Yield the scores in `places` and their subfolders, without duplicates, by the keys of `RunSummary.scores`."""
    folders = dict.fromkeys(folder.resolve() for place in places for folder in (place, *sorted(place.glob("*/"))))
    if missing := next((place for place in places if not place.is_dir()), None):
        raise MissingError(missing, "no such folder; pass folders written by `retipair evaluate`")
    for folder in folders:
        if (folder / SCORES_NAME).is_file():
            try:
                compared = read_compared_scores(folder)
            except UserError as error:
                console.print(f"warning: left out: {printable(str(error))}")
                continue
            for name, scores in compared.sets.items():
                # The table shows the last part of the key, so the name has no separator.
                yield f"{folder}: {name.replace(os.sep, '_')}" if compared.several else str(folder), scores


def is_about(scores: Scores, run: Path) -> bool:
    """Return whether scores are about pairs that the adapter of a run generated, or name the run as --adapter.

    The paths in the scores may be relative to another folder, so only their last parts are compared.
    """
    known = scores.provenance
    places = [Path(path).parts for path in (known.generated, known.drawn_views, known.adapter) if path]
    wanted = {pairs_place(run), (run.parent.name, run.name)}
    return any(wanted & set(pairwise(parts)) for parts in places)


# --- The table


def _table(summaries: Sequence[RunSummary]) -> tuple[list[str], list[list[Any]]]:
    """Return the names of the columns, and one row for each evaluation of a run, or for a run without any."""
    names = [field.name for field in fields(TrainConfig) if field.name not in _NOT_COMPARED]
    differing = differing_names(names, [one.settings for one in summaries])
    scored = any(one.scores for one in summaries)
    header = ["run", *differing, "step", "best step", "loss", "consistency"]
    header += ["evaluation", "correlation", "squared MMD", "fine detail CF", "fine detail FA", "copies"] * scored
    rows = []
    for one in summaries:
        run = [_run_name(one, summaries), *(one.settings.get(name) for name in differing), one.step]
        run += [one.best.step, one.best.loss, one.best.consistency] if one.best else [None] * 3
        evaluations = [[Path(folder).name, *_scores(scores)] for folder, scores in one.scores.items()]
        rows += [[*run, *evaluation] for evaluation in evaluations] or [run + [None] * 6 * scored]
    return header, rows


def _run_name(one: RunSummary, summaries: Sequence[RunSummary]) -> str:
    """Return the name of a run, with its model family if there are runs of both."""
    several = len({summary.folder.parent for summary in summaries}) > 1
    return f"{one.folder.name} ({one.folder.parent.name.split('_')[2]})" if several else one.folder.name


def _scores(scores: Scores) -> list[float | None]:
    """Return the figures of an evaluation: correlation, squared MMD, fine detail of CF and FA, number of copies."""
    correlation, *fine = (
        mean.mean if mean else None
        for mean in (
            scores.consistency.correlation.get("generated"),
            scores.texture["cf"].fine_share.get("generated"),
            scores.texture["fa"].fine_share.get("generated"),
        )
    )
    distance = scores.distribution.mmd2 if scores.distribution else None
    return [correlation, distance, *fine, len(scores.copies)]


def _print(header: Sequence[str], rows: Sequence[Sequence[Any]]) -> None:
    table = Table(*header)
    for row in rows:
        table.add_row(*(Text(printable(_text(value))) for value in row))
    show_table(table, width=200)


def _text(value: Any) -> str:
    """Return the text of a cell. Of a path, only the last two parts are shown; other folders may name patients."""
    if value is None:
        return "-"
    if isinstance(value, str) and Path(value).is_absolute():
        return last_parts(value)
    return f"{value:.4g}" if isinstance(value, float) else str(value)
