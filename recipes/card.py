"""Write the model card of a bundled base: how its weights were trained, from the logs of the recipe."""

import json
import platform
from collections.abc import Sequence
from itertools import accumulate
from pathlib import Path
from typing import Any

import autoencoder
import denoiser
import folders
import grain
import torch

from retipair.models.base import open_base

NAME = "README.md"
_EVALUATED = "own"  # only log lines with an evaluation have this key
_ERROR = "error of one view at timestep 700, beside the clean other view of the same eye"
_OTHER_ERROR = "the same, beside the clean other view of another eye"


def write_card(folder: Path, name: str, work: Path, start: Path | None, done: int) -> None:
    """Write `folder/README.md`. start and done: as for `denoiser.train`."""
    log = _read_log(work / f"{name}.jsonl")
    evaluation = next(line for line in reversed(log) if _EVALUATED in line)
    seconds = sum(line["seconds"] for line in log)
    phases = "; ".join(
        f"{p.steps:,} with batch size {p.batch_size}, rate {p.learning_rate:g}, lateness {p.timestep_bias:g}, "
        f"weight of the coarse error {p.coarse_weight:g}"
        for p in _phases_after(done, denoiser.PHASES[name])
    )
    config = folders.UNETS[name]
    kind, layout = ("SDXL", "side by side") if name == "tiny-sdxl" else ("SD1.5", "squeezed into one square")
    rows = {
        "made by": f"`{_command(name, start, done)}`",
        "on": f"{_machine()}, torch {torch.__version__}",
        "UNet": f"channels {config['block_out_channels']}, {_millions_of_parameters(folder / 'unet'):.1f} M parameters",
        "optimiser": f"AdamW, EMA decay {denoiser.EMA_DECAY}, seed {denoiser.SEED}",
        "steps": phases,
        "half-clean samples": f"{denoiser.HALF_CLEAN_FRACTION:.0%}",
        "time": f"about {_duration(seconds)} in the UNet's steps",
        "last loss": f"{log[-1]['loss']:.4f}",
        _ERROR: f"{evaluation['own']:.3f}",
        _OTHER_ERROR: f"{evaluation['other']:.3f}",
        "autoencoder": _autoencoder(work, start),
        "text encoders": "random, frozen",
    }
    text = f"""---
license: apache-2.0
library_name: diffusers
---
# {name}

A small {kind}-shaped base for trying out and testing `retipair`: it generates a colour fundus photograph and a
fluorescein angiogram of one eye, {layout}, views of {folders.VIEW} px. It was trained on rendered eyes
(`retipair phantom`) alone. No patient's image was used, and its images say nothing about any patient: for research and
testing only.

In a half-clean training sample, one of the two views has no noise. Timesteps are drawn as 1000 u^(1 / lateness), with u
uniform in [0, 1). A lateness of 1 draws all timesteps equally often, a higher one draws high timesteps more often. The
table has the lateness of samples in which both views have noise; that of half-clean samples is 2. The coarse error is
the squared error of the prediction after averaging over 4 x 4 latent pixels. All errors are mean squared errors.

| | |
|---|---|
"""
    text += "".join(f"| {label} | {value} |\n" for label, value in rows.items())
    if start:
        text += f"\n## The initial weights of this UNet: {start.name}\n\n{_history(start)}"
    (folder / NAME).write_text(text)


def _command(name: str, start: Path | None, done: int) -> str:
    options = [f"--start {start}"] * bool(start) + [f"--done {done}"] * bool(done)
    return " ".join(["python recipes/make.py", name, *options])


def _phases_after(done: int, phases: Sequence[denoiser.Phase]) -> list[denoiser.Phase]:
    """Return the phases that end after step `done`."""
    ends = accumulate(phase.steps for phase in phases)
    return [phase for phase, end in zip(phases, ends, strict=True) if end > done]


def _history(start: Path) -> str:
    """Return the tables in the card of the base `start`: its own, and those of earlier bases."""
    card = (open_base(str(start)).configs / NAME).read_text()
    return card[card.index("| | |") :]


def _autoencoder(work: Path, start: Path | None) -> str:
    if start:
        return f"that of {start.name}"
    phases = [f"{p.steps:,} steps on {'patches' if p.patches else 'whole pairs'}" for p in autoencoder.PHASES]
    metrics = _read_log(work / "grain.jsonl")[-1]
    return (
        f"factor {autoencoder.FACTOR}, {autoencoder.CHANNELS} whitened channels; {', then '.join(phases)}, then "
        f"{grain.PHASE.steps:,} of the decoder alone, to reproduce photographic grain; on eyes not used for training "
        f"{metrics['psnr']:.2f} dB, vessel Dice {metrics['vessel_dice_cf']:.2f} (CF), "
        f"{metrics['vessel_dice_fa']:.2f} (FA)"
    )


def _duration(seconds: float) -> str:
    return f"{seconds / 3600:.1f} h" if seconds > 3600 else f"{seconds / 60:.1f} min"


def _millions_of_parameters(unet: Path) -> float:
    return sum(path.stat().st_size for path in unet.glob("*.safetensors")) / 2 / 1e6  # fp16


def _read_log(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def _machine() -> str:
    if torch.cuda.is_available():
        return torch.cuda.get_device_name()
    return f"{torch.get_num_threads()} cores of {platform.processor() or platform.machine()}, no GPU"
