"""Load pairs into memory, one by one."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from retipair.data.dataset import PairRecord, load_pair
from retipair.data.manifest import Split
from retipair.data.pair import Pair
from retipair.data.selection import select_pairs


@dataclass(frozen=True)
class LoadedPair(Pair):
    """A pair in memory, with its id and its split (None for a pair that was just generated)."""

    id: str = ""
    split: Split | None = None


def load_pairs(folder: str | Path, split: Split | None = None) -> Iterator[LoadedPair]:
    """Load the pairs of a prepared or generated folder one by one, without the pairs in rejected.txt.

    split: "train", "val" or "test"; None for all pairs.
    Raises UserError if the folder does not exist, or if all its pairs are rejected, and SettingError for an unknown
    split.
    """
    return map(_load, select_pairs(folder, split))


def _load(record: PairRecord) -> LoadedPair:
    return LoadedPair(**vars(load_pair(record)), id=record.id, split=record.split)
