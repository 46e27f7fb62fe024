"""Start a training from an existing adapter (`--init_adapter`) instead of an untrained one."""

from pathlib import Path

from retipair.models.empty import empty_unet
from retipair.models.lora import (
    UNet,
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


def check_initial_adapter(plan: Plan) -> list[str]:
    """Raise UserError if the run cannot start from --init_adapter. Return a warning if it was trained on another base.

    No weights of the base are loaded.
    """
    path = _initial_adapter(plan)
    if path is None:
        return []
    lora = read_lora(path, empty_unet(plan.base), plan.base)
    if (given := settings_of(lora)) != adapter_settings(plan.config):
        raise SettingError("init_adapter", path, f"was trained with other settings; pass {_flags(*given)}")
    unet = empty_unet(plan.base)
    add_adapter(unet, adapter_config(plan.config))
    check_fits(path, unet, lora, plan.base)
    description = read_adapter_metadata(path)
    return base_warnings(description, plan.base) if description else []


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


def _flags(rank: int, alpha: float, targets: str, dora: bool, rslora: bool) -> str:
    """Return the flags of `retipair train` for an adapter with these `adapter_settings`."""
    text = f"--unet_lora_rank {rank} --unet_lora_alpha {alpha:g} --lora_targets {targets}"
    return text + " --dora" * dora + " --rslora" * rslora
