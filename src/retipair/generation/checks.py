"""Check the settings of a generation, before any file is read."""

import re

from retipair.config import MAX_AMOUNT, GenerateConfig
from retipair.generation.modes import MODES, GenerationMode, guidance_of
from retipair.runtime.errors import SettingError, UserError
from retipair.runtime.setting_checks import check_folder_name, check_size

MAX_PAIR_GUIDANCE = 20
"""Largest --pair_guidance. Above it, the amplified difference between joint and separate predictions dominates."""


def shard_of(config: GenerateConfig) -> tuple[int, int]:
    """Return --shard I/N as (I, N); (1, 1) without it. Raises SettingError for any other text."""
    if config.shard is None:
        return 1, 1
    match = re.fullmatch(r"(\d{1,6})/(\d{1,6})", config.shard, re.ASCII)
    part, parts = map(int, match.groups()) if match else (0, 0)
    if not 1 <= part <= parts:
        raise SettingError("shard", config.shard, "must be I/N with 1 <= I <= N, such as 2/8")
    return part, parts


def check_generation(config: GenerateConfig) -> None:
    """Raise UserError for settings that contradict each other or are out of range."""
    for name in ("amount", "steps", "batch_size", "max_tries", "per_view", "best_of"):
        if (value := getattr(config, name)) is not None and value < 1:
            raise SettingError(name, value, "must be at least 1")
    if config.amount is not None and config.amount > MAX_AMOUNT:
        raise SettingError("amount", config.amount, f"must be at most {MAX_AMOUNT:,}")
    shard_of(config)
    if not 0 < config.strength <= 1:
        raise SettingError("strength", config.strength, "must be above 0 and at most 1")
    mode = MODES[config.mode]
    varies_pairs = mode.varies_pairs
    if not varies_pairs and config.strength != GenerateConfig.strength:
        raise SettingError("strength", config.strength, "only for --mode from_data; add that, or omit --strength")
    if varies_pairs and int(config.steps * config.strength) < 1:
        raise UserError(
            f"--strength {config.strength} of --steps {config.steps} gives less than one step; raise one of them"
        )
    for name in ("min_consistency", "max_copy"):
        if (value := getattr(config, name)) is not None and not -1 <= value <= 1:
            raise SettingError(name, value, "must be from -1 to 1")
    if config.record_source and mode.name == "noise":
        raise SettingError("record_source", None, "not for --mode noise, in which pairs have no source")
    if config.max_copy is not None and mode.name != "noise":
        raise SettingError("max_copy", None, f"only for --mode noise; --mode {mode.name} shows given eyes on purpose")
    _check_given(config, mode)
    if not config.guidance_scale >= 1:
        raise SettingError("guidance_scale", config.guidance_scale, "must be at least 1 (1: no guidance)")
    scale = guidance_of(config).pair_scale
    if not 1 <= scale <= MAX_PAIR_GUIDANCE:
        raise SettingError("pair_guidance", scale, f"must be from 1 (no guidance) to {MAX_PAIR_GUIDANCE}")
    if config.pair_guidance_from is not None and not 0 <= config.pair_guidance_from <= 1:
        raise SettingError("pair_guidance_from", config.pair_guidance_from, "must be from 0 to 1")
    if config.pair_guidance_from is not None and scale == 1:
        raise SettingError("pair_guidance_from", config.pair_guidance_from, "only with --pair_guidance above 1")
    if not 0 <= config.seed < 2**32:
        raise SettingError("seed", config.seed, "must be at least 0 and below 2^32")
    check_size(config.size)
    check_folder_name("savedir", config.savedir)
    if config.name is not None:
        check_folder_name("name", config.name)
    if config.name is None and (config.out is None or not (uses_path(config) or config.base)):
        raise UserError("pass the run's name with -n, or --checkpoint PATH --out DIR, or --base BASE --out DIR")
    if config.name is None and config.checkpoint == "latest":
        raise SettingError("checkpoint", config.checkpoint, "is a checkpoint of a run; pass the run's name with -n")


def _check_given(config: GenerateConfig, mode: GenerationMode) -> None:
    """Raise UserError for a --per_view that cannot be used, or if a mode with given views has no --data.

    --per_view cannot be used in a mode without given views, or together with --amount.
    """
    if mode.given is None:
        if config.per_view != GenerateConfig.per_view:
            raise SettingError("per_view", config.per_view, "only for --mode cf2fa and --mode fa2cf")
        return
    if config.data is None:
        raise UserError(f"--mode {mode.name} needs --data: an image, a folder of images, or a prepared folder")
    if config.amount is not None and config.per_view != GenerateConfig.per_view:
        raise SettingError("per_view", config.per_view, "pass either --per_view or --amount")


def uses_path(config: GenerateConfig) -> bool:
    """Return whether --checkpoint is the path of an adapter."""
    return config.checkpoint not in ("best", "latest")
