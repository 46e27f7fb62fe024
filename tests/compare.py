"""What is in folders, to compare."""

from pathlib import Path

import torch
from safetensors.torch import load_file


def files(folder: Path) -> set[str]:
    """The names of all files in it, however deep."""
    return {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}


def contents(folder: Path) -> dict[str, bytes]:
    return {name: (folder / name).read_bytes() for name in files(folder)}


def adapter(run: Path, step: int) -> dict[str, torch.Tensor]:
    """The tensors of a run's checkpoint."""
    return load_file(run / f"latest_checkpoints/step_{step:06d}/unet_lora/adapter_model.safetensors")


def same(first: dict[str, torch.Tensor], second: dict[str, torch.Tensor]) -> bool:
    """Whether all tensors are equal to the bit."""
    return set(first) == set(second) and all(torch.equal(first[name], second[name]) for name in first)
