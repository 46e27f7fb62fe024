"""On-disk cache of the metrics of pairs, keyed by a hash of their content."""

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
"""Version of the metrics, incremented when the meaning of one changes; entries of other versions are recomputed."""
_PARTS = ("names", "values", "features", "power", "prints")


def key_of(entry: PairRecord) -> str:
    """Return the cache key of a pair: a hash of its content and the version of the metrics."""
    return hashlib.sha256(f"{RECIPE} {pair_sha256(entry)}".encode()).hexdigest()[:24]


def link_of(first: str, second: str) -> str:
    """Return the cache key of the metrics between two pairs with these keys."""
    return f"{first[:12]}-{second[:12]}"


def has_metrics(folder: Path, key: str) -> bool:
    """Return whether the metrics of a pair are cached and readable, False for a missing or truncated file."""
    try:
        with np.load(folder / f"{key}.npz") as arrays:
            return set(arrays) == set(_PARTS) and arrays.zip.testzip() is None
    except (OSError, ValueError, EOFError, BadZipFile):
        return False


def has_link(folder: Path, link: str) -> bool:
    """Return whether the metrics between two pairs are cached and readable."""
    try:
        values = json.loads((folder / f"{link}.json").read_text(encoding="utf-8"))
        return set(values) == {field.name for field in fields(MispairedMetrics)}
    except (OSError, ValueError, TypeError):
        return False


def save_metrics(folder: Path, key: str, metrics: PairMetrics) -> None:
    with atomic_write(folder / f"{key}.npz") as stream:
        np.savez(
            stream,
            names=np.array(list(metrics.values)),
            values=np.array(list(metrics.values.values())),
            features=metrics.features,
            power=metrics.power,
            prints=metrics.prints.astype(np.float16),
        )


def load_metrics(folder: Path, key: str) -> PairMetrics:
    with np.load(folder / f"{key}.npz") as arrays:
        values = dict(zip(arrays["names"].tolist(), arrays["values"].tolist(), strict=True))
        return PairMetrics(values, arrays["features"], arrays["power"], arrays["prints"].astype(np.float32))


def save_link(folder: Path, link: str, metrics: MispairedMetrics) -> None:
    write_json(folder / f"{link}.json", asdict(metrics))


def load_link(folder: Path, link: str) -> MispairedMetrics:
    values = read_json(folder / f"{link}.json")
    return MispairedMetrics(Consistency(**values["mispaired"]), values["alike"])


@dataclass(frozen=True)
class StoredDescriptors:
    """Vessel descriptors of pairs, (64, 64) each, read from disk on access, as there may be very many."""

    folder: Path
    keys: Sequence[str]

    def __len__(self) -> int:
        return len(self.keys)

    def __getitem__(self, at: int) -> np.ndarray:
        return pair_descriptor(load_metrics(self.folder, self.keys[at]).prints)
