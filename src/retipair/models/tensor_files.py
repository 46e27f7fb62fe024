"""Write .safetensors files with reproducible bytes, and check tensors for NaN and infinity."""

import json
from collections.abc import Iterable, Mapping
from pathlib import Path

import torch
from safetensors.torch import save_file


def write_tensors(path: Path, tensors: Mapping[str, torch.Tensor], metadata: Mapping[str, str]) -> None:
    """Write a .safetensors file. The same tensors and metadata give the same bytes.

    safetensors writes the metadata in random order, so this function sorts it in the header, in place.
    """
    save_file(dict(tensors), path, dict(metadata))
    with path.open("r+b") as file:
        size = int.from_bytes(file.read(8), "little")
        header = json.loads(file.read(size))
        header["__metadata__"] = dict(sorted(metadata.items()))
        text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
        assert len(text) <= size
        file.seek(8)
        file.write(text.ljust(size))


def widen_float8(tensor: torch.Tensor) -> torch.Tensor:
    """Return a tensor of a float8 type in float32, because torch computes little in float8; others are unchanged."""
    return tensor.float() if tensor.is_floating_point() and tensor.itemsize == 1 else tensor


def all_finite(tensors: Iterable[torch.Tensor]) -> bool:
    """Return whether no tensor, of any dtype, contains NaN or infinity."""
    return all(bool(widen_float8(tensor).isfinite().all()) for tensor in tensors)
