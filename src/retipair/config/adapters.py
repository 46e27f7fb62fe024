"""The settings of `retipair export adapter`."""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import tyro

AdapterFormat = Literal["kohya", "diffusers", "peft", "merged"]


@dataclass(frozen=True, kw_only=True)
class ExportAdapterConfig:
    """Write a trained adapter in the format of another program."""

    adapter: Annotated[tyro.conf.Positional[Path], tyro.conf.arg(metavar="RUN")]
    """Folder of a run, checkpoint or unet_lora folder, or a LoRA file (kohya, diffusers, PEFT)."""
    out: Annotated[tyro.conf.Positional[Path], tyro.conf.arg(metavar="OUT")]
    """File to write, OUT.safetensors; with --to peft, a folder."""
    to: AdapterFormat = "kohya"
    """kohya: LoRA file for ComfyUI, Forge and kohya's sd-scripts.
    diffusers: LoRA file for `load_lora_weights`.
    peft: folder with adapter_config.json.
    merged: the whole base with the adapter merged into its UNet, one file in the original format."""
    checkpoint: Literal["best", "latest"] = "best"
    """Checkpoint of the run."""
    base: str | None = None
    """Base that the adapter was trained on; default: as recorded by the run or the adapter."""
    offline: bool = False
    """Do not use the network; a base given by its hub id must be in the cache."""
