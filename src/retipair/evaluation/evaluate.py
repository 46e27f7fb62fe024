"""Evaluate generated pairs against real pairs, and write scores.json and an HTML report."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from retipair.config import EvaluateConfig
from retipair.data.dataset import PairRecord, read_folder
from retipair.data.rejected import REJECTED_NAME, add_rejected
from retipair.evaluation import reconstruction
from retipair.evaluation.comparison import CACHE_NAME, FIGURES_NAME, Comparison, earlier_scores, load_comparison
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

    Metrics that are already cached in OUT are not computed again. With neither --generated nor --drawn_views, only the
    real pairs are checked.
    Raises UserError, before anything is written, if a folder is not a dataset or OUT contains scores of other pairs.
    """
    # Check
    compared = load_comparison(config)
    scores = earlier_scores(config.out, compared.provenance)

    # Measure and score
    dist, page = distributed_state("cpu"), config.out / PAGE_NAME
    folders = (compared.real, compared.generated, compared.drawn_views)
    for note in (pairs.note for pairs in folders if pairs and pairs.note):
        console.print(note)
    with directory_lock(config.out, dist.is_main_process):
        if scores is None:
            # Measure the layouts first, so that their images are freed before the metrics of all pairs are loaded.
            layouts = _layouts(compared) if dist.is_main_process else None
            sets = _measure(compared, dist)
            scores = _score(compared, sets, layouts) if layouts else None
        if scores is None or not dist.is_main_process:  # only the main process writes the report
            return page
        if config.withhold_copies:
            scores = _without_copies(compared, scores)
        write_json(config.out / SCORES_NAME, scores.to_json())

        # Report
        write_report(config.out, scores)
    if legend := compared.real.entries[0].modalities.legend:
        console.print(legend)
    _print_summary(scores)
    print(f"Report: {page.resolve()}")
    return page


def _score(compared: Comparison, sets: Sets, layouts: LayoutScores, withheld: Sequence[str] = ()) -> Scores:
    """Write the metrics of each pair to OUT/figures.csv, and return all scores.

    withheld: the ids of the generated pairs that have just been rejected because they are copies of training pairs.
    """
    write_metrics_table(compared.config.out / FIGURES_NAME, sets)
    deep = _deep(sets, compared.model) if compared.model else None
    scores = compute_scores(sets, compared.provenance, layouts, deep, compared.training, withheld)
    folder = compared.drawn_views or compared.generated
    drawn_views = measure_drawn_views(folder.kept if folder else [], sets.real.entries, compared.config.workers)
    scores = replace(scores, drawn_views=drawn_views)
    if base := compared.base:
        rows = [row for row in layouts.rows if (row.layout, row.between) == (base.family.layout, "autoencoder")]
        scores = add_autoencoder(scores, rows)
    return add_verdict(scores)


def _without_copies(compared: Comparison, scores: Scores) -> Scores:
    """Reject the generated pairs that copy training pairs, and return the scores of the remaining pairs.

    Returns the given scores if there are no copies, or if all generated pairs are copies.
    """
    folder, copies = compared.config.generated, scores.copies
    if not copies:
        return scores
    assert folder is not None
    add_rejected(folder, copies, "copies of training pairs (retipair evaluate --withhold_copies)")
    print(f"{count(len(copies), 'copy', 'copies')} of training pairs rejected in {folder / REJECTED_NAME}")
    without_copies = read_folder(folder)
    if not without_copies.kept:
        return scores
    remaining = replace(compared, generated=without_copies)
    return _score(remaining, _measure(remaining, SINGLE_PROCESS), scores.layouts, withheld=copies)


def _measure(compared: Comparison, dist: DistributedState) -> Sets:
    config = compared.config

    def measured(name: str, entries: Sequence[PairRecord]) -> MeasuredSet:
        return measure_set(f"{name} pairs", entries, config.out / CACHE_NAME, config.workers, dist)

    if compared.generated is None:
        return Sets(measured("real", compared.real.kept), None)
    ids = set(compared.real.rejected)
    rejected = [entry for entry in compared.real.known if entry.id in ids and entry.split == "train"]
    return Sets(
        measured("real", compared.real.kept),
        measured("generated", compared.generated.kept),
        measured("rejected training", rejected) if rejected else None,
    )


def _deep(sets: Sets, model: ImageModel) -> DeepDistances | None:
    if sets.generated is None:
        return None
    named = {"generated pairs": sets.generated, "real pairs": sets.real}
    return deep_distances(*(deep_features(name, measured, model) for name, measured in named.items()))


def _layouts(compared: Comparison) -> LayoutScores:
    """Measure how well real pairs are preserved when they are joined in each layout and split again.

    If a base is given, a second measurement encodes and decodes the joint image with the autoencoder of the base before
    the split. Uses training pairs, or all real pairs if there are no training pairs.
    """
    base, real = compared.base, compared.real.kept
    codecs = {"nothing": reconstruction.nothing} | ({"autoencoder": reconstruction.autoencoder(base)} if base else {})
    size = base.view_size if base else reconstruction.USUAL_SIZE
    train = [entry for entry in real if entry.split == "train"]
    return LayoutScores(size, reconstruction.reconstruct(train or real, size, codecs))


def _print_summary(scores: Scores) -> None:
    columns = ", ".join(
        f"{name} {round(row.mean, 2) + 0:.2f}" for name, row in scores.consistency.correlation.items() if row
    )
    console.print(f"Consistency (vesselness correlation) of the two views: {columns}")
    for mode_scores in scores.drawn_views.values():
        view, means = mode_scores.view.upper(), mode_scores.correlation.drawn_view.items()
        columns = ", ".join(f"{name} {round(row.mean, 2) + 0:.2f}" for name, row in means if row) or "unknown"
        console.print(f"Vesselness correlation of the drawn {view} with the true {view}: {columns}")
    for issue in scores.issues:
        console.print(f"check {issue.id}: {issue.text}")
    console.print(printable(scores.headline))
