"""Values that several commands share."""

from pathlib import Path
from typing import Literal

from tyro.constructors import PrimitiveConstructorSpec

DEFAULT_BASE = "stabilityai/stable-diffusion-xl-base-1.0"
DEFAULT_PROMPT = "a colour fundus photograph and a fluorescein angiogram of the same eye, side by side"
MAX_AMOUNT = 10_000_000
"""Maximum of --amount."""

Precision = Literal["auto", "fp32", "bf16"]
Memory = Literal["auto", "24", "16", "12", "8"]
SamplerName = Literal["ddpm", "ddim", "dpmpp", "euler"]
SystemName = Literal["sdxl", "sd15"]


def _folders(words: list[str]) -> tuple[Path, ...]:
    if not words:
        raise ValueError("give at least one folder")
    return tuple(map(Path, words))


FOLDERS = PrimitiveConstructorSpec(
    nargs="*",
    metavar="DIR [DIR ...]",
    instance_from_str=_folders,
    is_instance=lambda value: isinstance(value, tuple),
    str_from_instance=lambda value: list(map(str, value)) or ["None"],
)
"""How the command line reads one folder or more; tyro itself would accept the flag without a folder."""
