"""Select pairs: those of one split, or evenly spaced ones."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from retipair.data.dataset import PairRecord, read_dataset
from retipair.data.manifest import Split
from retipair.runtime.errors import MissingError
from retipair.runtime.schema import from_settings


@dataclass(frozen=True)
class _Selection:
    folder: Path
    split: Split | None


def select_pairs(folder: str | Path, split: Split | None) -> list[PairRecord]:
    """Return the pairs of a folder that are in a split, or all pairs if `split` is None, without the rejected pairs.

    Raises SettingError for an unknown split, and UserError for the same reasons as `read_dataset`.
    """
    selection = from_settings(_Selection, {"folder": folder, "split": split})
    return [record for record in read_dataset(selection.folder) if selection.split in (None, record.split)]


def filter_split(entries: Sequence[PairRecord], split: Split, where: Path) -> list[PairRecord]:
    """Return the entries of one split. Raises MissingError, naming the folder `where`, if the split has no entry."""
    chosen = [entry for entry in entries if entry.split == split]
    if not chosen:
        raise MissingError(where, f"no pair in its {split} split; make the folder again with pairs of more eyes")
    return chosen


def evenly_spaced_indices(amount: int, most: int) -> np.ndarray:
    """Return the indices of `most` evenly spaced items of a list of `amount` items, or of all if `amount` is less."""
    return np.linspace(0, amount - 1, min(amount, most)).round().astype(int)
