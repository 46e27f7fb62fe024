"""Provide pairs on disk as a torch dataset, for example to train a registration network."""

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.utils.data import Dataset

from retipair.data.dataset import PairRecord, load_pair
from retipair.data.manifest import Split, check_one_kind
from retipair.data.pair import image_size
from retipair.data.selection import select_pairs
from retipair.runtime.errors import FileError, SettingError


def list_pairs(folders: str | Path | Sequence[str | Path], split: Split | None) -> list[PairRecord]:
    """Return the pairs of one or more folders that are in a split, or all pairs if `split` is None.

    Raises SettingError for an unknown split and for an empty list of folders, and UserError if a folder has no pairs,
    or pairs of other modalities than the first folder.
    """
    several = isinstance(folders, Iterable) and not isinstance(folders, str)
    paths: list[Any] = list(folders) if several else [folders]  # type: ignore[arg-type]
    if not paths:
        raise SettingError("folders", "[]", "there are no pairs; give the path of at least one folder")
    records = [record for path in paths for record in select_pairs(path, split)]
    for record in records:
        check_one_kind(record.folder, records[0].modalities, record.modalities, record.id)
    return records


def check_sizes(records: Sequence[PairRecord]) -> None:
    """Raise FileError if the first pairs of the folders differ in size: a batch needs views of one size."""
    firsts = list({record.folder: record for record in reversed(records)}.values())[::-1]
    widths = [image_size(record.cf)[0] for record in firsts]
    for record, width in zip(firsts, widths, strict=True):
        if width != widths[0]:
            problem = f"its views are {width} px wide, those of {firsts[0].folder} {widths[0]} px"
            raise FileError(record.folder, f"{problem}; prepare the real pairs with the --size of the generated ones")


class PairDataset(Dataset[dict[str, Any]]):
    """Dataset of the aligned pairs in one or more prepared or generated folders, without rejected pairs.

    folders: the path of the folder, or the paths of several folders.
    split: the split to use; None for all splits. The dataset is empty if the split has no pairs.
    Raises UserError if there is no folder, if a folder has no pairs, or if the views of the folders differ in size, and
    SettingError for an unknown split.

    An item is a dict with these keys:
    cf: the colour fundus photograph, (3, H, W) float32 in [0, 1]; a first view without colour has three equal channels.
    fa: the fluorescein angiogram, (1, H, W) float32 in [0, 1], aligned with `cf` pixel to pixel.
    mask: (1, H, W) bool, True where both views are valid.
    id, split, folder: the id of the pair, its split, and the path of its folder, as text.
    """

    def __init__(self, folders: str | Path | Sequence[str | Path], split: Split | None = None) -> None:
        self.records: list[PairRecord] = list_pairs(folders, split)
        check_sizes(self.records)

    def __len__(self) -> int:
        return len(self.records)

    def __getitem__(self, index: int) -> dict[str, Any]:
        record = self.records[index]
        pair = load_pair(record)
        return {
            "cf": torch.from_numpy(np.ascontiguousarray(pair.cf.transpose(2, 0, 1))).float() / 255,
            "fa": torch.from_numpy(pair.fa[None].copy()).float() / 255,
            "mask": torch.from_numpy(pair.mask[None].copy()),
            "id": record.id,
            "split": record.split,
            "folder": str(record.folder),
        }
