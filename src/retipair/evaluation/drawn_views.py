"""Compare views that were drawn from given views with the true views, and with each other.

The given view of a generated pair may be a view of a real pair. The other view of that real pair is then the true view,
whose vessels the drawn view should show.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import TypeVar

import numpy as np

from retipair.data.dataset import PairRecord, load_pair
from retipair.data.manifest import GIVEN_VIEWS, SPLITS
from retipair.data.selection import evenly_spaced_indices
from retipair.evaluation.drawn_scores import DrawnExample, DrawnViewScores, TrueViewScores
from retipair.evaluation.means import Mean, mean_with_interval
from retipair.metrics.drawn_views import TrueViewCorrelation, compare_with_truth
from retipair.metrics.similarity import ms_ssim
from retipair.metrics.views import prepare_views
from retipair.models.device import one_thread
from retipair.runtime.console import track
from retipair.runtime.parallel import parallel_map
from retipair.vision.ridges import resize_to_reference

_MOST = 200
"""Maximum number, for each mode, of pairs compared with true views, and of comparisons between two drawn views."""
_EXAMPLES = 6
"""Maximum number of pairs of a mode that the report shows."""
Item = TypeVar("Item")


@dataclass(frozen=True)
class _Candidate:
    """A generated pair, the real pair whose id is its source id, and a real pair of another eye, if there is one."""

    generated: PairRecord
    real: PairRecord
    other: PairRecord | None


@dataclass(frozen=True)
class _Compared:
    """A generated pair, the real pair to which its given view belongs, and the comparison with the true view."""

    generated: PairRecord
    real: PairRecord
    correlation: TrueViewCorrelation


def measure_drawn_views(
    generated: Sequence[PairRecord], real: Sequence[PairRecord], workers: int = 0
) -> dict[str, DrawnViewScores]:
    """Return the scores of the drawn views: mode ("cf2fa", "fa2cf") -> scores, without modes that no pair has.

    workers: the number of threads; 0 for all cores.
    """
    of_mode = {mode: [entry for entry in generated if entry.mode == mode] for mode in GIVEN_VIEWS}
    with one_thread():
        return {mode: _measure(entries, real, workers) for mode, entries in of_mode.items() if entries}


def _measure(entries: Sequence[PairRecord], real: Sequence[PairRecord], workers: int) -> DrawnViewScores:
    by_source = _by_source(entries)
    candidates = _candidates(by_source, real)
    examined = _evenly_spaced(candidates, _MOST)
    results = track("Comparing drawn views with true views", parallel_map(_compare, examined, workers), len(examined))
    compared = [one for one in results if one]
    known = len(candidates) - len(examined) + len(compared)
    return DrawnViewScores(
        view=_names(entries[0])[1],
        pairs=len(entries),
        matched=len(compared),
        unmatched=len(entries) - known,
        correlation=_correlations(compared),
        draws=_similarity_of_draws(by_source, workers),
        examples=_examples(compared) or _examples_without_truth(entries),
    )


def _by_source(entries: Sequence[PairRecord]) -> list[list[PairRecord]]:
    """Return the generated pairs grouped by source. Sources and pairs keep their order."""
    groups: dict[str | None, list[PairRecord]] = {}
    for entry in entries:
        groups.setdefault(entry.source_id, []).append(entry)
    return list(groups.values())


def _evenly_spaced(items: Sequence[Item], most: int) -> list[Item]:
    return [items[index] for index in evenly_spaced_indices(len(items), most)]


def _names(entry: PairRecord) -> tuple[str, str]:
    """Return the names of the given and of the drawn view of a generated pair."""
    return ("cf", "fa") if entry.given == "cf" else ("fa", "cf")


def _load(entry: PairRecord) -> tuple[np.ndarray, np.ndarray]:
    """Load the given and the drawn view of a generated pair, CF (H, H, 3) and FA (H, H) uint8, in this order."""
    pair = load_pair(entry)
    return (pair.cf, pair.fa) if entry.given == "cf" else (pair.fa, pair.cf)


# --- Drawn views and true views


def _candidates(by_source: Sequence[Sequence[PairRecord]], real: Sequence[PairRecord]) -> list[_Candidate]:
    """Return the generated pairs that have the id of a real pair as their source, in the order of their sources."""
    pairs, others = {pair.id: pair for pair in real}, _other_eyes(real)
    return [
        _Candidate(entry, pairs[entry.source_id], others.get(entry.source_id))
        for group in by_source
        for entry in group
        if entry.source_id in pairs
    ]


def _other_eyes(real: Sequence[PairRecord]) -> dict[str, PairRecord]:
    """Return, for the id of each pair, the next pair that shows another eye; the first pair follows the last one."""
    others = {}
    for row, pair in enumerate(real):
        following = (real[(row + step) % len(real)] for step in range(1, len(real)))
        if other := next((one for one in following if one.group != pair.group), None):
            others[pair.id] = other
    return others


def _compare(candidate: _Candidate) -> _Compared | None:
    """Compare the drawn view with the true view, or return None if the given view is not that of the real pair."""
    names = _names(candidate.generated)
    given, completed = _load(candidate.generated)
    real, other = (prepare_views(load_pair(pair)) if pair else None for pair in (candidate.real, candidate.other))
    assert real
    correlation = compare_with_truth(given, completed, names, real, other)
    return _Compared(candidate.generated, candidate.real, correlation) if correlation else None


def _correlations(compared: Sequence[_Compared]) -> TrueViewScores:
    columns: dict[str, dict[str, Mean | None]] = {"drawn_view": {}, "given_view": {}, "mispaired": {}}
    for split in (split for split in SPLITS if any(one.real.split == split for one in compared)):
        for name, means in columns.items():
            values = ((one.real.id, getattr(one.correlation, name)) for one in compared if one.real.split == split)
            means[split] = _mean_over_views(values)
    return TrueViewScores(**columns)


def _mean_over_views(values: Iterable[tuple[str | None, float | None]]) -> Mean | None:
    """Return the mean over given views.

    The value of a given view is the mean over the views drawn from it, because these are not independent of each other.

    values: (id of the given view, value of one drawn view, or None if there is no value).
    """
    of_view: dict[str | None, list[float]] = {}
    for id, value in values:
        if value is not None:
            of_view.setdefault(id, []).append(value)
    return mean_with_interval(np.array([np.mean(draws) for draws in of_view.values()]))


def _examples(compared: Sequence[_Compared]) -> tuple[DrawnExample, ...]:
    """Return the first pair of each of up to _EXAMPLES given views, highest correlation with the true view first."""
    first_draws = {one.real.id: one for one in reversed(compared)}.values()
    ranked = sorted(first_draws, key=lambda one: -one.correlation.drawn_view)
    return tuple(
        DrawnExample(
            one.generated.id, one.real.split, one.real.id, one.correlation.drawn_view, one.correlation.given_view
        )
        for one in _evenly_spaced(ranked, _EXAMPLES)
    )


def _examples_without_truth(entries: Sequence[PairRecord]) -> tuple[DrawnExample, ...]:
    return tuple(DrawnExample(entry.id, None, None, None, None) for entry in _evenly_spaced(entries, _EXAMPLES))


# --- Several views drawn from one given view


def _similarity_of_draws(by_source: Sequence[Sequence[PairRecord]], workers: int) -> Mean | None:
    """Return the mean MS-SSIM between consecutive views that were drawn from the same given view."""
    links = _evenly_spaced([link for group in by_source for link in pairwise(group)], _MOST)
    values = track("Comparing views drawn from one given view", parallel_map(_similarity, links, workers), len(links))
    return _mean_over_views((first.source_id, value) for (first, _), value in zip(links, values, strict=True))


def _similarity(draws: tuple[PairRecord, PairRecord]) -> float | None:
    """Return the MS-SSIM between the drawn views of two pairs, or None if their given views differ."""
    (given, first), (other_given, second) = map(_load, draws)
    if not np.array_equal(given, other_given):
        return None
    first, second = resize_to_reference(first), resize_to_reference(second)
    return ms_ssim(first[..., 1], second[..., 1]) if first.ndim == 3 else ms_ssim(first, second)
