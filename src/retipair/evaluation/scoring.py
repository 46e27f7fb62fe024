"""Compute the scores of real and generated pairs from the metrics of each pair."""

from collections.abc import Sequence
from dataclasses import fields, replace
from typing import TypeVar

import numpy as np

from retipair.data.selection import evenly_spaced_indices
from retipair.evaluation.copies import duplicate_eyes, search_copies
from retipair.evaluation.distances import feature_distances
from retipair.evaluation.means import Mean, mean_with_interval
from retipair.evaluation.measurements import MeasuredSet
from retipair.evaluation.provenance import Provenance
from retipair.evaluation.scores import (
    AnatomyScores,
    ConsistencyScores,
    DeepDistances,
    ExamplePair,
    LayoutScores,
    Means,
    Reconstruction,
    Scores,
    Spectra,
    TextureScores,
    TrainingScores,
    VesselScores,
)
from retipair.evaluation.sets import Sets
from retipair.metrics.data_issues import DataIssue, find_issues
from retipair.metrics.pair_metrics import VIEWS
from retipair.metrics.spectrum import BANDS

SHOWN = 3
"""Number of generated pairs shown in each of three groups: best, middle and worst."""
_MAX_PLOTTED = 500
"""Maximum number of pairs per set that are plotted, each as a dot."""
_PLOTTED = (
    "consistency.correlation",
    *(f"{view}.{name}" for view in VIEWS for name in ("texture.fine_share", "vessels.density_thin")),
)
Table = TypeVar("Table", ConsistencyScores, TextureScores, VesselScores, AnatomyScores)


def compute_scores(
    sets: Sets,
    provenance: Provenance,
    layouts: LayoutScores,
    deep: DeepDistances | None,
    training: TrainingScores | None,
    withheld: Sequence[str] = (),
) -> Scores:
    """Return all scores except the drawn views, the texture after the autoencoder, and the verdict.

    The parameters after `sets` are stored in the scores unchanged.
    """
    issues = sets.once("issues", lambda: _issues(sets))
    return Scores(
        provenance=provenance,
        sizes={name: len(measured.entries) for name, measured in sets.named.items()},
        consistency=_consistency(sets),
        texture={view: _table(TextureScores, sets, f"{view}.texture") for view in VIEWS},
        colour={view: _means(sets, f"{view}.chroma") for view in VIEWS},
        vessels={view: _table(VesselScores, sets, f"{view}.vessels") for view in VIEWS},
        anatomy={view: _table(AnatomyScores, sets, f"{view}.anatomy") for view in VIEWS},
        diversity=_diversity(sets),
        distribution=feature_distances(sets),
        memorisation=search_copies(sets),
        spectra=_spectra(sets),
        issues=tuple(issues),
        plotted={metric: _plotted(sets, metric) for metric in _PLOTTED},
        examples=_examples(sets.generated) if sets.generated else {},
        suspect_pairs=_suspect_pairs(sets, issues),
        withheld=tuple(withheld),
        deep=deep,
        layouts=layouts,
        training=training,
    )


def add_autoencoder(scores: Scores, rows: Sequence[Reconstruction]) -> Scores:
    """Return the scores with added texture metrics of real views that the base's autoencoder encoded and decoded.

    The added metrics are stored under the set name "autoencoder".

    rows: the mean metrics of these views in the layout of the base, one row for the CF and one for the FA.
    """
    texture = dict(scores.texture)
    for row in rows:
        columns = vars(texture[row.view])
        texture[row.view] = TextureScores(
            **{name: {**means, "autoencoder": _without_interval(row, name)} for name, means in columns.items()}
        )
    return replace(scores, texture=texture)


def _without_interval(row: Reconstruction, metric: str) -> Mean:
    mean = row.texture[metric]
    assert mean is not None, "texture is always finite"
    return Mean(mean, None, None, row.n)


# --- Tables: means with intervals, one column per set


def _means(sets: Sets, metric: str) -> Means:
    """Return the mean of a metric over each set."""
    return {name: mean_with_interval(measured.values[metric]) for name, measured in sets.named.items()}


