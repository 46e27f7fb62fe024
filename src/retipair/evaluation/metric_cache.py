"""Cache the metrics of pairs on disk, by a hash of the content of each pair.

A link is a comparison of two pairs (see `measurements`); its metrics are cached in a file of their own.
"""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from zipfile import BadZipFile

import numpy as np

from retipair.data.dataset import PairRecord, pair_sha256
from retipair.metrics.memorisation import pair_descriptor
from retipair.metrics.pair_metrics import MispairedMetrics, PairMetrics
from retipair.runtime.atomic_io import atomic_write, read_json, write_json
from retipair.runtime.errors import UserError
from retipair.runtime.schema import canonical_json, from_values, to_values

RECIPE = 3
"""Version of the metrics. Increment it when the definition of a metric changes: cached metrics are then recomputed."""
_ARRAYS = ("names", "values", "features", "power", "prints")
"""Names of the arrays in the file of a pair; "prints" are the vessel descriptors."""


def key_of(entry: PairRecord) -> str:
    """Return the cache key of a pair: a hash of its content and of the version of the metrics."""
    parts = [RECIPE, pair_sha256(entry), *map(canonical_json, entry.modalities.hashed)]
    return hashlib.sha256(" ".join(map(str, parts)).encode()).hexdigest()[:24]


def link_of(first: str, second: str) -> str:
    """Return the cache key of the link between two pairs, from their cache keys."""
    return f"{first[:12]}-{second[:12]}"


def has_metrics(folder: Path, key: str) -> bool:
    """Return whether the metrics of a pair are cached and readable; False if the file is missing or truncated."""
    try:
        with np.load(folder / f"{key}.npz") as arrays:
            return set(arrays) == set(_ARRAYS) and arrays.zip.testzip() is None
    except (OSError, ValueError, EOFError, BadZipFile):
        return False


def has_link(folder: Path, link: str) -> bool:
    """Return whether the metrics of a link are cached and readable."""
    try:
        load_link(folder, link)
    except UserError:
        return False
    return True


def save_metrics(folder: Path, key: str, metrics: PairMetrics) -> None:
    with atomic_write(folder / f"{key}.npz") as stream:
        np.savez(
            stream,
            names=np.array(list(metrics.values)),
            values=np.array(list(metrics.values.values())),
            features=metrics.features,
            power=metrics.power,
            prints=metrics.descriptors.astype(np.float16),
        )


def load_metrics(folder: Path, key: str) -> PairMetrics:
    with np.load(folder / f"{key}.npz") as arrays:
        values = dict(zip(arrays["names"].tolist(), arrays["values"].tolist(), strict=True))
        return PairMetrics(values, arrays["features"], arrays["power"], arrays["prints"].astype(np.float32))


def save_link(folder: Path, link: str, metrics: MispairedMetrics) -> None:
    write_json(_link_path(folder, link), to_values(metrics))


def load_link(folder: Path, link: str) -> MispairedMetrics:
    """Return the cached metrics of a link. Raises UserError if the file is missing or damaged."""
    path = _link_path(folder, link)
    return from_values(MispairedMetrics, read_json(path), str(path))


def _link_path(folder: Path, link: str) -> Path:
    return folder / f"{link}.json"


@dataclass(frozen=True)
class StoredDescriptors:
    """Sequence of the vessel descriptors of pairs, (64, 64) each. Each is read from disk when it is accessed."""

    folder: Path
    keys: Sequence[str]

    def __len__(self) -> int:
        return len(self.keys)

    def __getitem__(self, at: int) -> np.ndarray:
        return pair_descriptor(load_metrics(self.folder, self.keys[at]).descriptors)
