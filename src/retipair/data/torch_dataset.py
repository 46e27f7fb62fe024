"""A torch dataset of pairs on disk, for example to train a registration network."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.utils.data import Dataset

from retipair.data.dataset import PairRecord, load_pair, read_dataset
from retipair.data.manifest import Split


class PairDataset(Dataset[dict[str, Any]]):
    """The pairs of one or more prepared or generated folders, rejected ones left out.

    An item is a dict: `cf` (3, H, W) and `fa` (1, H, W), float32 in [0, 1]; `mask` (1, H, W) bool, where both views are
    valid; `id`, `split`, `folder`. CF and FA show the same field pixel to pixel. Raises UserError if a folder
    has no pairs; a split without pairs gives an empty dataset.
    """

    def __init__(self, folders: str | Path | Sequence[str | Path], split: Split | None = None) -> None:
        paths = [folders] if isinstance(folders, str | Path) else list(folders)
        records = [record for path in paths for record in read_dataset(Path(path))]
        self.records: list[PairRecord] = [record for record in records if split in (None, record.split)]

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
