"""Score the pairs of a page: their consistency beside real and mispaired pairs, and their nearest training pair."""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Literal

import numpy as np

from retipair.data.dataset import PairRecord, load_pair, read_folder
from retipair.data.manifest import check_one_kind, read_manifest
from retipair.data.pair import Pair
from retipair.data.selection import evenly_spaced_indices, filter_split
from retipair.generation.filters import descriptor_of, descriptors_of
from retipair.interfaces.app.snapshot import Snapshot, take_snapshot
from retipair.metrics import memorisation
from retipair.metrics.consistency import set_consistency
from retipair.metrics.views import prepare_views
from retipair.runtime.console import console, track
from retipair.runtime.errors import UserError
from retipair.runtime.parallel import parallel_map

REAL, MISPAIRED = (0.40, 0.71), (-0.05, 0.05)
"""Consistency of real and of mispaired pairs (docs/metrics.md), shown if there are no real pairs to compare with."""
DIFFERENT = 0.45
"""Highest similarity of different eyes, as a rule (see `memorisation.COPY`)."""
_MAX_MISPAIRED = 20
"""Maximum number of real pairs that are mispaired."""

Range = tuple[float, float]
Verdict = Literal["real", "below", "mispaired"]


@dataclass(frozen=True)
class References:
    """What the scores of a pair are compared with.

    real, mispaired: the 5th and 95th percentile of the consistency of real pairs, and of mispaired real pairs.
    source: the folder of these pairs; None for the documented ranges.
    known: the training pairs of which generated pairs may be copies; empty if no folder was given.
    descriptors: the descriptors of `known`, (n, 64, 64).
    snapshot: the state of the folder of `known` when it was read; None if there is no such folder.
    """

    real: Range = REAL
    mispaired: Range = MISPAIRED
    source: Path | None = None
    known: Sequence[PairRecord] = ()
    descriptors: np.ndarray = field(default_factory=lambda: np.zeros((0, memorisation.SIDE, memorisation.SIDE)))
    snapshot: Snapshot | None = None

    @property
    def is_outdated(self) -> bool:
        """Whether the folder of `known` has changed since it was read."""
        return self.snapshot is not None and self.snapshot.is_outdated

    def verdict(self, consistency: float) -> Verdict:
        """Return whether a consistency is as in real pairs, below them, or as in mispaired pairs."""
        if consistency >= self.real[0]:
            return "real"
        return "mispaired" if consistency <= self.mispaired[1] else "below"


@dataclass(frozen=True)
class Nearest:
    """The training pair that is most similar to a pair. similarity: in [-1, 1]; a copy from `memorisation.COPY` on."""

    record: PairRecord
    similarity: float

    @property
    def is_copy(self) -> bool:
        return self.similarity >= memorisation.COPY


@dataclass(frozen=True)
class ScoredPair:
    """A pair of a folder with its scores. consistency: as its manifest records it, in [-1, 1]."""

    record: PairRecord
    consistency: float
    nearest: Nearest | None = None

    def doubt(self, references: References) -> float:
        """Return how doubtful the pair is: about 0 for a typical real pair, 1 if mispaired or a copy.

        It is the larger of two values: the consistency, from the middle of the real pairs (0) to mispaired pairs (1),
        and the similarity to the nearest training pair, from different eyes (0) to a copy (1).
        """
        typical, chance = float(np.mean(references.real)), references.mispaired[1]
        disagreement = (typical - self.consistency) / max(typical - chance, 1e-6)
        if self.nearest is None:
            return disagreement
        return max(disagreement, (self.nearest.similarity - DIFFERENT) / (memorisation.COPY - DIFFERENT))


def references_of(folder: Path) -> References:
    """Return the ranges of a prepared folder, and its training pairs with their descriptors.

    This takes about 0.2 s per pair on one core. Raises UserError for a folder without training pairs, and for one that
    cannot be read, because its copies would not be found.
    """
    snapshot = take_snapshot(folder)
    known = filter_split(read_folder(folder).known, "train", folder)
    return replace(ranges_of(folder), known=known, descriptors=descriptors_of(known), snapshot=snapshot)


