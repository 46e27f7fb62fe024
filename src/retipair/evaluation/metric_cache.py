"""What was measured of pairs, kept on disk under a hash of their content: measured once, read when needed."""

import hashlib
import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from zipfile import BadZipFile

import numpy as np

from retipair.data.dataset import Entry, pair_sha256
from retipair.metrics.consistency import Consistency
from retipair.metrics.memorisation import pair_print
from retipair.metrics.pair_metrics import Figures, Neighbours
from retipair.runtime.atomic_io import read_json, whole, write_json

RECIPE = 3
"""Raised when a figure changes its meaning: what was kept under another number is measured again."""
_PARTS = ("names", "values", "features", "power", "prints")


def key_of(entry: Entry) -> str:
    """A hash of what a pair shows and of how it is measured: under which its figures are kept."""
    return hashlib.sha256(f"{RECIPE} {pair_sha256(entry)}".encode()).hexdigest()[:24]


def link_of(first: str, second: str) -> str:
    """Under what the figures of two neighbours are kept, of these keys."""
    return f"{first[:12]}-{second[:12]}"


def has_figures(folder: Path, key: str) -> bool:
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
        return set(values) == {field.name for field in fields(Neighbours)}
    except (OSError, ValueError, TypeError):
        return False


def keep_figures(folder: Path, key: str, figures: Figures) -> None:
    with whole(folder / f"{key}.npz") as stream:
        np.savez(
            stream,
            names=np.array(list(figures.values)),
            values=np.array(list(figures.values.values())),
            features=figures.features,
            power=figures.power,
            prints=figures.prints.astype(np.float16),
        )


def read_figures(folder: Path, key: str) -> Figures:
    with np.load(folder / f"{key}.npz") as kept:
        values = dict(zip(kept["names"].tolist(), kept["values"].tolist(), strict=True))
        return Figures(values, kept["features"], kept["power"], kept["prints"].astype(np.float32))


def keep_link(folder: Path, link: str, found: Neighbours) -> None:
    write_json(folder / f"{link}.json", asdict(found))


def read_link(folder: Path, link: str) -> Neighbours:
    values = read_json(folder / f"{link}.json")
    return Neighbours(Consistency(**values["mispaired"]), values["alike"])


@dataclass(frozen=True)
class KeptPrints:
    """What tells the eyes of pairs from others, (64, 64) each: read when it is asked for, as there may be very many."""

    folder: Path
    keys: Sequence[str]

    def __len__(self) -> int:
        return len(self.keys)

    def __getitem__(self, at: int) -> np.ndarray:
        return pair_print(read_figures(self.folder, self.keys[at]).prints)
