"""Define the sets of pairs that an evaluation compares, and write the metrics of their pairs as a table."""

import csv
from codecs import getwriter
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from retipair.data.manifest import Split
from retipair.evaluation.measurements import MeasuredSet
from retipair.runtime.atomic_io import atomic_write

_HELD_OUT: tuple[Split, ...] = ("val", "test")


@dataclass(frozen=True)
class Sets:
    """The sets of pairs that an evaluation compares.

    real: the real pairs of all splits.
    generated: the generated pairs, if any.
    rejected: the rejected training pairs whose files still exist; used only in the search for copies.
    """

    real: MeasuredSet
    generated: MeasuredSet | None
    rejected: MeasuredSet | None = None

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
        columns: dict[str, MeasuredSet | None] = {"generated": self.generated, "train": self.train}
        columns |= {split: self.real.in_split(split) for split in _HELD_OUT}
        return {name: measured for name, measured in columns.items() if measured is not None and measured.entries}


def write_metrics_table(path: Path, sets: Sets) -> None:
    """Write a CSV table atomically: one row for each pair, with all its metrics.

    The rows are grouped by set, and are in the order of the manifest within a set.
    """
    with atomic_write(path) as stream:
        table = csv.writer(getwriter("utf-8")(stream), lineterminator="\n")
        table.writerow(["set", "id", *sets.real.values])
        for name, measured in sets.named.items():
            for entry, *values in zip(measured.entries, *measured.values.values(), strict=True):
                table.writerow([name, entry.id, *map(float, values)])
