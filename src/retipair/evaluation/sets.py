"""The sets of pairs that an evaluation compares, and the table of all their metrics."""

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
    """Sets to compare: the real pairs of all splits, and the generated pairs, if any.

    rejected: rejected training pairs whose files still exist; used only in the search for copies.
    """

    real: MeasuredSet
    generated: MeasuredSet | None
    rejected: MeasuredSet | None = None

    @cached_property
    def train(self) -> MeasuredSet:
        return self.real.in_split("train")

    @cached_property
    def all_train(self) -> MeasuredSet:
        """Training pairs including rejected ones, since a model may have been trained on them before."""
        return self.train.concatenate(self.rejected) if self.rejected else self.train

    @cached_property
    def named(self) -> dict[str, MeasuredSet]:
        """Non-empty sets by name, one per table column."""
        columns: dict[str, MeasuredSet | None] = {"generated": self.generated, "train": self.train}
        columns |= {split: self.real.in_split(split) for split in _HELD_OUT}
        return {name: measured for name, measured in columns.items() if measured is not None and measured.entries}


def write_metrics_table(path: Path, sets: Sets) -> None:
    """Write all metrics of all pairs atomically as a CSV table, in the order of the manifests."""
    with atomic_write(path) as stream:
        table = csv.writer(getwriter("utf-8")(stream), lineterminator="\n")
        table.writerow(["set", "id", *sets.real.values])
        for name, measured in sets.named.items():
            for entry, *values in zip(measured.entries, *measured.values.values(), strict=True):
                table.writerow([name, entry.id, *map(float, values)])
