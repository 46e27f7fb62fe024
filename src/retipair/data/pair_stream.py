"""Read the pairs of a prepared or generated folder one at a time.

`read_folder` keeps every pair in memory, about half a kilobyte each. A `PairStream` gives the same pairs and splits. It
needs less than 100 bytes of memory per pair, so that a folder of a million pairs can be exported.
"""

from array import array
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from retipair.data.dataset import GENERATED_VAL_FRACTION, group_name, read_folder
from retipair.data.folders import has_files
from retipair.data.manifest import SPLITS, PreparedPair, Record, Split, files_of, stream_manifest
from retipair.data.rejected import RejectedList, read_rejected
from retipair.data.splits import group_count, split_hash
from retipair.runtime.errors import MissingError
from retipair.runtime.text_files import nfc

# Kinds of pairs: 0, 1 and 2 are prepared pairs, by their split; these two are generated pairs, with a source or not.
_VARIED, _UNSPLIT = len(SPLITS), len(SPLITS) + 1


@dataclass(frozen=True)
class StreamedPair:
    """One pair of a folder: its line of the manifest and its split."""

    record: Record
    split: Split


@dataclass(frozen=True)
class PairStream:
    """The pairs of a folder that are neither rejected nor deleted; each iteration reads the manifest again.

    groups, splits: sorted hashes of the patients or eyes of prepared pairs, and the index of the split of each.
    last_val: the highest hash of a group of generated pairs that is in the split "val"; -1 if there is none.
    """

    folder: Path
    rejected: RejectedList
    groups: np.ndarray
    splits: np.ndarray
    last_val: int

    def __iter__(self) -> Iterator[StreamedPair]:
        for record in stream_manifest(self.folder):
            if record.id not in self.rejected and has_files(self.folder, files_of(record)):
                yield StreamedPair(record, self._split_of(record))

    def _split_of(self, record: Record) -> Split:
        if isinstance(record, PreparedPair):
            return record.split
        group = _hash(group_name(record))
        if record.source_eye and len(self.groups):
            place = int(np.searchsorted(self.groups, group))
            if place < len(self.groups) and int(self.groups[place]) == group:
                return SPLITS[int(self.splits[place])]
        return "val" if group <= self.last_val else "train"


def open_stream(folder: Path, reviewed: bool = False) -> PairStream:
    """Check the manifest and `rejected.txt` of a folder, assign the splits, and return its pairs.

    reviewed: whether to leave out the pairs that `review.jsonl` rejects, too.
    Splits are those of `read_folder`. Raises UserError for the same reasons, except for mixed modalities.
    """
    rejected, listed = read_rejected(folder, reviewed), set()
    ids, groups, kinds = array("Q"), array("Q"), bytearray()
    for record in stream_manifest(folder):
        ids.append(_hash(f"{type(record).__name__} {record.id}"))
        groups.append(_hash(group_name(record)))
        kinds.append(_kind_of(record))
        if record.id in rejected:
            listed.add(nfc(record.id))
    if not ids:
        raise MissingError(folder, "its manifest is empty; make the folder again")
    rejected.check(listed)
    kind, group = np.frombuffer(kinds, np.uint8), np.frombuffer(groups, np.uint64)
    prepared = kind < _VARIED
    order = np.argsort(group[prepared], kind="stable")
    known, splits = group[prepared][order], kind[prepared][order]
    in_two_splits = (known[1:] == known[:-1]) & (splits[1:] != splits[:-1])
    if len(np.unique(np.frombuffer(ids, np.uint64))) < len(ids) or in_two_splits.any():
        read_folder(folder)  # raises the error, with the number of the line
    last = np.append(known[1:] != known[:-1], True)[: len(known)]
    known, splits = known[last], splits[last]
    unsplit = np.unique(group[(kind == _UNSPLIT) | ((kind == _VARIED) & ~np.isin(group, known))])
    return PairStream(folder, rejected, known, splits, _last_val(unsplit))


def _last_val(groups: np.ndarray) -> int:
    """Return the highest hash in the split "val", as `split_groups` would assign the splits; -1 if there is none.

    groups: the sorted hashes of the groups. A single group is in "train", because `split_groups` needs two.
    """
    if len(groups) < 2:
        return -1
    return int(groups[group_count(GENERATED_VAL_FRACTION, len(groups)) - 1])


def _kind_of(record: Record) -> int:
    if isinstance(record, PreparedPair):
        return SPLITS.index(record.split)
    return _VARIED if record.source_eye else _UNSPLIT


def _hash(text: str) -> int:
    """Return the first 64 bits of the hash by which groups are split, which have the same order as the hash."""
    return int.from_bytes(split_hash(text, seed=0)[:8])
