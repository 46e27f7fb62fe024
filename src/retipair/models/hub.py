"""Bases on the Hugging Face hub and in its cache."""

import os
from pathlib import Path
from textwrap import shorten

from diffusers import (
    DiffusionPipeline,
)
from huggingface_hub import hf_hub_download, snapshot_download

from retipair.models.families import ModelFamily
from retipair.models.recognition import family_of_folder
from retipair.runtime.errors import UserError

_CONFIG_FILES = ["model_index.json", "*/config.json"]


def download_base(source: str) -> Path:
    """The folder of a hub id in the cache, downloaded first where there is a network."""
    if source.count("/") != 1 or source.startswith((".", "/", "~")):
        raise UserError(f"--base {source}: no such file or folder")
    try:
        configs = snapshot_download(source, allow_patterns=_CONFIG_FILES, local_files_only=_offline())
        family_of_folder(Path(configs), source)  # before many GB of another family are downloaded
        return Path(DiffusionPipeline.download(source, use_safetensors=True, local_files_only=_offline()))
    except UserError:
        raise
    except Exception as error:  # the hub client raises a dozen kinds; each means the same to the user
        reason = shorten(str(error).partition("\n")[0] or type(error).__name__, 80, placeholder=" ...")
        raise UserError(
            f"--base {source}: not in the cache, and not to be had from the hub ({reason}). Copy its folder here and "
            "pass --base FOLDER; to try the commands, pass --base tiny-sdxl, which ships with the package"
        ) from None


def _offline() -> bool:
    """As the hub's own client reads it, and as --offline sets it."""
    return os.environ.get("HF_HUB_OFFLINE", "").upper() in ("1", "ON", "YES", "TRUE")


def cached_vocabulary(source: str, family: ModelFamily, name: str) -> Path:
    """A file has no vocabulary inside: take the published one's folder from the cache, or from the network."""
    repository = family.default_repo
    try:
        files = [
            hf_hub_download(repository, file, subfolder=name, local_files_only=_offline())
            for file in ("vocab.json", "merges.txt")
        ]
        return Path(files[0]).parent
    except Exception:  # as in `download_base`: whatever the hub client raises, the vocabulary is not to be had
        raise UserError(
            f"--base {source}: its tokenizer vocabulary is not in the cache ({repository}); pass --tokenizer "
            f"FOLDER, a folder with {' and '.join(f'{t}/vocab.json' for t in family.tokenizers)}"
        ) from None


def has_only_fp16(folder: Path) -> bool:
    weights = [path.name for path in folder.glob("*.safetensors")]
    return bool(weights) and all(".fp16." in name for name in weights)
