"""The settings of `retipair utility`."""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import tyro

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
    phantoms: rendered eyes. generated_and_real: half of each.
    Controls, made from the generated pairs:
    inverted: the FA is the inverted green channel of the CF. mispaired: the FA is that of another eye.
    shifted: the FA is moved by 4 px (at 512). untrained: no training."""
    test: Literal["auto", "held_out", "all"] = "auto"
    """The pairs to test. held_out: those of the splits val and test; all: all pairs with landmarks.
    auto: held_out if the generated pairs were made with an adapter or from real pairs, else all."""
    phantoms: int = 24
    """Number of rendered eyes for each seed."""
    seeds: int = 3
    """Number of trainings of each arm; their scores are averaged."""
    variants: int = 64
    """Number of warped pairs on which the descriptor is trained, in every arm."""
    steps: int = 200
    """Optimiser steps of each training."""
    warps: int = 5
    """Number of warps of each tested pair, at each of the two levels."""
    seed: int = 0
    """Seed of the warps of the tested pairs, and of the first training."""
    workers: int = 0
    """Number of processes; 0: one per core."""
