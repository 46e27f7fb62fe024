"""The settings of `retipair demo` and `retipair bench`."""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import tyro

from retipair.config.common import Memory, Precision, SystemName

Benched = Literal["train", "generate", "encode", "evaluate"]


@dataclass(frozen=True, kw_only=True)
class DemoConfig:
    """Run phantom, prepare, train, generate and evaluate on rendered eyes. Takes minutes and needs no GPU."""

    out: Annotated[tyro.conf.Positional[Path], tyro.conf.arg(metavar="[OUT]")] = Path("demo")
    """Folder to write; results of an earlier demo there are reused."""
    system: SystemName = "sdxl"
    """sdxl: the base tiny-sdxl with the views side by side; sd15: the base tiny-sd15 with squeezed views."""


@dataclass(frozen=True, kw_only=True)
class BenchConfig:
    """Benchmark a training step, generation, encoding or evaluation on this machine, with synthetic eyes."""

    what: Annotated[tyro.conf.Positional[Benched], tyro.conf.arg(metavar="{train,generate,encode,evaluate}")]
    """train: an optimiser step; generate: pairs from noise, without cross-view guidance;
    encode: pairs to latents; evaluate: metrics of pairs."""
    base: str = "tiny-sdxl"
    """Base, as for `retipair train`; random:sdxl and random:sd15 have the full size and random weights: no download."""
    tokenizer: Path | None = None
    """Folder with tokenizer/ (and tokenizer_2/), for a single-file base without network access."""
    against: Literal["none", "bare", "original", "diffusers"] = "none"
    """Also time a baseline, in alternation with retipair.
    train: bare (only forward and backward pass of the same network) or original (a step like the original scripts').
    generate: diffusers (the pipeline of that library)."""
    size: int | None = None
    """Side of one view, px, a multiple of 64; default: the base's own."""
    batch_size: int = 1
    """Number of pairs in one forward pass."""
    steps: int = 50
    """generate: number of denoising steps."""
    precision: Precision = "auto"
    """Precision of the frozen base, as for train and generate. The original scripts always use fp32."""
    gradient_checkpointing: bool = False
    """train: recompute activations instead of storing them."""
    memory: Memory = "auto"
    """Device memory available, as for `retipair train` and `retipair generate`."""
    optimizer: Literal["adamw", "adamw8bit"] = "adamw"
    """train: optimiser, as in `retipair train`."""
    offline: bool = False
    """Do not use the network; a base given by its hub id must be in the cache already."""
    device: str = "auto"
    """Device to compute on: auto, cuda, mps or cpu."""
    repeats: int = 10
    """Number of timed repetitions; the median is reported."""
    warmup: int = 2
    """Number of untimed repetitions before the timed ones."""
    json: Path | None = None
    """Also write the results to this JSON file."""
