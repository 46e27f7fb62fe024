"""Create networks with random weights, hash weight files, and convert errors of the libraries into UserError."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError

from retipair.models.device import torch_setting
from retipair.models.recognition import read_model_config
from retipair.runtime.errors import SettingError, UserError, is_out_of_memory

_NUM_CHUNKS = 256
"""Number of chunks of a file that are hashed."""
_CHUNK_SIZE = 2**14
"""Bytes of a chunk."""


def hash_samples(digest: Any, path: Path) -> None:
    """Add the size and evenly spaced chunks of a file, including its start and end, to the hash object `digest`."""
    size = path.stat().st_size
    digest.update(f"{size}".encode())
    with path.open("rb") as stream:
        for index in range(_NUM_CHUNKS):
            stream.seek(max(size - _CHUNK_SIZE, 0) * index // (_NUM_CHUNKS - 1))
            digest.update(stream.read(_CHUNK_SIZE))


def random_network(name: str, kind: Any, configs: Path, dtype: torch.dtype, device: str) -> Any:
    """Create a network with random weights on `device`. The seed is fixed, so that all processes get the same weights.

    name: the folder name of the network's config in `configs`. kind: the class of the network.
    """
    default_dtype = torch_setting(dtype, torch.get_default_dtype, torch.set_default_dtype)
    with torch.random.fork_rng(devices=[]), default_dtype, torch.device(device):
        torch.manual_seed(0)
        return from_config(kind, read_model_config(configs, name)).eval()


def from_config(kind: Any, config: dict[str, Any]) -> Any:
    if hasattr(kind, "load_config"):
        return kind.from_config(config)
    return kind(kind.config_class.from_dict(config))


@contextmanager
def naming_errors(source: str) -> Iterator[None]:
    """Convert errors of the libraries for broken weights or configs into a one-line UserError that names `source`."""
    try:
        yield
    except UserError:
        raise
    except (OSError, ValueError, TypeError, LookupError, RuntimeError, SafetensorError) as error:
        if is_out_of_memory(error):
            raise
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise SettingError(
            "base", source, f"cannot be loaded ({reason[:200]}); get it again or choose another"
        ) from error
