"""The settings of `retipair evaluate`."""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from retipair.config.common import FOLDERS


@dataclass(frozen=True, kw_only=True)
class EvaluateConfig:
    """Evaluate generated pairs or drawn views against real pairs, or check real pairs alone."""

    real: Path
    """Prepared folder of real pairs, or a data set of Parquet files, which is then prepared once into OUT/prepared."""
    generated: Annotated[tuple[Path, ...], FOLDERS] = ()
    """Folder written by `generate`, or a prepared folder. Several folders are compared in one report.
    Without it and --drawn_views, only the real pairs are checked."""
    drawn_views: Path | None = None
    """Folder written by `generate --mode cf2fa` or `fa2cf`: adds how well its drawn views match the true ones.
    Not needed if --generated is such a folder; not with several --generated."""
    reviewed: bool = False
    """Leave out the pairs that were rejected in `retipair app` (review.jsonl in the folders)."""
    out: Path = Path("evaluation")
    """Folder to write: report.html, scores.json, figures.csv, and features/ (the measurements of each pair)."""
    base: str | None = None
    """Base of the generated pairs (hub id, folder, file, tiny-sdxl or tiny-sd15).
    With it, the report says how much detail its autoencoder preserves."""
    adapter: Path | None = None
    """Folder of the run that trained the adapter, or a folder inside it; adds the training curves to the report.
    With several --generated, all must be of adapters of this run."""
    deep: Path | None = None
    """Folder of an image model in transformers' format (DINO, DINOv2, or ViT-MAE such as RETFound).
    Adds two distances between real and generated pairs on the features of this model: squared MMD and FID."""
    withhold_copies: bool = False
    """Add generated pairs that are copies of training pairs to rejected.txt in --generated.
    All commands then skip the copies. The other pairs, if any are left, are evaluated."""
    workers: int = 0
    """Number of pairs measured at once; 0: one per core."""
    offline: bool = False
    """Do not use the network; a base given by its hub id must be in the cache already."""
