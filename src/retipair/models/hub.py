"""Find bases and tokenizer vocabularies in the local cache of the Hugging Face hub, or download them."""

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
    """Return the cached folder of the base with hub id `source`. Download it if it is not cached.

    Raises UserError if the base is neither cached nor can be downloaded, or is neither SDXL nor SD1.5.
    """
    if source.count("/") != 1 or source.startswith((".", "/", "~")):
        raise SettingError("base", source, "no such file or folder")
    try:
        configs = snapshot_download(source, allow_patterns=_CONFIG_FILES, local_files_only=_offline())
        family_of_folder(Path(configs), source)  # raises for other models before the large download
        return Path(DiffusionPipeline.download(source, use_safetensors=True, local_files_only=_offline()))
    except UserError:
        raise
    except Exception as error:  # whatever the error, the base is unavailable
        reason = shorten(str(error).partition("\n")[0] or type(error).__name__, 80, placeholder=" ...")
        raise SettingError(
            "base",
            source,
            f"not in the cache, and cannot be downloaded from the hub ({reason}). Copy its folder to this "
            "machine and pass --base FOLDER; to try the commands, pass --base tiny-sdxl, which ships with the package",
        ) from None


def _offline() -> bool:
    """Return whether HF_HUB_OFFLINE is true, as defined by huggingface_hub. --offline sets this variable."""
    return os.environ.get("HF_HUB_OFFLINE", "").upper() in ("1", "ON", "YES", "TRUE")


def published_vocabulary(source: str, family: ModelFamily, name: str) -> Path:
    """Return the folder that contains the vocabulary published for a model family, for bases without a vocabulary.

    source: the base, for the error message.
    name: the folder name of the tokenizer, "tokenizer" or "tokenizer_2".
    Raises UserError if the vocabulary is neither cached nor can be downloaded.
    """
    repository = family.default_repo
    try:
        files = [
            hf_hub_download(repository, file, subfolder=name, local_files_only=_offline())
            for file in ("vocab.json", "merges.txt")
        ]
        return Path(files[0]).parent
    except Exception:  # whatever the error, the vocabulary is unavailable
        raise SettingError(
            "base",
            source,
            f"no tokenizer vocabulary found, and that of {repository} is neither cached nor can be downloaded; pass "
            f"--tokenizer FOLDER, a folder with {' and '.join(f'{t}/vocab.json' for t in family.tokenizers)}",
        ) from None


def has_only_fp16(folder: Path) -> bool:
    weights = [path.name for path in folder.glob("*.safetensors")]
    return bool(weights) and all(".fp16" in name for name in weights)
