"""The settings of `retipair export pairs` and `retipair card`."""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import tyro

DatasetForm = Literal["hf", "webdataset"]


@dataclass(frozen=True, kw_only=True)
class ExportPairsConfig:
    """Export aligned pairs as a data set: Parquet files for Hugging Face's library datasets, or tar files."""

    pairs: Annotated[tyro.conf.Positional[Path], tyro.conf.arg(metavar="DIR")]
    """Prepared or generated folder. Rejected pairs are left out."""
    out: Annotated[tyro.conf.Positional[Path], tyro.conf.arg(metavar="OUT")]
    """Folder to write: the files of the data set, and README.md, which describes it."""
    to: DatasetForm
    """hf: Parquet files with the images inside, which datasets.load_dataset(OUT) reads (needs pyarrow:
    pip install 'retipair[hf]'). webdataset: tar files, which the library webdataset reads."""
    reviewed: bool = False
    """Leave out the pairs that were rejected in `retipair app` (DIR/review.jsonl)."""
    workers: int = 0
    """Number of pairs read at once; 0: one per core. The files do not depend on it."""


@dataclass(frozen=True, kw_only=True)
class CardConfig:
    """Write README.md, the card that describes a data set or an adapter on the Hugging Face hub."""

    directory: Annotated[tyro.conf.Positional[Path], tyro.conf.arg(metavar="DIR")]
    """Prepared or generated folder, folder written by `export pairs`, or folder of a training run."""
    evaluation: Path | None = None
    """Folder written by `retipair evaluate`, whose scores the card shows; default: DIR/evaluation, if it exists."""
    reviewed: bool = False
    """Describe only the pairs that were not rejected in `retipair app` (DIR/review.jsonl): those that
    `evaluate --reviewed` measures."""
