"""Values that several commands share."""

from typing import Literal

DEFAULT_BASE = "stabilityai/stable-diffusion-xl-base-1.0"
DEFAULT_PROMPT = "a colour fundus photograph and a fluorescein angiogram of the same eye, side by side"
MAX_AMOUNT = 10_000_000
"""Maximum of --amount."""

Precision = Literal["auto", "fp32", "bf16"]
Memory = Literal["auto", "24", "16", "12", "8"]
SamplerName = Literal["ddpm", "ddim", "dpmpp", "euler"]
SystemName = Literal["sdxl", "sd15"]
