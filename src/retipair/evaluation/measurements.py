"""Compute the metrics of sets of pairs, and cache them so that an interrupted evaluation can resume.

A link is a comparison of two neighbouring pairs of a set that show different eyes. `_alternate_eyes` defines the order
of the pairs; the last and the first pair are neighbours too. The links of a set show which values the metrics have by
chance, and how diverse the set is.
"""

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from itertools import pairwise
from pathlib import Path

import numpy as np

from retipair.data.dataset import PairRecord, load_pair
from retipair.data.manifest import Split
from retipair.data.pair import chroma, load_image
from retipair.evaluation.metric_cache import (
    StoredDescriptors,
    has_link,
    has_metrics,
    key_of,
    link_of,
    load_link,
    load_metrics,
    save_link,
    save_metrics,
)
from retipair.metrics.pair_metrics import PairMetrics, compute_cross_metrics, compute_pair_metrics
from retipair.metrics.views import PairViews, prepare_views
from retipair.models.device import one_thread
from retipair.models.feature_extractor import ImageModel
from retipair.runtime.atomic_io import atomic_write
from retipair.runtime.console import progress, track
from retipair.runtime.distributed import SINGLE_PROCESS, DistributedState
from retipair.runtime.parallel import parallel_map
from retipair.runtime.threads import available_cores

Columns = dict[str, np.ndarray]
"""Metric name -> the values of n pairs, (n,) float64."""


@dataclass(frozen=True)
class MeasuredSet:
    """Metrics of a set of n pairs, in the order of the manifest. Vessel descriptors stay on disk.

    entries: the n pairs.
    keys: the cache key of each pair.
    cache: the folder with the cached metrics.
    values: metric name -> its values, (n,) float64.
    features: (n, D) float32, see `PairMetrics`.
    power: (n, 2, 16) float32, see `PairMetrics`.
    links: metric name, such as "mispaired.dice" or "ms_ssim.cf" -> its values, (number of links,) float64. A link is a
        comparison of two pairs of different eyes (see the top of this module).
    """

    entries: list[PairRecord]
    keys: list[str]
    cache: Path
    values: Columns
    features: np.ndarray
    power: np.ndarray
    links: Columns

    @property
    def descriptors(self) -> StoredDescriptors:
        return StoredDescriptors(self.cache, self.keys)

    def metrics(self, row: int) -> PairMetrics:
        """Return all metrics of one pair. row: the index of the pair in `entries`."""
        values = {name: float(column[row]) for name, column in self.values.items()}
        return replace(load_metrics(self.cache, self.keys[row]), values=values)

    def select(self, rows: Sequence[int]) -> "MeasuredSet":
        """Return the metrics of the pairs in these rows. `links` of the result is empty."""
        return MeasuredSet(
            [self.entries[row] for row in rows],
            [self.keys[row] for row in rows],
            self.cache,
            {name: column[rows] for name, column in self.values.items()},
            self.features[rows],
            self.power[rows],
            {},
        )

    def concatenate(self, other: "MeasuredSet") -> "MeasuredSet":
        """Append the set `other`, which must have the same cache. `links` of the result is empty."""
        return MeasuredSet(
            self.entries + other.entries,
            self.keys + other.keys,
            self.cache,
            {name: np.concatenate([column, other.values[name]]) for name, column in self.values.items()},
            np.concatenate([self.features, other.features]),
            np.concatenate([self.power, other.power]),
            {},
        )

    def in_split(self, split: Split) -> "MeasuredSet":
        """Return the metrics of the pairs in one split. `links` of the result is empty."""
        return self.select([row for row, entry in enumerate(self.entries) if entry.split == split])


