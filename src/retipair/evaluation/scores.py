"""Compute the scores of two sets of pairs from their metrics: means, distances, copies and data issues."""

import csv
from codecs import getwriter
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from scipy.stats import bootstrap

from retipair.evaluation.measurements import MeasuredSet
from retipair.evaluation.metric_cache import StoredDescriptors
from retipair.metrics import distribution, memorisation
from retipair.metrics.data_issues import DataIssue, find_duplicate_eyes, find_issues
from retipair.metrics.distribution import evenly_spaced_indices
from retipair.metrics.memorisation import Nearest
from retipair.metrics.pair_metrics import VIEWS
from retipair.metrics.texture import BANDS
from retipair.runtime.atomic_io import atomic_write
from retipair.runtime.console import progress

CLOSEST = 10
"""Number of generated pairs shown with their nearest training pair."""
SHOWN = 3
"""Number of generated pairs shown from each of best, middle and worst."""
DOTS = 500
"""Maximum number of pairs per set plotted individually."""
_PLOTTED = (
    "consistency.correlation",
    *(f"{view}.{name}" for view in VIEWS for name in ("texture.fine_share", "vessels.density_thin")),
)
_MAX_COMPARED = 1000
"""Maximum number of real pairs among which each real pair's nearest is searched, to avoid quadratic cost."""
_MAX_FOR_DISTANCES = 20_000
"""Maximum number of pairs per set for distances between sets, to avoid quadratic cost."""
_MAX_RESAMPLED = 1000
"""Maximum number of values for a bootstrap interval; for more, the mean is taken as normally distributed."""
_RESAMPLES = 2000
_MIN_FOR_FLOOR = 4

Scores = dict[str, Any]


@dataclass(frozen=True)
class Sets:
    """Sets to compare: the real pairs of all splits, and the generated pairs, if any.

    rejected: rejected training pairs whose files still exist; used only in the search for copies.
    """

    real: MeasuredSet
    generated: MeasuredSet | None
    rejected: MeasuredSet | None = None

    @cached_property
    def train(self) -> MeasuredSet:
        return self.real.of_split("train")

    @cached_property
    def known(self) -> MeasuredSet:
        """Training pairs including rejected ones, since a model may have been trained on them before."""
        return self.train.concatenate(self.rejected) if self.rejected else self.train

    @cached_property
    def named(self) -> dict[str, MeasuredSet]:
        """Non-empty sets by name, one per table column."""
        held_out: dict[str, MeasuredSet] = {split: self.real.of_split(split) for split in ("val", "test")}
        columns = {"generated": self.generated, "train": self.train, **held_out}
        return {name: measured for name, measured in columns.items() if measured is not None and measured.entries}


def score(sets: Sets) -> Scores:
    """Return the scores that depend only on the metrics of the pairs, under the keys of scores.json."""
    issues = _issues(sets)
    return {
        "sizes": {name: len(measured.entries) for name, measured in sets.named.items()},
        "consistency": _table(sets, "consistency.", mispaired=True),
        "texture": {view: _table(sets, f"{view}.texture.") for view in VIEWS},
        "colour": {view: _columns(sets, f"{view}.chroma") for view in VIEWS},
        "vessels": {view: _table(sets, f"{view}.vessels.") for view in VIEWS},
        "anatomy": {view: _table(sets, f"{view}.anatomy.") for view in VIEWS},
        "diversity": _diversity(sets),
        "distribution": _distribution(sets),
        "memorisation": _memorisation(sets),
        "spectra": _spectra(sets),
        "doubts": [asdict(issue) for issue in issues],
        "dots": {metric: _dots(sets, metric) for metric in _PLOTTED},
        "shown": _examples(sets.generated) if sets.generated else {},
        "doubtful": _suspect_pairs(sets, issues),
    }


def write_figures(path: Path, sets: Sets) -> None:
    """Write all metrics of all pairs atomically as a CSV table, in the order of the manifests."""
    with atomic_write(path) as stream:
        table = csv.writer(getwriter("utf-8")(stream), lineterminator="\n")
        table.writerow(["set", "id", *sets.real.values])
        for name, measured in sets.named.items():
            for entry, *values in zip(measured.entries, *measured.values.values(), strict=True):
                table.writerow([name, entry.id, *map(float, values)])


# --- Tables: means with intervals, one column per set


def _interval(values: np.ndarray) -> dict[str, float | int | None] | None:
    """Return the mean of values (n,) with its 95 % interval (percentile bootstrap; none for fewer than three)."""
    if not len(values):
        return None
    column: dict[str, float | int | None] = {
        "mean": float(np.mean(values)),
        "low": None,
        "high": None,
        "n": len(values),
    }
    if len(values) > 2:
        column |= dict(zip(("low", "high"), _bounds(values), strict=True))
    return column


