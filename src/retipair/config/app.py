"""The settings of `retipair app`."""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import tyro

Language = Literal["auto", "en", "zh"]


@dataclass(frozen=True, kw_only=True)
class AppConfig:
    """Serve a page for a browser on this machine: draw pairs, compare their views, review pairs by keyboard."""

    pairs: Annotated[tyro.conf.Positional[Path | None], tyro.conf.arg(metavar="PAIRS")] = None
    """Prepared or generated folder to look at and to review; another one can be opened in the page."""
    real: Path | None = None
    """Prepared folder of the training pairs: the consistency of each pair is shown beside the range in this
    folder, and copies of its pairs are found."""
    adapter: Path | None = None
    """Adapter to draw with: the folder of a run, a checkpoint or unet_lora folder, or a LoRA file."""
    base: str | None = None
    """Base to which the adapter is applied; default: the base that the adapter was trained on.
    Without --adapter, the base alone draws."""
    port: int = 7860
    """Port of the page on 127.0.0.1, 1024 to 65535."""
    language: Language = "auto"
    """Language of the page: en, zh (Chinese), or auto (the language of the terminal)."""
    device: str = "auto"
    """Device to compute on: auto, cuda, mps or cpu."""