def measure_set(
    name: str, entries: Sequence[PairRecord], cache: Path, workers: int = 0, dist: DistributedState = SINGLE_PROCESS
) -> MeasuredSet:
    """Return the metrics of a set of pairs, and compute and cache those that are not in the folder `cache` yet.

    Takes about one second per pair on two cores, and holds a few pairs in memory at a time. If there are several
    processes, each computes a contiguous part of the pairs, and all return when every part is cached.

    name: the name of the set in the progress bar.
    workers: the number of threads; 0 for all cores.
    """
    keys = [key_of(entry) for entry in entries]
    order = _alternate_eyes(entries)
    ordered, ordered_keys = [entries[row] for row in order], [keys[row] for row in order]
    links = _links(ordered, ordered_keys)
    missing = _missing(ordered_keys, links, cache)
    dist.wait_for_everyone()  # until every process has listed the missing metrics, none may write
    assigned = set(np.array_split(np.array(missing, dtype=int), dist.num_processes)[dist.process_index].tolist())
    neighbours = {index - 1 for index in assigned} | ({0} if len(keys) - 1 in assigned else set())
    to_load = sorted(assigned | (neighbours & set(missing)))
    workers = workers or max(available_cores() // dist.num_processes, 1)
    with one_thread(), progress(f"Measuring {name}", len(entries), len(entries) - len(to_load)) as advance:
        results = parallel_map(_measure_pair, [ordered[index] for index in to_load], workers)
        recent: dict[int, PairViews] = {}  # the views of the first and of the previous pair, which links need
        for index, (views, metrics) in zip(to_load, results, strict=True):
            recent = {at: earlier for at, earlier in recent.items() if at in (0, index - 1)} | {index: views}
            advance()
            if index not in assigned:
                continue
            save_metrics(cache, ordered_keys[index], metrics)
            for first, second in ((index - 1, index), (index, 0)):
                if (first, second) in links and first in recent and second in recent:
                    save_link(cache, links[first, second], compute_cross_metrics(recent[first], recent[second]))
    dist.wait_for_everyone()
    return _read_set(entries, keys, list(links.values()), cache)


def _read_set(entries: Sequence[PairRecord], keys: list[str], links: Sequence[str], cache: Path) -> MeasuredSet:
    first = load_metrics(cache, keys[0])
    values = {name: np.empty(len(keys)) for name in first.values}
    features, power = (np.empty((len(keys), *array.shape), np.float32) for array in (first.features, first.power))
    for row, (entry, key) in enumerate(zip(entries, keys, strict=True)):
        metrics = load_metrics(cache, key)
        features[row], power[row] = metrics.features, metrics.power
        for name, value in metrics.values.items():
            values[name][row] = value
        if entry.fa_chroma is not None:
            values["fa.chroma"][row] = entry.fa_chroma
    return MeasuredSet(list(entries), keys, cache, values, features, power, _read_links(links, cache))


def _read_links(links: Sequence[str], cache: Path) -> Columns:
    columns: Columns = {}
    for row, link in enumerate(links):
        metrics = load_link(cache, link)
        kinds = {"mispaired": asdict(metrics.mispaired), "ms_ssim": metrics.ms_ssim}
        for name, value in (
            (f"{kind}.{name}", value) for kind, values in kinds.items() for name, value in values.items()
        ):
            columns.setdefault(name, np.empty(len(links)))[row] = value
    return columns


def deep_features(name: str, measured: MeasuredSet, model: ImageModel) -> np.ndarray:
    """Return the features of CF and FA of each pair from an image model, (n, 2, D) float64.

    The features are cached in the same folder as the metrics.

    name: the name of the set in the progress bar.
    """
    rows = []
    pairs = zip(measured.entries, measured.keys, strict=True)
    for entry, key in track(f"Deep features of {name}", pairs, len(measured.keys)):
        path = measured.cache / f"{key}-{model.sha256[:12]}.npy"
        features = _cached_array(path)
        if features is None:
            pair = load_pair(entry)
            features = np.stack([model.features(view) for view in (pair.cf, pair.fa)])
            with atomic_write(path) as stream:
                np.save(stream, features)
        rows.append(features)
    return np.stack(rows)


def _cached_array(path: Path) -> np.ndarray | None:
    try:
        return np.asarray(np.load(path))
    except (OSError, ValueError, EOFError):
        return None


def _alternate_eyes(entries: Sequence[PairRecord]) -> list[int]:
    """Return the rows in an order in which neighbours show different eyes as far as possible.

    The order is the first pair of each eye, then the second pair of each eye, and so on.
    """
    counts: Counter[str] = Counter()
    rounds = []
    for entry in entries:
        rounds.append(counts[entry.group])
        counts[entry.group] += 1
    return np.argsort(rounds, kind="stable").tolist()


def _links(entries: Sequence[PairRecord], keys: Sequence[str]) -> dict[tuple[int, int], str]:
    """Return the links of a set: (index of a pair, index of the next pair) -> cache key of the link.

    Each pair is linked to the next pair, and the last pair to the first. Two pairs of the same eye are not linked.
    """
    neighbours = [*pairwise(range(len(keys))), (len(keys) - 1, 0)]
    return {(a, b): link_of(keys[a], keys[b]) for a, b in neighbours if entries[a].group != entries[b].group}


def _missing(keys: Sequence[str], links: dict[tuple[int, int], str], cache: Path) -> list[int]:
    """Return the sorted indices of the pairs to measure.

    These are the pairs whose metrics are not cached, and both pairs of each link (a comparison of two neighbouring
    pairs) that is not cached. If several pairs or links have the same cache key, only the first is considered.

    keys: the cache key of each pair.
    links: (index of a pair, index of the other pair) -> cache key of the link.
    """
    cache.mkdir(parents=True, exist_ok=True)
    missing = {index for index in _first_occurrences(keys) if not has_metrics(cache, keys[index])}
    ends = list(links)
    uncached = (ends[at] for at in _first_occurrences(list(links.values())) if not has_link(cache, links[ends[at]]))
    return sorted(missing | {index for link in uncached for index in link})


def _first_occurrences(names: Sequence[str]) -> Iterator[int]:
    known = set[str]()
    for index, name in enumerate(names):
        if name not in known:
            known.add(name)
            yield index


def _measure_pair(entry: PairRecord) -> tuple[PairViews, PairMetrics]:
    """Compute the metrics of a pair.

    The chroma of the FA is measured in its file, because `load_pair` converts the FA to greyscale.
    """
    views = prepare_views(load_pair(entry))
    metrics = compute_pair_metrics(views)
    metrics.values["fa.chroma"] = chroma(load_image(entry.fa, "RGB"))
    return views, metrics