def _bounds(values: np.ndarray) -> tuple[float, float]:
    if len(values) > _MAX_RESAMPLED:
        mean, margin = float(values.mean()), 1.96 * float(values.std(ddof=1)) / len(values) ** 0.5
        return mean - margin, mean + margin
    sampled = bootstrap((values,), np.mean, n_resamples=_RESAMPLES, method="percentile", rng=0).confidence_interval
    return float(sampled.low), float(sampled.high)


def _columns(sets: Sets, metric: str) -> Scores:
    """Return the mean of a metric over each set."""
    return {name: _interval(measured.values[metric]) for name, measured in sets.named.items()}


def _table(sets: Sets, prefix: str, mispaired: bool = False) -> Scores:
    """Return all metrics with this prefix over each set; mispaired: also over real CFs with other eyes' FAs."""
    names = [name for name in sets.real.values if name.startswith(prefix)]
    table: Scores = {}
    for name in names:
        short = name.removeprefix(prefix)
        table[short] = _columns(sets, name)
        if mispaired:
            table[short]["mispaired"] = _of_links(sets.real, f"mispaired.{short}")
    return table


def _of_links(measured: MeasuredSet, metric: str) -> dict[str, float | int | None] | None:
    """Return the mean of a metric between different eyes, or None if all pairs show one eye."""
    return _interval(measured.links[metric]) if measured.links else None


# --- Pairs shown on the page


def _with_metrics(measured: MeasuredSet, name: str, row: int) -> Scores:
    """Return the set, id and all metrics of a pair."""
    metrics = {key: float(column[row]) for key, column in measured.values.items()}
    return {"set": name, "id": measured.entries[row].id, **metrics}