def _table(kind: type[Table], sets: Sets, prefix: str) -> Table:
    """Return a table of metrics, each with its mean over each set.

    kind: the class of the table. Its fields are the names of the metrics.
    prefix: the start of the metric names in `MeasuredSet.values`, such as "cf.texture".
    """
    return kind(**{field.name: _means(sets, f"{prefix}.{field.name}") for field in fields(kind)})


def _consistency(sets: Sets) -> ConsistencyScores:
    """Return the mean consistency over each set, and over mispaired pairs: real CF, each with the FA of another eye."""
    columns = vars(_table(ConsistencyScores, sets, "consistency"))
    chance = {name: _mean_of_links(sets.real, f"mispaired.{name}") for name in columns}
    return ConsistencyScores(**{name: {**means, "mispaired": chance[name]} for name, means in columns.items()})


def _mean_of_links(measured: MeasuredSet, metric: str) -> Mean | None:
    """Return the mean of a metric over the links of a set (see `measurements`), or None if all pairs show one eye."""
    return mean_with_interval(measured.links[metric]) if measured.links else None


def _diversity(sets: Sets) -> dict[str, Means]:
    """Return the mean MS-SSIM between different eyes. A high value shows a lack of diversity (mode collapse)."""
    both = {"generated": sets.generated, "real": sets.real}
    return {
        view: {name: _mean_of_links(measured, f"ms_ssim.{view}") for name, measured in both.items() if measured}
        for view in VIEWS
    }


def _spectra(sets: Sets) -> Spectra:
    """Return the mean power of each set in each frequency ring, which shows whether a set is blurred or noisy."""
    rows = {name: measured.power.mean(axis=0, dtype=np.float64) for name, measured in sets.named.items()}
    cf, fa = ({name: tuple(row[index].tolist()) for name, row in rows.items()} for index in range(2))
    return Spectra(tuple(np.sqrt(BANDS[:-1] * BANDS[1:]).tolist()), cf, fa)


# --- Pairs shown in the report


def _issues(sets: Sets) -> list[DataIssue]:
    """Return likely errors in real pairs: pairs with the lowest vesselness correlation first, duplicate eyes last."""
    real = sets.real
    order = np.argsort(real.values["consistency.correlation"], kind="stable").tolist()
    colour = real.entries[0].modalities.first.colour
    issues = [issue for row in order for issue in find_issues(real.entries[row].id, real.metrics(row), colour)]
    return issues + duplicate_eyes(real)


def _example(measured: MeasuredSet, name: str, row: int) -> ExamplePair:
    metrics = {key: float(column[row]) for key, column in measured.values.items()}
    return ExamplePair(name, measured.entries[row].id, metrics)


def _examples(generated: MeasuredSet) -> dict[str, tuple[ExamplePair, ...]]:
    """Return the pairs with the highest, median and lowest vesselness correlation, or all pairs if there are few."""
    rows = np.argsort(-generated.values["consistency.correlation"], kind="stable").tolist()
    middle = max(0, (len(rows) - SHOWN) // 2)
    parts = {"best": rows[:SHOWN], "middle": rows[middle : middle + SHOWN], "worst": rows[-SHOWN:]}
    if len(rows) <= 3 * SHOWN:
        parts = {"all": rows}
    return {name: tuple(_example(generated, "generated", row) for row in part) for name, part in parts.items()}


def _suspect_pairs(sets: Sets, issues: Sequence[DataIssue]) -> tuple[ExamplePair, ...]:
    """Return the first 2 * SHOWN of the real pairs that have issues, in the order of the issues."""
    ids = list(dict.fromkeys(issue.id for issue in issues))[: 2 * SHOWN]
    rows = {entry.id: row for row, entry in enumerate(sets.real.entries) if entry.id in ids}
    return tuple(_example(sets.real, sets.real.entries[rows[id]].split, rows[id]) for id in ids)


def _plotted(sets: Sets, metric: str) -> dict[str, tuple[float, ...]]:
    """Return set -> the metric of each pair, for at most _MAX_PLOTTED evenly spaced pairs of the set."""
    values = {name: measured.values[metric] for name, measured in sets.named.items()}
    return {
        name: tuple(column[evenly_spaced_indices(len(column), _MAX_PLOTTED)].tolist())
        for name, column in values.items()
    }
