"""Pairs -> figures, measured once: what `evaluate` scores. Kept by the pairs' content, so that a killed run goes on."""

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
"""Figures by name, (n,) float64 each."""


@dataclass(frozen=True)
class MeasuredSet:
    """The figures of n pairs, a row each in the manifest's order; what is large of each stays on disk.

    features (n, D) and power (n, 2, 16) float32, as in metrics.figures.Figures; links: of pairs with a pair of another
    eye each, "mispaired.dice" and the like, "alike.cf" and "alike.fa".
    """

    entries: list[PairRecord]
    keys: list[str]
    kept: Path
    values: Columns
    features: np.ndarray
    power: np.ndarray
    links: Columns

    @property
    def prints(self) -> StoredDescriptors:
        return StoredDescriptors(self.kept, self.keys)

    def figures(self, at: int) -> PairMetrics:
        """All that was measured of one pair."""
        values = {name: float(column[at]) for name, column in self.values.items()}
        return replace(load_metrics(self.kept, self.keys[at]), values=values)

    def some(self, rows: Sequence[int]) -> "MeasuredSet":
        """The pairs in these rows, without links."""
        return MeasuredSet(
            [self.entries[row] for row in rows],
            [self.keys[row] for row in rows],
            self.kept,
            {name: column[rows] for name, column in self.values.items()},
            self.features[rows],
            self.power[rows],
            {},
        )

    def joined(self, other: "MeasuredSet") -> "MeasuredSet":
        """These pairs and then those of another set, measured into the same folder, without links."""
        return MeasuredSet(
            self.entries + other.entries,
            self.keys + other.keys,
            self.kept,
            {name: np.concatenate([column, other.values[name]]) for name, column in self.values.items()},
            np.concatenate([self.features, other.features]),
            np.concatenate([self.power, other.power]),
            {},
        )

    def of_split(self, split: Split) -> "MeasuredSet":
        """The pairs of one side, without links."""
        return self.some([row for row, entry in enumerate(self.entries) if entry.split == split])


