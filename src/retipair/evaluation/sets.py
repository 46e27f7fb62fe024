"""Define the sets of pairs that an evaluation compares, and write the metrics of their pairs as a table."""

import csv
import os
from codecs import getwriter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from itertools import count
from pathlib import Path
from typing import Any, TypeVar

from retipair.data.manifest import Split
from retipair.evaluation.measurements import MeasuredSet
from retipair.runtime.atomic_io import atomic_write

GENERATED = "generated"
"""The name of the set of generated pairs, if there is only one."""
_HELD_OUT: tuple[Split, ...] = ("val", "test")
_RESERVED = frozenset({GENERATED, "train", *_HELD_OUT, "mispaired", "real", "autoencoder"})
"""Names in the scores that are not those of one of several sets."""
Result = TypeVar("Result")


@dataclass(frozen=True)
class Sets:
    """The sets of pairs that an evaluation compares.

    real: the real pairs of all splits.
    generated: the generated pairs, if any.
    rejected: the rejected training pairs whose files still exist; used only in the search for copies.
    of_real: the results of `once`. `dataclasses.replace` shares them between sets of generated pairs.
    """

    real: MeasuredSet
    generated: MeasuredSet | None
    rejected: MeasuredSet | None = None
    of_real: dict[str, Any] = field(default_factory=dict)

    def once(self, name: str, compute: Callable[[], Result]) -> Result:
        """Return `compute()`, which depends on the real pairs alone, and compute it once for all sets."""
        if name not in self.of_real:
            self.of_real[name] = compute()
        result: Result = self.of_real[name]
        return result

    @cached_property
    def train(self) -> MeasuredSet:
        return self.real.in_split("train")

    @cached_property
    def all_train(self) -> MeasuredSet:
        """Training pairs including rejected pairs, because a model may have been trained before a pair was rejected."""
        return self.train.concatenate(self.rejected) if self.rejected else self.train

    @cached_property
    def named(self) -> dict[str, MeasuredSet]:
        """Set name -> set, for those of generated, train, val and test that are not empty."""
        columns: dict[str, MeasuredSet | None] = {GENERATED: self.generated, "train": self.train}
        columns |= {split: self.real.in_split(split) for split in _HELD_OUT}
        return {name: measured for name, measured in columns.items() if measured is not None and measured.entries}


def set_names(folders: Sequence[Path]) -> list[str]:
    """Return a name for each set of generated pairs: `GENERATED` for one, else a part of the path of its folder.

    The parts are the last ones that the paths do not share, and as few as distinguish the paths: "x/new" and "y/new"
    are named "x" and "y". The paths must differ.
    """
    if len(folders) == 1:
        return [GENERATED]
    paths = [Path(os.path.abspath(folder)).parts for folder in folders]  # noqa: PTH100 - without following links
    while len({parts[-1] for parts in paths}) == 1 and min(map(len, paths)) > 2:
        paths = [parts[:-1] for parts in paths]
    for length in count(1):
        names = [str(Path(*parts[-length:])) for parts in paths]
        if len(set(names)) == len(names) and not _RESERVED & set(names):
            break
    return names


def write_metrics_table(path: Path, sets: Mapping[str, Sets]) -> None:
    """Write a CSV table atomically: one row for each pair, with all its metrics.

    The rows are grouped by set, and are in the order of the manifest within a set.
    sets: name of the set of generated pairs -> this set beside the real pairs, which are the same for all.
    """
    first = next(iter(sets.values()))
    generated = {name: one.generated for name, one in sets.items() if one.generated}
    named = generated | {name: measured for name, measured in first.named.items() if name != GENERATED}
    with atomic_write(path) as stream:
        table = csv.writer(getwriter("utf-8")(stream), lineterminator="\n")
        table.writerow(["set", "id", *first.real.values])
        for name, measured in named.items():
            for entry, *values in zip(measured.entries, *measured.values.values(), strict=True):
                table.writerow([name, entry.id, *map(float, values)])
