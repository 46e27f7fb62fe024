"""Download bases and vocabularies from the Hugging Face hub, or find them in its cache."""

import os
from pathlib import Path
from textwrap import shorten

from diffusers import (
    DiffusionPipeline,
)
from huggingface_hub import hf_hub_download, snapshot_download

from retipair.models.families import ModelFamily
from retipair.models.recognition import family_of_folder
from retipair.runtime.errors import SettingError, UserError

_CONFIG_FILES = ["model_index.json", "*/config.json"]


def download_base(source: str) -> Path:
    """Return the cached folder of a hub id; download it first unless offline. Raises UserError if unavailable."""
    if source.count("/") != 1 or source.startswith((".", "/", "~")):
        raise SettingError("base", source, "no such file or folder")
    try:
        configs = snapshot_download(source, allow_patterns=_CONFIG_FILES, local_files_only=_offline())
        family_of_folder(Path(configs), source)  # refuses other families before downloading many GB
        return Path(DiffusionPipeline.download(source, use_safetensors=True, local_files_only=_offline()))
    except UserError:
        raise
    except Exception as error:  # the hub client raises many types; all mean that the base is unavailable
        reason = shorten(str(error).partition("\n")[0] or type(error).__name__, 80, placeholder=" ...")
        raise SettingError(
            "base",
            source,
            f"not in the cache, and cannot be downloaded from the hub ({reason}). Copy its folder "
            "here and pass --base FOLDER; to try the commands, pass --base tiny-sdxl, which ships with the package",
        ) from None


def _offline() -> bool:
    """Return True if HF_HUB_OFFLINE, which --offline sets, is on; parsed as by huggingface_hub."""
    return os.environ.get("HF_HUB_OFFLINE", "").upper() in ("1", "ON", "YES", "TRUE")


def cached_vocabulary(source: str, family: ModelFamily, name: str) -> Path:
    """Return the folder of the published vocabulary, from the cache or the hub; a .safetensors file contains none."""
    repository = family.default_repo
    try:
        files = [
            hf_hub_download(repository, file, subfolder=name, local_files_only=_offline())
            for file in ("vocab.json", "merges.txt")
        ]
        return Path(files[0]).parent
    except Exception:  # as in `download_base`: any error means that it is unavailable
        raise SettingError(
            "base",
            source,
            f"its tokenizer vocabulary is not in the cache ({repository}); pass --tokenizer "
            f"FOLDER, a folder with {' and '.join(f'{t}/vocab.json' for t in family.tokenizers)}",
        ) from None


def has_only_fp16(folder: Path) -> bool:
    weights = [path.name for path in folder.glob("*.safetensors")]
    return bool(weights) and all(".fp16." in name for name in weights)
