"""The settings of `retipair export matches` and `retipair utility`."""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import tyro

Ranges = Literal["auto", "fitted", "typical", "narrow", "wide"]
ReaderForm = Literal["glue_factory", "megadepth", "minima", "numbered", "segmented"]


@dataclass(frozen=True, kw_only=True)
class ExportMatchesConfig:
    """Export pairs for training registration networks: a fixed CF and a moving FA that a known transform has warped."""

    pairs: Annotated[tyro.conf.Positional[Path], tyro.conf.arg(metavar="PAIRS")]
    """Prepared or generated folder. Rejected pairs are left out."""
    out: Annotated[tyro.conf.Positional[Path], tyro.conf.arg(metavar="OUT")]
    """Folder to write: matches.jsonl, and pairs/ID/ with the images of each pair."""
    warps: int = 1
    """Number of warped variants of each pair. The aligned pair itself is exported, too.
    May be raised later; existing variants stay the same."""
    appearance: bool = False
    """Also write, for each pair, one more warped variant, whose views also have a random appearance:
    gamma, contrast, inversion, defocus, noise, stripes, patches, vignette, and other fields of view."""
    ranges: Ranges = "auto"
    """Geometry of the warps. fitted: that of the raw pairs in --real. typical: about that of seven real pairs.
    narrow, wide: smaller and larger changes (docs/registration.md).
    auto: fitted if --real has the transforms of 5 raw pairs, else typical."""
    real: Path | None = None
    """Prepared folder of the real pairs: the warps get their geometry, and pairs that were generated from their eyes
    (--mode from_data, cf2fa, fa2cf) get the splits of these eyes. Default: the geometry and the splits of PAIRS."""
    rotation: tuple[float, float] | None = None
    """Smallest and largest rotation, degrees, in both directions; replaces that of --ranges."""
    scale: tuple[float, float] | None = None
    """Smallest and largest magnification of the FA; replaces that of --ranges."""
    shift: tuple[float, float] | None = None
    """Smallest and largest shift, as a fraction of the width, in all directions; replaces that of --ranges."""
    perspective: tuple[float, float] | None = None
    """Smallest and largest perspective (length of the vector h20, h21), per px at 512 px; replaces that of --ranges."""
    elastic: float = 0.0
    """Largest smooth displacement before the homography, px at 512 px, for the curvature of the eye; at most 20."""
    to: tuple[ReaderForm, ...] = ()
    """Also write the forms that trainers read (docs/registration.md), for example --to glue_factory megadepth.
    They leave out elastic samples. megadepth needs h5py: pip install 'retipair[matching]'."""
    reviewed: bool = False
    """Leave out the pairs that were rejected in `retipair app` (PAIRS/review.jsonl)."""
    split: Literal["all", "train", "val", "test"] = "all"
    """Export only the pairs of this split."""
    size: int | None = None
    """Side of the exported views, px, a multiple of 32; default: that of the pairs. Export at the size of training,
    because trainers that resize images shift the transform by up to half a pixel."""
    seed: int = 0
    """Seed of the warps; variant n of a pair depends only on this seed, the pair's id and mask, n, and the geometry."""
    workers: int = 0
    """Number of processes; 0: one per core. The files do not depend on it."""


ArmName = Literal[
    "generated", "real", "phantoms", "generated_and_real", "inverted", "mispaired", "shifted", "untrained"
]


@dataclass(frozen=True, kw_only=True)
class UtilityConfig:
    """Test whether generated pairs help: train a small descriptor on them, and match real pairs with landmarks."""

    real: Annotated[tyro.conf.Positional[Path], tyro.conf.arg(metavar="REAL")]
    """Prepared folder of real pairs, with landmarks."""
    out: Annotated[tyro.conf.Positional[Path], tyro.conf.arg(metavar="OUT")]
    """Folder to write: utility.md and utility.json."""
    generated: Path | None = None
    """Folder of the pairs to test: written by `generate`, or a prepared folder."""
    arms: tuple[ArmName, ...] = (
        "generated",
        "real",
        "phantoms",
        "generated_and_real",
        "inverted",
        "mispaired",
        "untrained",
    )
    """What the descriptor is trained on.
    generated: the pairs in --generated. real: the real pairs of other eyes than the tested one.
    phantoms: rendered eyes. generated_and_real: half of the warped pairs from each.
    Controls, made from the generated pairs (except untrained):
    inverted: the FA is the inverted green channel of the CF. mispaired: the FA is that of another eye.
    shifted: the FA is moved by 4 px (at 512). untrained: no training."""
    test: Literal["auto", "held_out", "all"] = "auto"
    """The pairs to test. held_out: those of the splits val and test; all: all pairs with landmarks.
    auto: held_out if the generated pairs were made with an adapter or from real views
    (--mode from_data, cf2fa or fa2cf), else all."""
    phantoms: int = 24
    """Number of rendered eyes for each seed."""
    seeds: int = 3
    """Number of seeds with which each arm is trained; the scores are averaged over them."""
    variants: int = 64
    """Number of warped pairs on which the descriptor is trained, in every arm."""
    steps: int = 200
    """Optimiser steps of each training."""
    warps: int = 5
    """Number of warps of each tested pair, at each of two levels of difficulty (hard, extreme)."""
    seed: int = 0
    """Seed of the warps of the tested pairs, and of the first training."""
    workers: int = 0
    """Number of processes; 0: one per core."""
