"""Count the pairs of a folder for its card: by split and origin, with the bases, adapters and sizes."""

import os
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path

from retipair.data.manifest import (
    GIVEN_VIEWS,
    MANIFEST_NAME,
    SPLITS,
    PreparedPair,
    Record,
    check_one_kind,
    files_of,
    modalities_of,
)
from retipair.data.pair import load_image, synthetic_mark_of
from retipair.data.pair_stream import StreamedPair
from retipair.runtime.atomic_io import read_json
from retipair.runtime.errors import MissingError
from retipair.runtime.text_files import check_safe_name
from retipair.vision.modality import CF_FA, Modalities

_SOURCED = ("from_data", *GIVEN_VIEWS)
"""The modes of generation whose pairs name a source in the manifest (`source_id`, `source_eye`)."""


FIRST, SECOND = "First view", "Second view"
"""The names of the rows of a card that state the modalities."""


def view_names(modalities: Modalities) -> dict[str, str]:
    """Return the names of the modalities, with their articles, by FIRST and SECOND; {} for CF and FA."""
    return {} if modalities == CF_FA else {FIRST: modalities.first.name, SECOND: modalities.second.name}


@dataclass(frozen=True)
class PairFacts:
    """What a card says of the pairs of a folder; nothing in it names a patient.

    splits: the number of pairs, by split.
    origins: the number of pairs prepared from "real" and from "synthetic" views, and of those generated, by mode.
    sizes: the sides of the views, px.
    bases: the names of the bases that generated pairs.
    adapters: the first 12 digits of the hashes of the adapters that generated pairs.
    consistency: the mean vesselness correlation of CF and FA.
    real: the number of pairs of which a view is not marked as synthetic.
    """

    splits: dict[str, int]
    origins: dict[str, int]
    sizes: list[int]
    bases: list[str]
    adapters: list[str]
    consistency: float
    real: int = 0

    @property
    def pairs(self) -> int:
        return sum(self.splits.values())

    @property
    def splits_text(self) -> str:
        return ", ".join(f"{count} {split}" for split, count in self.splits.items())

    @property
    def kind(self) -> str:
        """What the pairs are: "Real" if all were prepared from real views, "Synthetic" if no view is real, or both."""
        if self.origins.get("real", 0) == self.pairs:
            return "Real"
        return "Real and synthetic" if self.real else "Synthetic"

    @property
    def modes(self) -> set[str]:
        """The modes in which pairs were generated."""
        return set(self.origins) - {"real", "synthetic"}

    @property
    def sourced(self) -> int:
        """The number of pairs that were generated from a given pair or view."""
        return sum(self.origins.get(mode, 0) for mode in _SOURCED)


@dataclass
class FactCounter:
    """Counts the pairs of a folder one by one, and checks their names and files."""

    folder: Path
    splits: Counter[str] = field(default_factory=Counter)
    origins: Counter[str] = field(default_factory=Counter)
    sizes: set[int] = field(default_factory=set)
    bases: set[str] = field(default_factory=set)
    adapters: set[str] = field(default_factory=set)
    kinds: set[type[Record]] = field(default_factory=set)
    consistency: float = 0.0
    real: int = 0
    modalities: Modalities | None = None

    @property
    def views(self) -> dict[str, str]:
        """What the card says of the modalities, by name; nothing for CF and FA."""
        return view_names(self.modalities or CF_FA)

    def add(self, pair: StreamedPair) -> None:
        """Count a pair. Raises UserError if its id is no safe file name or one of its files is missing."""
        record = pair.record
        self._check(record)
        self.modalities = self.modalities or modalities_of(record)
        check_one_kind(self.folder, self.modalities, modalities_of(record), record.id)
        self.kinds.add(type(record))
        self.splits[pair.split] += 1
        self.sizes.add(record.size)
        self.consistency += record.consistency
        if isinstance(record, PreparedPair) or record.mode in GIVEN_VIEWS:
            is_real = not all(_is_synthetic(self.folder / path) for path in (record.cf, record.fa))
            self.real += is_real
        self.origins[record.mode or ("real" if is_real else "synthetic")] += 1
        if isinstance(record, PreparedPair):
            return
        self.bases.add(record.base)
        if record.adapter_sha256:
            self.adapters.add(record.adapter_sha256[:12])

    def _check(self, record: Record) -> None:
        check_safe_name(self.folder / MANIFEST_NAME, record.id)
        for name in files_of(record):
            if not os.path.isfile(f"{self.folder}{os.sep}{name}"):  # noqa: PTH113 - a Path takes ten times as long
                problem = "named in the manifest but missing"
                raise MissingError(
                    self.folder / name, f"{problem}; make the folder again, or list {record.id} in rejected.txt"
                )

    def facts(self) -> PairFacts:
        total = sum(self.splits.values())
        return PairFacts(
            splits={split: self.splits[split] for split in SPLITS if self.splits[split]},
            origins=dict(sorted(self.origins.items())),
            sizes=sorted(self.sizes),
            bases=sorted(self.bases),
            adapters=sorted(self.adapters),
            consistency=round(self.consistency / max(total, 1), 3),
            real=self.real,
        )


def _is_synthetic(path: Path) -> bool:
    try:
        return bool(synthetic_mark_of([path]))
    except Exception:  # Pillow raises many types of exceptions for malformed files
        load_image(path, "RGB")  # raises the error that names the file
        return False


def count_pairs(folder: Path, pairs: Iterable[StreamedPair]) -> FactCounter:
    """Count and check all pairs of a folder. Raises UserError if a file is missing, or if no pair is left."""
    counter = FactCounter(folder)
    for pair in pairs:
        counter.add(pair)
    if not counter.splits:
        raise MissingError(folder, "every pair is rejected or deleted; no pair is left")
    return counter


_SETTINGS = {
    "steps": "Denoising steps",
    "sampler": "Sampler",
    "guidance_scale": "Guidance",
    "pair_guidance": "Cross-view guidance",
    "strength": "Strength",
    "layout": "Layout",
    "seed": "Seed",
    "best_of": "Attempts per pair, of which the most consistent is kept",
    "min_consistency": "Limit: least consistency",
    "max_copy": "Limit: highest similarity to a training pair",
    "dtype": "Precision",
}
"""The settings of generation that a card shows. The others are hashes, details, or texts that may name patients."""


def generation_settings(folder: Path) -> dict[str, str]:
    """Return the settings of a generated folder that a card shows, by name; {} for a folder without settings.json."""
    path = folder / "settings.json"
    saved = read_json(path) if path.is_file() else {}
    return {name: str(saved[key]) for key, name in _SETTINGS.items() if saved.get(key) is not None}
