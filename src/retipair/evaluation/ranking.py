"""Compare several sets of generated pairs: one row for each metric, and the best set where the difference is certain.

A set is the best in a row only if its 95 % interval lies apart from that of every other set, and all means are of
enough pairs (`has_enough_pairs`). For the squared MMD, which has no interval, the difference must exceed the
squared MMD between random halves of the real pairs.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

from scipy.stats import binomtest

from retipair.data.manifest import SPLITS
from retipair.evaluation.drawn_checks import SPLIT_NAMES
from retipair.evaluation.findings import has_enough_pairs
from retipair.evaluation.means import Mean
from retipair.evaluation.scores import Scores

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
    return tuple(_rows(list(sets), list(sets.values())))


def _rows(names: Sequence[str], sets: Sequence[Scores]) -> Iterator[ComparedRow]:
    def row(
        name: str, label: str, values: Sequence[Mean | None], real: Mean | None, loss: Loss | None = None
    ) -> ComparedRow:
        best = _best(names, values, loss) if loss else None
        return ComparedRow(name, label, tuple(values), real, best)

    first = sets[0]
    real_pairs = sum(first.sizes.values()) - first.sizes["generated"]
    yield row("pairs", "pairs", [_exact(one.sizes["generated"]) for one in sets], _exact(real_pairs))
    correlation = first.consistency.correlation
    values = [one.consistency.correlation["generated"] for one in sets]
    yield row("consistency", "consistency (vesselness correlation)", values, correlation.get("train"), _highest)
    yield row("mispaired", "consistency of mispaired real pairs", [None] * len(sets), correlation["mispaired"])
    if distance := first.distribution:
        values = [_exact(one.distribution.mmd2, one.sizes["generated"]) if one.distribution else None for one in sets]
        floor = _exact(distance.floor, real_pairs)
        yield row("mmd2", "squared MMD", values, floor, _lowest_beyond(floor))
    for view, texture in first.texture.items():
        values, real = [one.texture[view].fine_share["generated"] for one in sets], texture.fine_share.get("train")
        yield row(f"detail_{view}", f"fraction of fine detail, {view.upper()}", values, real, _closest_to(real))
    for view, means in first.diversity.items():
        values, real = [one.diversity[view].get("generated") for one in sets], means.get("real")
        label = f"MS-SSIM between different eyes, {view.upper()}"
        yield row(f"diversity_{view}", label, values, real, _closest_to(real))
    yield row("copies", "copies of training pairs, fraction", [_copies(one) for one in sets], None, _lowest)
    for mode, split in _drawn(sets):
        drawn = [one.drawn_views[mode].correlation if mode in one.drawn_views else None for one in sets]
        view = next(one.drawn_views[mode].view for one in sets if mode in one.drawn_views)
        values = [one.drawn_view.get(split) if one else None for one in drawn]
        label = f"vesselness correlation of the drawn {view.upper()} with the true one, {SPLIT_NAMES[split]} pairs"
        yield row(f"drawn_{view}_{split}", label, values, None, _highest)


def _drawn(sets: Sequence[Scores]) -> list[tuple[str, str]]:
    """Return the modes and splits in which a set has drawn views with known true views."""
    found = {
        (mode, split)
        for one in sets
        for mode, drawn in one.drawn_views.items()
        for split in drawn.correlation.drawn_view
    }
    return sorted(found, key=lambda one: (one[0], SPLITS.index(one[1])))


def _exact(value: float, amount: int | None = None) -> Mean:
    """Return a value without an interval as a Mean. amount: the number of pairs; default: the value itself."""
    return Mean(value, None, None, int(value) if amount is None else amount)


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


def _lowest_beyond(floor: Mean) -> Loss | None:
    """The lowest is best, if the difference exceeds `floor`; None if that is of too few pairs."""
    if not has_enough_pairs(floor):
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
