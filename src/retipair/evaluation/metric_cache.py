"""What was measured of pairs, kept on disk under a hash of their content: measured once, read when needed."""

import hashlib
import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from zipfile import BadZipFile

import numpy as np

from retipair.data.dataset import PairRecord, pair_sha256
from retipair.metrics.consistency import Consistency
from retipair.metrics.memorisation import pair_descriptor
from retipair.metrics.pair_metrics import MispairedMetrics, PairMetrics
from retipair.runtime.atomic_io import atomic_write, read_json, write_json

RECIPE = 3
"""Raised when a figure changes its meaning: what was kept under another number is measured again."""
_PARTS = ("names", "values", "features", "power", "prints")


def key_of(entry: PairRecord) -> str:
    """A hash of what a pair shows and of how it is measured: under which its figures are kept."""
    return hashlib.sha256(f"{RECIPE} {pair_sha256(entry)}".encode()).hexdigest()[:24]


def link_of(first: str, second: str) -> str:
    """Under what the figures of two neighbours are kept, of these keys."""
    return f"{first[:12]}-{second[:12]}"


def has_metrics(folder: Path, key: str) -> bool:
    """False for what is missing, or what a full disk or a copy cut off left: it is measured again."""
    try:
        with np.load(folder / f"{key}.npz") as kept:
            return set(kept) == set(_PARTS) and kept.zip.testzip() is None
    except (OSError, ValueError, EOFError, BadZipFile):
        return False


def has_link(folder: Path, link: str) -> bool:
    """As above, of two neighbours."""
    try:
        values = json.loads((folder / f"{link}.json").read_text(encoding="utf-8"))
        return set(values) == {field.name for field in fields(MispairedMetrics)}
    except (OSError, ValueError, TypeError):
        return False


def save_metrics(folder: Path, key: str, figures: PairMetrics) -> None:
    with atomic_write(folder / f"{key}.npz") as stream:
        np.savez(
            stream,
            names=np.array(list(figures.values)),
            values=np.array(list(figures.values.values())),
            features=figures.features,
            power=figures.power,
            prints=figures.prints.astype(np.float16),
        )


def load_metrics(folder: Path, key: str) -> PairMetrics:
    with np.load(folder / f"{key}.npz") as kept:
        values = dict(zip(kept["names"].tolist(), kept["values"].tolist(), strict=True))
        return PairMetrics(values, kept["features"], kept["power"], kept["prints"].astype(np.float32))


def save_link(folder: Path, link: str, found: MispairedMetrics) -> None:
    write_json(folder / f"{link}.json", asdict(found))


def load_link(folder: Path, link: str) -> MispairedMetrics:
    values = read_json(folder / f"{link}.json")
    return MispairedMetrics(Consistency(**values["mispaired"]), values["alike"])


@dataclass(frozen=True)
class StoredDescriptors:
    """What tells the eyes of pairs from others, (64, 64) each: read when it is asked for, as there may be very many."""

    folder: Path
    keys: Sequence[str]

    def __len__(self) -> int:
        return len(self.keys)

    def __getitem__(self, at: int) -> np.ndarray:
        return pair_descriptor(load_metrics(self.folder, self.keys[at]).prints)
