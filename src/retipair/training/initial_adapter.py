"""Start a training from an existing adapter (`--init_adapter`) instead of an untrained one."""

from math import isclose
from pathlib import Path

from retipair.models.empty import empty_unet
from retipair.models.lora import (
    UNet,
    adapter_sha256,
    add_adapter,
    check_fits,
    read_adapter_metadata,
    read_lora,
    set_adapter,
    settings_of,
)
from retipair.runs.recorded import adapter_at, base_warnings
from retipair.runs.run_dir import Run
from retipair.runtime.errors import SettingError
from retipair.training.plan import Plan, adapter_config, adapter_settings

AdapterSettings = tuple[int, float, str, bool, bool]
"""Rank, alpha, targets, DoRA and rsLoRA, as `adapter_settings` returns them."""


def check_initial_adapter(plan: Plan) -> list[str]:
    """Raise UserError if the run cannot start from --init_adapter. Return warnings if it was trained in another way.

    No weights of the base are loaded.
    """
    path = _initial_adapter(plan)
    if path is None:
        return []
    unet = empty_unet(plan.base)
    lora = read_lora(path, unet, plan.base)
    _check_settings(path, settings_of(lora), adapter_settings(plan.config))
    add_adapter(unet, adapter_config(plan.config))
    check_fits(path, unet, lora, plan.base)
    description = read_adapter_metadata(path)
    if description is None:
        return []
    warnings = base_warnings(description, plan.base)
    trained = (description.layout, description.view_size)
    if trained != (plan.layout.name, plan.layout.view_size):
        warnings.append(f"{path}: was trained with --layout {trained[0]} --size {trained[1]}")
    return warnings


def _check_settings(path: Path, given: AdapterSettings, wanted: AdapterSettings) -> None:
    (rank, alpha, targets, dora, rslora), (_, wanted_alpha, *_) = given, wanted
    if isclose(alpha, wanted_alpha) and (rank, targets, dora, rslora) == (wanted[0], *wanted[2:]):
        return
    flags = f"--unet_lora_rank {rank} --unet_lora_alpha {repr(alpha).removesuffix('.0')} --lora_targets {targets}"
    for name, used, asked in (("--dora", dora, wanted[3]), ("--rslora", rslora, wanted[4])):
        flags += f" {name}" if used else f" and without {name}" if asked else ""
    raise SettingError("init_adapter", path, f"was trained with other settings; start with {flags}")


def initial_sha256(plan: Plan, checkpoint: Path | None) -> str | None:
    """Return the hash of the adapter from which the run starts or, if it is resumed from a checkpoint, has started."""
    if checkpoint is not None:
        description = read_adapter_metadata(checkpoint / "unet_lora")
        return description.initial_sha256 if description else None
    path = _initial_adapter(plan)
    return adapter_sha256(path) if path else None


def set_initial_adapter(plan: Plan, unet: UNet) -> None:
    """Set the weights of the adapter of a UNet to those of --init_adapter, if the run starts from it."""
    if path := _initial_adapter(plan):
        set_adapter(path, unet, read_lora(path, empty_unet(plan.base), plan.base), plan.base)


def _initial_adapter(plan: Plan) -> Path | None:
    """Return the adapter of --init_adapter; None without this flag, and for a run that is resumed from a checkpoint."""
    given = plan.config.init_adapter
    if given is None or (plan.config.resume and Run(plan.folder).checkpoints()):
        return None
    return adapter_at(given)
