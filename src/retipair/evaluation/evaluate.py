"""Evaluate generated pairs against real pairs, and write scores.json and an HTML report."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from retipair.config import EvaluateConfig
from retipair.data.dataset import PairRecord, read_folder
from retipair.data.rejected import REJECTED_NAME, add_rejected
from retipair.evaluation import reconstruction
from retipair.evaluation.compared_scores import ComparedScores
from retipair.evaluation.comparison import (
    CACHE_NAME,
    FIGURES_NAME,
    Comparison,
    earlier_scores,
    load_comparisons,
    set_settings,
)
from retipair.evaluation.distances import deep_distances
from retipair.evaluation.drawn_views import measure_drawn_views
from retipair.evaluation.findings import count
from retipair.evaluation.measurements import MeasuredSet, deep_features, measure_set
from retipair.evaluation.report import PAGE_NAME, write_report
from retipair.evaluation.scores import SCORES_NAME, DeepDistances, LayoutScores, Scores
from retipair.evaluation.scoring import add_autoencoder, compute_scores
from retipair.evaluation.sets import Sets, write_metrics_table
from retipair.evaluation.verdict import add_verdict
from retipair.models.feature_extractor import ImageModel
from retipair.runtime.atomic_io import write_json
from retipair.runtime.console import console
from retipair.runtime.distributed import SINGLE_PROCESS, DistributedState, distributed_state
from retipair.runtime.errors import printable
from retipair.runtime.lock import directory_lock


def evaluate(config: EvaluateConfig) -> Path:
    """Evaluate pairs, write OUT/scores.json and OUT/report.html, and return the path of the report.

    Metrics that are already cached in OUT are not computed again. Several sets of generated pairs are compared in one
    report. With neither --generated nor --drawn_views, only the real pairs are checked.
    Raises UserError, before scores are written, if a folder is neither prepared nor generated, or if OUT contains
    scores of other pairs.
    """
    # Check
    sets = load_comparisons(config)
    settings = [set_settings(folder) for folder in config.generated] if len(sets) > 1 else []
    scores = earlier_scores(config.out, {name: compared.provenance for name, compared in sets.items()})

    # Measure and score
    dist, page = distributed_state("cpu"), config.out / PAGE_NAME
    first = next(iter(sets.values()))
    folders = (first.real, *(compared.generated for compared in sets.values()), first.drawn_views)
    for note in (pairs.note for pairs in folders if pairs and pairs.note):
        console.print(note)
    with directory_lock(config.out, dist.is_main_process):
        measured: dict[str, Sets] = {}
        if len(scores) < len(sets):
            # Measure the layouts first, so that their images are freed before the metrics of all pairs are loaded.
            layouts = _layouts(first, scores) if dist.is_main_process else None
            measured = _measure(sets, dist)
            scores = _score(sets, measured, scores, layouts) if layouts else {}
        if not dist.is_main_process:  # only the main process writes the report
            return page
        if config.withhold_copies:
            scores, measured = _without_copies(sets, scores, measured)
        compared_scores = ComparedScores.of(scores, settings)
        _write_scores(config.out, compared_scores, measured)

        # Report
        write_report(config.out, compared_scores)
    if legend := first.real.entries[0].modalities.legend:
        console.print(legend)
    _print_summary(compared_scores)
    print(f"Report: {page.resolve()}")
    return page


def _write_scores(out: Path, scores: ComparedScores, measured: Mapping[str, Sets]) -> None:
    """Write scores.json, then the metrics of the pairs to figures.csv, which stays as it is if `measured` is empty.

    The old report and table are deleted first. So they never lie beside scores that they do not describe: without the
    table, `earlier_scores` reuses no scores.
    """
    (out / PAGE_NAME).unlink(missing_ok=True)
    if measured:
        (out / FIGURES_NAME).unlink(missing_ok=True)
    write_json(out / SCORES_NAME, scores.to_json())
    if measured:
        write_metrics_table(out / FIGURES_NAME, measured)


def _score(
    sets: Mapping[str, Comparison], measured: Mapping[str, Sets], known: Mapping[str, Scores], layouts: LayoutScores
) -> dict[str, Scores]:
    """Return the scores of all sets, of which `known` has some."""
    return {
        name: known[name] if name in known else _score_set(compared, measured[name], layouts)
        for name, compared in sets.items()
    }


def _score_set(compared: Comparison, sets: Sets, layouts: LayoutScores, withheld: Sequence[str] = ()) -> Scores:
    """Return all scores of one set of generated pairs.

    withheld: the ids of the generated pairs that have just been rejected because they are copies of training pairs.
    """
    deep = _deep(sets, compared.model) if compared.model else None
    scores = compute_scores(sets, compared.provenance, layouts, deep, compared.training, withheld)
    folder = compared.drawn_views or compared.generated
    drawn_views = measure_drawn_views(folder.kept if folder else [], sets.real.entries, compared.config.workers)
    scores = replace(scores, drawn_views=drawn_views)
    if base := compared.base:
        rows = [row for row in layouts.rows if (row.layout, row.between) == (base.family.layout, "autoencoder")]
        scores = add_autoencoder(scores, rows)
    return add_verdict(scores)


def _without_copies(
    sets: Mapping[str, Comparison], scores: Mapping[str, Scores], measured: dict[str, Sets]
) -> tuple[dict[str, Scores], dict[str, Sets]]:
    """Reject the generated pairs that copy training pairs, and return the scores and the metrics of the other pairs.

    The scores of a set are the given ones if it has no copies, or if all its pairs are copies.
    """
    remaining = {name: _reject(compared, scores[name].copies) for name, compared in sets.items()}
    changed = [name for name, compared in remaining.items() if compared is not sets[name]]
    if not changed:
        return dict(scores), measured
    measured = _measure(remaining, SINGLE_PROCESS)
    rescored = {
        name: _score_set(remaining[name], measured[name], scores[name].layouts, scores[name].copies) for name in changed
    }
    return {**scores, **rescored}, measured


def _reject(compared: Comparison, copies: Sequence[str]) -> Comparison:
    """Reject these generated pairs, and return the inputs without them, or the same inputs if no pair would be left."""
    if not copies:
        return compared
    assert compared.generated is not None
    folder = compared.generated.path
    add_rejected(folder, copies, "copies of training pairs (retipair evaluate --withhold_copies)")
    print(f"{count(len(copies), 'copy', 'copies')} of training pairs rejected in {folder / REJECTED_NAME}")
    without_copies = read_folder(folder, compared.config.reviewed)
    return compared.with_generated(without_copies) if without_copies.kept else compared


def _measure(sets: Mapping[str, Comparison], dist: DistributedState) -> dict[str, Sets]:
    """Measure the real pairs and each set of generated pairs, and return each set beside the real pairs."""
    first = next(iter(sets.values()))
    config, real = first.config, first.real

    def measured(name: str, entries: Sequence[PairRecord]) -> MeasuredSet:
        return measure_set(name, entries, config.out / CACHE_NAME, config.workers, dist)

    alone = Sets(measured("real pairs", real.kept), None)
    if first.generated is None:
        return dict.fromkeys(sets, alone)
    named = {name: compared.generated for name, compared in sets.items() if compared.generated}
    titles = {name: f"pairs of {name}" if len(sets) > 1 else "generated pairs" for name in named}
    generated = {name: measured(titles[name], folder.kept) for name, folder in named.items()}
    ids = set(real.rejected)
    rejected = [entry for entry in real.known if entry.id in ids and entry.split == "train"]
    alone = replace(alone, rejected=measured("rejected training pairs", rejected) if rejected else None)
    return {name: replace(alone, generated=pairs) for name, pairs in generated.items()}


def _deep(sets: Sets, model: ImageModel) -> DeepDistances | None:
    if sets.generated is None:
        return None
    named = {"generated pairs": sets.generated, "real pairs": sets.real}
    return deep_distances(*(deep_features(name, measured, model) for name, measured in named.items()))


def _layouts(compared: Comparison, known: Mapping[str, Scores]) -> LayoutScores:
    """Measure how well real pairs are preserved when they are joined in each layout and split again.

    If a base is given, a second measurement encodes and decodes the joint image with the autoencoder of the base before
    the split. Uses training pairs, or all real pairs if there are no training pairs.

    known: scores of the same real pairs and the same base, if there are any; their measurement is returned.
    """
    if known:
        return next(iter(known.values())).layouts
    base, real = compared.base, compared.real.kept
    codecs = {"nothing": reconstruction.nothing} | ({"autoencoder": reconstruction.autoencoder(base)} if base else {})
    size = base.view_size if base else reconstruction.USUAL_SIZE
    train = [entry for entry in real if entry.split == "train"]
    return LayoutScores(size, reconstruction.reconstruct(train or real, size, codecs))


def _print_summary(compared: ComparedScores) -> None:
    for name, scores in compared.sets.items():
        _print_agreement(scores, f"{name}: " if compared.several else "")
    for issue in compared.scores[0].issues:
        console.print(f"check {issue.id}: {issue.text}")
    for name, scores in compared.sets.items():
        console.print(printable(f"{name}: {scores.headline}" if compared.several else scores.headline))


def _print_agreement(scores: Scores, prefix: str) -> None:
    columns = ", ".join(
        f"{name} {round(row.mean, 2) + 0:.2f}" for name, row in scores.consistency.correlation.items() if row
    )
    console.print(printable(f"{prefix}Consistency (vesselness correlation) of the two views: {columns}"))
    for mode_scores in scores.drawn_views.values():
        view, means = mode_scores.view.upper(), mode_scores.correlation.drawn_view.items()
        columns = ", ".join(f"{name} {round(row.mean, 2) + 0:.2f}" for name, row in means if row) or "unknown"
        console.print(printable(f"{prefix}Vesselness correlation of the drawn {view} with the true {view}: {columns}"))