def measure_set(
    name: str, entries: Sequence[PairRecord], kept: Path, workers: int = 0, dist: DistributedState = SINGLE_PROCESS
) -> MeasuredSet:
    """Measure what is not in the folder `kept` yet, a second a pair on two cores, holding a few at a time.

    Several processes measure a stretch each, and return when all is kept.
    """
    keys = [key_of(entry) for entry in entries]
    order = _eyes_apart(entries)
    ordered, ordered_keys = [entries[at] for at in order], [keys[at] for at in order]
    links = _links(ordered, ordered_keys)
    todo = _not_kept(ordered_keys, links, kept)
    dist.wait_for_everyone()  # before any of them keeps more
    mine = set(np.array_split(np.array(todo, dtype=int), dist.num_processes)[dist.process_index].tolist())
    beside = {index - 1 for index in mine} | ({0} if len(keys) - 1 in mine else set())
    looks = sorted(mine | (beside & set(todo)))
    workers = workers or max(available_cores() // dist.num_processes, 1)
    with one_thread(), progress(f"Measuring {name}", len(entries), len(entries) - len(looks)) as advance:
        seen_pairs = parallel_map(_look, [ordered[index] for index in looks], workers)
        around: dict[int, PairViews] = {}  # the first, and the one before
        for index, (seen, of_pair) in zip(looks, seen_pairs, strict=True):
            around = {at: one for at, one in around.items() if at in (0, index - 1)} | {index: seen}
            advance()
            if index not in mine:
                continue
            save_metrics(kept, ordered_keys[index], of_pair)
            for first, second in ((index - 1, index), (index, 0)):
                if (first, second) in links and first in around and second in around:
                    save_link(kept, links[first, second], compute_mispaired_metrics(around[first], around[second]))
    dist.wait_for_everyone()
    return _read_set(entries, keys, list(links.values()), kept)


def _read_set(entries: Sequence[PairRecord], keys: list[str], links: Sequence[str], kept: Path) -> MeasuredSet:
    first = load_metrics(kept, keys[0])
    values = {name: np.empty(len(keys)) for name in first.values}
    features, power = (np.empty((len(keys), *one.shape), np.float32) for one in (first.features, first.power))
    for at, (entry, key) in enumerate(zip(entries, keys, strict=True)):
        found = load_metrics(kept, key)
        features[at], power[at] = found.features, found.power
        for name, value in found.values.items():
            values[name][at] = value
        if entry.fa_chroma is not None:
            values["fa.chroma"][at] = entry.fa_chroma
    return MeasuredSet(list(entries), keys, kept, values, features, power, _read_links(links, kept))


def _read_links(links: Sequence[str], kept: Path) -> Columns:
    columns: Columns = {}
    for at, link in enumerate(links):
        found = load_link(kept, link)
        named = {"mispaired": asdict(found.mispaired), "alike": found.alike}
        for name, value in ((f"{kind}.{name}", value) for kind, one in named.items() for name, value in one.items()):
            columns.setdefault(name, np.empty(len(links)))[at] = value
    return columns


def deep_features(name: str, measured: MeasuredSet, model: ImageModel) -> np.ndarray:
    """What an image model sees in CF and FA of each pair, (n, 2, D) float64; kept as the figures are."""
    rows = []
    pairs = zip(measured.entries, measured.keys, strict=True)
    for entry, key in track(f"Looking at {name} with the image model", pairs, len(measured.keys)):
        path = measured.kept / f"{key}-{model.sha256[:12]}.npy"
        seen = _kept_array(path)
        if seen is None:
            pair = load_pair(entry)
            seen = np.stack([model.features(view) for view in (pair.cf, pair.fa)])
            with atomic_write(path) as stream:
                np.save(stream, seen)
        rows.append(seen)
    return np.stack(rows)


def _kept_array(path: Path) -> np.ndarray | None:
    try:
        return np.asarray(np.load(path))
    except (OSError, ValueError, EOFError):
        return None


def _eyes_apart(entries: Sequence[PairRecord]) -> list[int]:
    """The first pair of every eye, then the second of those that have one, and so on: neighbours are of two eyes."""
    seen: Counter[str] = Counter()
    rounds = []
    for entry in entries:
        rounds.append(seen[entry.group])
        seen[entry.group] += 1
    return np.argsort(rounds, kind="stable").tolist()


def _links(entries: Sequence[PairRecord], keys: Sequence[str]) -> dict[tuple[int, int], str]:
    """Of each pair and the next, the last and the first, where they show two eyes: at which places they stand, and the
    name under which their figures are kept.
    """
    around = [*pairwise(range(len(keys))), (len(keys) - 1, 0)]
    return {(a, b): link_of(keys[a], keys[b]) for a, b in around if entries[a].group != entries[b].group}


def _not_kept(keys: Sequence[str], links: dict[tuple[int, int], str], kept: Path) -> list[int]:
    """The pairs to measure, in order: whose figures are missing, and both of each link that is.

    Of equal pairs, or links, the first.
    """
    kept.mkdir(parents=True, exist_ok=True)
    missing = {index for index in _firsts(keys) if not has_metrics(kept, keys[index])}
    places = list(links)
    lost = (places[at] for at in _firsts(list(links.values())) if not has_link(kept, links[places[at]]))
    return sorted(missing | {index for link in lost for index in link})


def _firsts(names: Sequence[str]) -> Iterator[int]:
    seen = set[str]()
    for at, name in enumerate(names):
        if name not in seen:
            seen.add(name)
            yield at


def _look(entry: PairRecord) -> tuple[PairViews, PairMetrics]:
    """A pair, measured; its FA's chroma is that of the file, whose colours nobody else reads."""
    seen = prepare_views(load_pair(entry))
    figures = compute_pair_metrics(seen)
    figures.values["fa.chroma"] = chroma(load_image(entry.fa, "RGB"))
    return seen, figures
