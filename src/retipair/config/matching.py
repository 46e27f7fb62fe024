"""The settings of `retipair export`."""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import tyro

Exported = Literal["matches"]
Ranges = Literal["auto", "fitted", "real", "narrow", "wide"]
ReaderForm = Literal["glue_factory", "megadepth", "minima", "numbered", "segmented"]


@dataclass(frozen=True, kw_only=True)
class ExportConfig:
    """Export pairs for training registration networks: a fixed CF and a moving FA that a known transform has warped."""

    what: Annotated[tyro.conf.Positional[Exported], tyro.conf.arg(metavar="matches")]
    """matches: image pairs with their transform, masks of the valid pixels and of vessels, and landmarks."""
    pairs: Annotated[tyro.conf.Positional[Path], tyro.conf.arg(metavar="PAIRS")]
    """Prepared or generated folder. Rejected pairs are left out."""
    out: Annotated[tyro.conf.Positional[Path], tyro.conf.arg(metavar="OUT")]
    """Folder to write: matches.jsonl, and pairs/ID/ with the images of each pair."""
    warps: int = 1
    """Number of warped variants of each pair. Each pair also gives the aligned pair itself.
    May be raised later; existing variants stay the same."""
    appearance: bool = False
    """Also write, for each pair, one variant whose views have a random appearance as well:
    gamma, contrast, inversion, defocus, noise, stripes, patches, vignette, and other fields of view."""
    ranges: Ranges = "auto"
    """Geometry of the warps. fitted: that of the raw pairs in --fit. real: about that of seven real pairs.
    narrow, wide: smaller and larger changes. auto: fitted if PAIRS has the transforms of 5 raw pairs, else real."""
    fit: Path | None = None
    """Prepared folder to which the geometry is fitted; default: PAIRS."""
    rotation: tuple[float, float] | None = None
    """Smallest and largest rotation, degrees, in both directions; replaces that of --ranges."""
    scale: tuple[float, float] | None = None
    """Smallest and largest magnification of the FA; replaces that of --ranges."""
    shift: tuple[float, float] | None = None
    """Smallest and largest shift, as a fraction of the width, in all directions; replaces that of --ranges."""
    perspective: tuple[float, float] | None = None
    """Smallest and largest perspective (length of h20, h21), per px at 512 px; replaces that of --ranges."""
    elastic: float = 0.0
    """Largest smooth displacement before the homography, px at 512 px, for the curvature of the eye; at most 20."""
    to: tuple[ReaderForm, ...] = ()
    """Also write the forms that trainers read (docs/registration.md), for example --to glue_factory megadepth."""
    split: Literal["all", "train", "val", "test"] = "all"
    """Export only the pairs of this split."""
    size: int | None = None
    """Side of the exported views, px, a multiple of 32; default: that of the pairs. Export at the size of training,
    because trainers that resize images shift the transform by up to half a pixel."""
    seed: int = 0
    """Seed of the warps; variant n of a pair depends only on this seed, the pair's id and n."""
    workers: int = 0
    """Number of processes; 0: one per core. The files do not depend on it."""
