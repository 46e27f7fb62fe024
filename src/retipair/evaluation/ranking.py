"""Compare several sets of generated pairs: one row for each metric, and the best set where the difference is certain.

A set is the best in a row only if its 95 % interval lies apart from that of every other set, and all means are of
enough pairs (`has_enough_pairs`). For the squared MMD, which has no interval, the difference must exceed the
squared MMD between random halves of the real pairs.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from scipy.stats import binomtest

from retipair.data.manifest import SPLITS
from retipair.evaluation.drawn_checks import SPLIT_NAMES
from retipair.evaluation.findings import has_enough_pairs
from retipair.evaluation.means import Mean
from retipair.evaluation.scores import DeepDistance, Distribution, Scores
from retipair.metrics.pair_metrics import VIEWS

Loss = Callable[[Mean], tuple[float, float]]
"""A function that returns the interval of how far a set is from the best value; lower is better."""


@dataclass(frozen=True)
class ComparedRow:
    """One metric of each set.

    name: a key, such as "consistency".
    label: the name of the metric in the report.
    values: the mean over each set, in the order of the sets; None if a set has no such metric.
    real: the value of the real pairs, to compare with.
    best: the name of the best set; None if the difference may be chance, and for rows without a best value.
    """

    name: str
    label: str
    values: tuple[Mean | None, ...]
    real: Mean | None
    best: str | None = None


def compare(sets: Mapping[str, Scores]) -> tuple[ComparedRow, ...]:
    """Return the rows of the table that compares the sets, which have the same real pairs."""
    scores, first = list(sets.values()), next(iter(sets.values()))
    real, pairs = first.amounts[1], [one.amounts[0] for one in scores]

    def row(
        name: str, label: str, values: Sequence[Mean | None], real: Mean | None, loss: Loss | None = None
    ) -> ComparedRow:
        return ComparedRow(name, label, tuple(values), real, _best(list(sets), values, loss) if loss else None)

    def distance_row(name: str, label: str, distances: Sequence[Distribution | DeepDistance | None]) -> ComparedRow:
        values = [_exact(one.mmd2, n) if one else None for one, n in zip(distances, pairs, strict=True)]
        floor = next((_exact(one.floor, real) for one in distances if one), None)
        return row(name, label, values, floor, _lowest_beyond(floor))

    correlation = first.consistency.correlation
    values = [one.consistency.correlation["generated"] for one in scores]
    rows = [
        row("pairs", "pairs", [_exact(n, n) for n in pairs], _exact(real, real)),
        row("consistency", "consistency (vesselness correlation)", values, correlation.get("train"), _highest),
        row("mispaired", "consistency of mispaired real pairs", [None] * len(sets), correlation["mispaired"]),
        distance_row("mmd2", "squared MMD", [one.distribution for one in scores]),
    ]
    if first.provenance.deep:
        for view in VIEWS:
            distances = [getattr(one.deep, view) if one.deep else None for one in scores]
            rows.append(distance_row(f"deep_mmd2_{view}", f"squared MMD on deep features, {view.upper()}", distances))
    for view in VIEWS:
        shares = [one.texture[view].fine_share for one in scores]
        target = shares[0].get("train")
        label = f"fraction of fine detail, {view.upper()}"
        rows.append(row(f"detail_{view}", label, [one["generated"] for one in shares], target, _closest_to(target)))
    for view in VIEWS:
        target = first.diversity[view].get("real")
        label, values = (
            f"MS-SSIM between different eyes, {view.upper()}",
            [one.diversity[view]["generated"] for one in scores],
        )
        rows.append(row(f"diversity_{view}", label, values, target, _closest_to(target)))
    rows.append(row("copies", "copies of training pairs, fraction", [_copies(one) for one in scores], None, _lowest))
    for (view, split), values in _true_views(scores).items():
        label = f"vesselness correlation of the drawn {view.upper()} with the true one, {SPLIT_NAMES[split]} pairs"
        rows.append(row(f"drawn_{view}_{split}", label, values, None, _highest))
    return tuple(rows)


def _true_views(sets: Sequence[Scores]) -> dict[tuple[str, str], list[Mean | None]]:
    """Return, by drawn view and split, the mean correlation with the true view in each set; None if unknown."""
    of_sets = [
        {
            (mode.view, split): mean
            for mode in one.drawn_views.values()
            for split, mean in mode.correlation.drawn_view.items()
        }
        for one in sets
    ]
    keys = sorted({key for means in of_sets for key in means}, key=lambda key: (key[0], SPLITS.index(key[1])))
    return {key: [means.get(key) for means in of_sets] for key in keys}


def _exact(value: float, pairs: int) -> Mean:
    """Return a value of a set of pairs that has no interval."""
    return Mean(value, None, None, pairs)


def _copies(scores: Scores) -> Mean | None:
    """Return the fraction of the generated pairs that are copies, with its 95 % Wilson interval."""
    if not scores.memorisation:
        return None
    copies, pairs = len(scores.copies), scores.sizes["generated"]
    interval = binomtest(copies, pairs).proportion_ci(method="wilson")
    return Mean(copies / pairs, float(interval.low), float(interval.high), pairs)


# --- The best set


def _best(names: Sequence[str], values: Sequence[Mean | None], loss: Loss) -> str | None:
    known = {name: mean for name, mean in zip(names, values, strict=True) if mean}
    if len(known) < 2 or not has_enough_pairs(*known.values()):
        return None
    losses = {name: loss(mean) for name, mean in known.items()}
    first, *others = sorted(losses, key=lambda name: losses[name])
    upper = losses[first][1]
    return first if all(losses[name][0] > upper for name in others) else None


def _highest(mean: Mean) -> tuple[float, float]:
    return -mean.upper, -mean.lower


def _lowest(mean: Mean) -> tuple[float, float]:
    return mean.lower, mean.upper


def _lowest_beyond(floor: Mean | None) -> Loss | None:
    """The lowest is best, if the difference exceeds `floor`; None if that is of too few pairs."""
    if floor is None or not has_enough_pairs(floor):
        return None
    return lambda mean: (mean.mean - floor.mean / 2, mean.mean + floor.mean / 2)


def _closest_to(real: Mean | None) -> Loss | None:
    """The closest to the mean of the real pairs is best; None if that is of too few pairs."""
    if real is None or not has_enough_pairs(real):
        return None

    def loss(mean: Mean) -> tuple[float, float]:
        ends = sorted((abs(mean.lower - real.mean), abs(mean.upper - real.mean)))
        return 0.0 if mean.lower <= real.mean <= mean.upper else ends[0], ends[1]

    return loss
