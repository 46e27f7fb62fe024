"""Compute the metrics of pairs once, cached by content, so that an interrupted evaluation can resume."""

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
from retipair.metrics.pair_metrics import PairMetrics, compute_mispaired_metrics, compute_pair_metrics
from retipair.metrics.views import PairViews, prepare_views
from retipair.models.device import one_thread
from retipair.models.feature_extractor import ImageModel
from retipair.runtime.atomic_io import atomic_write
from retipair.runtime.console import progress, track
from retipair.runtime.distributed import SINGLE_PROCESS, DistributedState
from retipair.runtime.parallel import parallel_map
from retipair.runtime.threads import available_cores

Columns = dict[str, np.ndarray]
"""Metrics by name, (n,) float64 each."""


@dataclass(frozen=True)
class MeasuredSet:
    """Metrics of n pairs, one row each in the order of the manifest; vessel descriptors stay on disk in `cache`.

    features (n, D) and power (n, 2, 16) float32, as in PairMetrics; links: metrics between two pairs of different eyes,
    such as "mispaired.dice", "ms_ssim.cf" and "ms_ssim.fa".
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
        """Return all metrics of one pair."""
        values = {name: float(column[row]) for name, column in self.values.items()}
        return replace(load_metrics(self.cache, self.keys[row]), values=values)

    def select(self, rows: Sequence[int]) -> "MeasuredSet":
        """Return the pairs in these rows, without links."""
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
        """Return these pairs followed by those of another set with the same cache, without links."""
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
        """Return the pairs of one split, without links."""
        return self.select([row for row, entry in enumerate(self.entries) if entry.split == split])


def measure_set(
    name: str, entries: Sequence[PairRecord], cache: Path, workers: int = 0, dist: DistributedState = SINGLE_PROCESS
) -> MeasuredSet:
    """Compute the metrics that are not in the folder `cache` yet, about one second per pair on two cores.

    Only a few pairs are in memory at a time. Several processes compute a contiguous part each and return when all
    parts are cached.
    """
    keys = [key_of(entry) for entry in entries]
    order = _alternate_eyes(entries)
    ordered, ordered_keys = [entries[row] for row in order], [keys[row] for row in order]
    links = _links(ordered, ordered_keys)
    missing = _missing(ordered_keys, links, cache)
    dist.wait_for_everyone()  # no process may write before all have listed what is missing
    assigned = set(np.array_split(np.array(missing, dtype=int), dist.num_processes)[dist.process_index].tolist())
    neighbours = {index - 1 for index in assigned} | ({0} if len(keys) - 1 in assigned else set())
    to_load = sorted(assigned | (neighbours & set(missing)))
    workers = workers or max(available_cores() // dist.num_processes, 1)
    with one_thread(), progress(f"Measuring {name}", len(entries), len(entries) - len(to_load)) as advance:
        results = parallel_map(_measure_pair, [ordered[index] for index in to_load], workers)
        recent: dict[int, PairViews] = {}  # views of the first and of the previous pair
        for index, (views, metrics) in zip(to_load, results, strict=True):
            recent = {at: earlier for at, earlier in recent.items() if at in (0, index - 1)} | {index: views}
            advance()
            if index not in assigned:
                continue
            save_metrics(cache, ordered_keys[index], metrics)
            for first, second in ((index - 1, index), (index, 0)):
                if (first, second) in links and first in recent and second in recent:
                    save_link(cache, links[first, second], compute_mispaired_metrics(recent[first], recent[second]))
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
    """Return the features of an image model for CF and FA of each pair, (n, 2, D) float64, cached like the metrics."""
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
    """Return an order in which neighbours show different eyes: each eye's first pair, then each eye's second, etc."""
    counts: Counter[str] = Counter()
    rounds = []
    for entry in entries:
        rounds.append(counts[entry.group])
        counts[entry.group] += 1
    return np.argsort(rounds, kind="stable").tolist()


def _links(entries: Sequence[PairRecord], keys: Sequence[str]) -> dict[tuple[int, int], str]:
    """Map neighbouring pairs of different eyes, as indices, to the cache key of their link.

    The last and the first pair are neighbours too.
    """
    neighbours = [*pairwise(range(len(keys))), (len(keys) - 1, 0)]
    return {(a, b): link_of(keys[a], keys[b]) for a, b in neighbours if entries[a].group != entries[b].group}


def _missing(keys: Sequence[str], links: dict[tuple[int, int], str], cache: Path) -> list[int]:
    """Return the sorted indices of pairs whose metrics are not cached, and of both pairs of each uncached link.

    If several pairs or links have the same key, only the first counts.
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
    """Compute the metrics of a pair. FA chroma is taken from the RGB file, since `load_pair` reads FA as grey."""
    views = prepare_views(load_pair(entry))
    metrics = compute_pair_metrics(views)
    metrics.values["fa.chroma"] = chroma(load_image(entry.fa, "RGB"))
    return views, metrics