def ranges_of(folder: Path) -> References:
    """Return the ranges of the real pairs of a folder.

    Mispaired are the first pairs of different patients (or eyes, if patients are unknown), as far as they can be read.
    Returns the documented ranges if there are fewer than two of them.
    """
    consistencies = _recorded(folder)
    real = [record for record in read_folder(folder).kept if record.mode is None]
    first: dict[str, PairRecord] = {}
    for record in real:
        first.setdefault(record.group, record)
    different = list(first.values())
    chosen = [different[row] for row in evenly_spaced_indices(len(different), _MAX_MISPAIRED)]
    readable = [pair for pair in map(_load_readable, chosen) if pair is not None]
    if len(readable) < 2:
        return References()
    chance = set_consistency(map(prepare_views, readable)).mispaired
    return References(
        _range([consistencies[record.id] for record in real]), _range([one.correlation for one in chance]), folder
    )


def _recorded(folder: Path) -> dict[str, float]:
    """Return the consistency that the manifest of a folder records for each pair."""
    return {record.id: record.consistency for record in read_manifest(folder)}


def _range(values: Sequence[float]) -> Range:
    low, high = np.percentile(values, [5, 95])
    return float(low), float(high)


def scored_pairs(folder: Path, references: References) -> list[ScoredPair]:
    """Return the pairs of a folder with their scores, the most doubtful pair first.

    Copies are searched among the pairs that were generated from noise, if the references have training pairs: this
    takes about 0.2 s per pair on one core. Other pairs are real, or show a given eye on purpose.
    Raises UserError for a folder without pairs, and for pairs of other modalities than the training pairs.
    """
    folder_pairs = read_folder(folder)
    folder_pairs.check_any_left()
    if references.known:
        pair = folder_pairs.entries[0]
        check_one_kind(folder, references.known[0].modalities, pair.modalities, pair.id)
    consistencies = _recorded(folder)
    pairs = [ScoredPair(record, consistencies[record.id]) for record in folder_pairs.kept]
    nearest = find_nearest([pair.record for pair in pairs if pair.record.mode == "noise"], references)
    pairs = [ScoredPair(pair.record, pair.consistency, nearest.get(pair.record.id)) for pair in pairs]
    return sorted(pairs, key=lambda pair: -pair.doubt(references))


def find_nearest(records: Sequence[PairRecord], references: References) -> dict[str, Nearest]:
    """Return the nearest training pair of each pair that can be read, by its id.

    The result is {} if there are no training pairs.
    """
    if not references.known:
        return {}
    described = zip(records, parallel_map(_describe, track("Describing pairs", records, len(records))), strict=True)
    descriptors = {record.id: descriptor for record, descriptor in described if descriptor is not None}
    if not descriptors:
        return {}
    found = memorisation.nearest(np.stack(list(descriptors.values())), references.descriptors)
    return {
        id: Nearest(references.known[one.index], one.similarity) for id, one in zip(descriptors, found, strict=True)
    }


def _describe(record: PairRecord) -> np.ndarray | None:
    """Return the descriptor of a pair, (64, 64); None if the pair cannot be read."""
    pair = _load_readable(record)
    return None if pair is None else descriptor_of(pair)


def _load_readable(record: PairRecord) -> Pair | None:
    """Load a pair. If it cannot be read, print a warning that names the file, and return None."""
    try:
        return load_pair(record)
    except UserError as error:
        console.print(f"warning: {error}")
        return None


def nearest_to(pair: Pair, references: References) -> Nearest | None:
    """Return the training pair nearest to a pair in memory; None if there are no training pairs."""
    if not references.known:
        return None
    [found] = memorisation.nearest([descriptor_of(pair)], references.descriptors)
    return Nearest(references.known[found.index], found.similarity)
