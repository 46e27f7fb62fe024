"""Pairs -> figures, measured once: what `evaluate` scores. Kept by the pairs' content, so that a killed run goes on."""

import hashlib
import json
import os
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, fields
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import BinaryIO
from zipfile import BadZipFile

import numpy as np

from retipair.data.dataset import Entry, load_pair, pair_sha256
from retipair.data.manifest import Split
from retipair.data.pair import chroma, load_image
from retipair.metrics.consistency import Consistency
from retipair.metrics.figures import Figures, Neighbours, figures_of, neighbours
from retipair.metrics.measured import Measured, measure
from retipair.model.deep import ImageModel
from retipair.model.device import one_thread
from retipair.parallel import in_order
from retipair.processes import ALONE, Processes
from retipair.progress import progress, watched
from retipair.run import read_json, write_json

RECIPE = 2
"""Raised when a figure changes its meaning: what was kept under another number is measured again."""
_KEPT = ("names", "values", "features", "power", "prints")


@dataclass(frozen=True)
class MeasuredSet:
    """The figures of each pair, in the manifest's order, and links: of pairs with a pair of another eye each."""

    entries: list[Entry]
    figures: list[Figures]
    links: list[Neighbours]

    def of_split(self, split: Split) -> "MeasuredSet":
        """The pairs of one side, without links."""
        both = [pair for pair in zip(self.entries, self.figures, strict=True) if pair[0].split == split]
        return MeasuredSet([entry for entry, _ in both], [figures for _, figures in both], [])


def measure_set(
    name: str, entries: Sequence[Entry], kept: Path, workers: int = 0, crew: Processes = ALONE
) -> MeasuredSet:
    """Measure what is not in the folder `kept` yet, a second a pair on two cores, holding a few at a time.

    Several processes measure a stretch each, and return when all is kept.
    """
    ordered = _eyes_apart(entries)
    keys = [_key(entry) for entry in ordered]
    links = _links(ordered, keys)
    todo = _not_kept(keys, links, kept)
    crew.wait()  # before any of them keeps more
    mine = set(np.array_split(np.array(todo, dtype=int), crew.count)[crew.rank].tolist())
    beside = {index - 1 for index in mine} | ({0} if len(keys) - 1 in mine else set())
    looks = sorted(mine | (beside & set(todo)))
    workers = workers or max((os.cpu_count() or 1) // crew.count, 1)
    with one_thread(), progress(f"Measuring {name}", len(entries), len(entries) - len(looks)) as advance:
        seen_pairs = in_order(_look, [ordered[index] for index in looks], workers)
        around: dict[int, Measured] = {}  # the first, and the one before
        for index, (seen, of_pair) in zip(looks, seen_pairs, strict=True):
            around = {at: one for at, one in around.items() if at in (0, index - 1)} | {index: seen}
            advance()
            if index not in mine:
                continue
            _keep_figures(kept / f"{keys[index]}.npz", of_pair)
            for first, second in ((index - 1, index), (index, 0)):
                if (first, second) in links and first in around and second in around:
                    write_json(kept / f"{links[first, second]}.json", asdict(neighbours(around[first], around[second])))
    crew.wait()
    figures = [_read_figures(kept / f"{_key(entry)}.npz", entry) for entry in entries]
    return MeasuredSet(list(entries), figures, [_read_link(kept / f"{link}.json") for link in links.values()])


def deep_features(name: str, entries: Sequence[Entry], model: ImageModel, kept: Path) -> np.ndarray:
    """What an image model sees in CF and FA of each pair, (n, 2, D) float64; kept as the figures are."""
    rows = []
    for entry in watched(f"Looking at {name} with the image model", entries, len(entries)):
        path = kept / f"{_key(entry)}-{model.sha256[:12]}.npy"
        seen = _kept_array(path)
        if seen is None:
            pair = load_pair(entry)
            seen = np.stack([model.features(view) for view in (pair.cf, pair.fa)])
            _write(path, partial(np.save, arr=seen))
        rows.append(seen)
    return np.stack(rows)


def _kept_array(path: Path) -> np.ndarray | None:
    try:
        return np.asarray(np.load(path))
    except (OSError, ValueError, EOFError):
        return None


def _eyes_apart(entries: Sequence[Entry]) -> list[Entry]:
    """The first pair of every eye, then the second of those that have one, and so on: neighbours are of two eyes."""
    seen: Counter[str] = Counter()
    numbered = []
    for entry in entries:
        numbered.append((seen[entry.group], entry))
        seen[entry.group] += 1
    return [entry for _, entry in sorted(numbered, key=lambda one: one[0])]


def _key(entry: Entry) -> str:
    return hashlib.sha256(f"{RECIPE} {pair_sha256(entry)}".encode()).hexdigest()[:24]


def _links(entries: Sequence[Entry], keys: Sequence[str]) -> dict[tuple[int, int], str]:
    """Of each pair and the next, the last and the first, where they show two eyes: at which places they stand, and the
    name under which their figures are kept.
    """
    around = [*pairwise(range(len(keys))), (len(keys) - 1, 0)]
    apart = [(a, b) for a, b in around if entries[a].group != entries[b].group]
    return {(a, b): f"{keys[a][:12]}-{keys[b][:12]}" for a, b in apart}


def _not_kept(keys: Sequence[str], links: dict[tuple[int, int], str], kept: Path) -> list[int]:
    """The pairs to measure, in order: whose figures are missing, and both of each link that is."""
    kept.mkdir(parents=True, exist_ok=True)
    missing = {index for index, key in enumerate(keys) if not _is_whole(kept / f"{key}.npz")}
    apart = {index for link, name in links.items() if not _is_whole(kept / f"{name}.json") for index in link}
    return sorted(missing | apart)


def _is_whole(path: Path) -> bool:
    """False for what is missing, or what a full disk or a copy cut off left: it is measured again."""
    try:
        if path.suffix == ".json":
            return set(json.loads(path.read_text(encoding="utf-8"))) == {field.name for field in fields(Neighbours)}
        with np.load(path) as kept:
            return set(kept) == set(_KEPT)
    except (OSError, ValueError, TypeError, EOFError, BadZipFile):
        return False


def _look(entry: Entry) -> tuple[Measured, Figures]:
    """A pair, measured; its FA's chroma is that of the file, whose colours nobody else reads."""
    seen = measure(load_pair(entry))
    figures = figures_of(seen)
    figures.values["fa.chroma"] = chroma(load_image(entry.fa, "RGB"))
    return seen, figures


def _keep_figures(path: Path, figures: Figures) -> None:
    fill = partial(
        np.savez,
        names=np.array(list(figures.values)),
        values=np.array(list(figures.values.values())),
        features=figures.features,
        power=figures.power,
        prints=figures.prints.astype(np.float16),
    )
    _write(path, fill)


def _write(path: Path, save: Callable[[BinaryIO], object]) -> None:
    """Whole or not at all."""
    beside = path.with_name(f".{path.name}.partial")
    with beside.open("wb") as stream:
        save(stream)
    beside.replace(path)


def _read_figures(path: Path, entry: Entry) -> Figures:
    with np.load(path) as kept:
        values = dict(zip(kept["names"].tolist(), kept["values"].tolist(), strict=True))
        if entry.fa_chroma is not None:
            values["fa.chroma"] = entry.fa_chroma
        return Figures(values, kept["features"], kept["power"], kept["prints"].astype(np.float32))


def _read_link(path: Path) -> Neighbours:
    values = read_json(path)
    return Neighbours(Consistency(**values["mispaired"]), values["alike"])