def _examples(generated: MeasuredSet) -> Scores:
    """Return the best, middle and worst pairs by vesselness correlation, or all if there are few."""
    rows = np.argsort(-generated.values["consistency.correlation"], kind="stable").tolist()
    middle = max(0, (len(rows) - SHOWN) // 2)
    parts = {"best": rows[:SHOWN], "middle": rows[middle : middle + SHOWN], "worst": rows[-SHOWN:]}
    if len(rows) <= 3 * SHOWN:
        parts = {"all": rows}
    return {name: [_with_metrics(generated, "generated", row) for row in part] for name, part in parts.items()}


def _suspect_pairs(sets: Sets, issues: Sequence[DataIssue]) -> list[Scores]:
    """Return the first real pairs with data issues, in the order of the issues."""
    ids = list(dict.fromkeys(issue.id for issue in issues))[: 2 * SHOWN]
    rows = {entry.id: row for row, entry in enumerate(sets.real.entries) if entry.id in ids}
    return [_with_metrics(sets.real, sets.real.entries[rows[id]].split, rows[id]) for id in ids]


def _dots(sets: Sets, metric: str) -> Scores:
    """Return a metric of at most DOTS evenly spaced pairs of each set."""
    values = {name: measured.values[metric] for name, measured in sets.named.items()}
    return {name: column[evenly_spaced_indices(len(column), DOTS)].tolist() for name, column in values.items()}


def _diversity(sets: Sets) -> Scores:
    """Return the MS-SSIM between different eyes, which is high after mode collapse."""
    both = {"generated": sets.generated, "real": sets.real}
    return {
        view: {name: _of_links(measured, f"alike.{view}") for name, measured in both.items() if measured}
        for view in VIEWS
    }


# --- Distances


def _distribution(sets: Sets) -> Scores | None:
    """Return the distances between generated and real pairs, or None if either set has too few pairs."""
    real = sets.real.features[evenly_spaced_indices(len(sets.real.features), _MAX_FOR_DISTANCES)].astype(np.float64)
    if sets.generated is None or min(len(real), len(sets.generated.entries)) <= distribution.NEIGHBOURS:
        return None
    made = sets.generated.features[evenly_spaced_indices(len(sets.generated.features), _MAX_FOR_DISTANCES)].astype(
        np.float64
    )
    differences = distribution.robust_standardize(made, real).mean(axis=0).tolist()
    named = zip(distribution.feature_names(), differences, strict=True)
    furthest = sorted(named, key=lambda feature: -abs(feature[1]))
    plain = distribution.plain_names()
    return {
        "mmd2": distribution.mmd2(made, real, real),
        "floor": distribution.null_mmd2(real),
        **asdict(distribution.prdc(real, made)),
        "furthest": [
            {"feature": name, "name": plain[name], "deviations": difference} for name, difference in furthest[:CLOSEST]
        ],
    }


def deep_distances(generated: np.ndarray, real: np.ndarray) -> Scores | None:
    """Return MMD and FID on an image model's features, (n, 2, D) each, or None if either set has too few pairs."""
    amount = min(len(real), len(generated))
    if amount < _MIN_FOR_FLOOR:
        return None
    distances: Scores = {"n": amount, "features": real.shape[-1]}
    for index, view in enumerate(VIEWS):
        a, b = generated[:, index], real[:, index]
        distances[view] = {
            "mmd2": distribution.mmd2(a, b, b),
            "floor": distribution.null_mmd2(b),
            "fid": distribution.frechet(a, b),
        }
    return distances


def _memorisation(sets: Sets) -> Scores | None:
    if sets.generated is None or len(sets.known.entries) < 2:
        return None
    nearest_to_made = _nearest("Searching for copies", sets.generated.descriptors, sets.known.descriptors)
    nearest_to_known = _nearest_other_eye("Comparing training pairs with each other", sets.known)
    made = np.array([nearest.likeness for nearest in nearest_to_made])
    # -1 marks a pair without a pair of another eye.
    known = np.array([nearest.likeness for nearest in nearest_to_known if nearest.likeness > -1])
    order = np.argsort(-made, kind="stable").tolist()
    both = {"generated": made, "train": known}
    return {
        "likeness": {name: _interval(values) for name, values in both.items()},
        "likenesses": {
            name: values[evenly_spaced_indices(len(values), DOTS)].tolist() for name, values in both.items()
        },
        "ratio": float(made.mean()) / max(float(known.mean()), 1e-9) if len(known) else None,
        "authenticity": memorisation.authenticity(nearest_to_made, nearest_to_known) if len(known) else None,
        "threshold": memorisation.COPY,
        "copies": [sets.generated.entries[row].id for row in order if made[row] >= memorisation.COPY],
        "variations": sum(entry.variation for entry in sets.generated.entries),
        "closest": [_match(sets, row, nearest_to_made[row]) for row in order[:CLOSEST]],
    }


def _nearest(title: str, queries: StoredDescriptors, references: StoredDescriptors) -> list[Nearest]:
    with progress(title, len(queries) * -(-len(references) // memorisation.AT_ONCE)) as advance:
        return memorisation.nearest(queries, references, advance=advance)


def _nearest_other_eye(title: str, measured: MeasuredSet) -> list[Nearest]:
    """Return the most similar pair of another eye for each pair."""
    rows = evenly_spaced_indices(len(measured.entries), _MAX_COMPARED)
    references = StoredDescriptors(measured.cache, [measured.keys[row] for row in rows])
    eyes = np.array([entry.group for entry in measured.entries])
    with progress(title, len(eyes) * -(-len(rows) // memorisation.AT_ONCE)) as advance:
        matches = memorisation.nearest(measured.descriptors, references, (eyes, eyes[rows]), advance)
    return [Nearest(int(rows[match.index]), match.likeness) for match in matches]


def _match(sets: Sets, row: int, nearest: Nearest) -> Scores:
    assert sets.generated
    return {
        "id": sets.generated.entries[row].id,
        "train_id": sets.known.entries[nearest.index].id,
        "likeness": nearest.likeness,
    }


def _spectra(sets: Sets) -> Scores:
    """Return the mean power per frequency band of each set, in which blur and noise show."""
    rows = {name: measured.power.mean(axis=0, dtype=np.float64) for name, measured in sets.named.items()}
    centres = np.sqrt(BANDS[:-1] * BANDS[1:])
    return {
        "cycles": centres.tolist(),
        **{view: {name: row[index].tolist() for name, row in rows.items()} for index, view in enumerate(VIEWS)},
    }


# --- Data issues


def _issues(sets: Sets) -> list[DataIssue]:
    """Return the data issues of the real pairs, lowest vesselness correlation first, duplicate eyes last."""
    real = sets.real
    order = np.argsort(real.values["consistency.correlation"], kind="stable").tolist()
    issues = [issue for row in order for issue in find_issues(real.entries[row].id, real.metrics(row))]
    if len(real.entries) < 2:
        return issues
    ids, splits = ([getattr(entry, name) for entry in real.entries] for name in ("id", "split"))
    return issues + find_duplicate_eyes(ids, splits, _nearest_other_eye("Searching for duplicate eyes", real))
