"""Start a training from an existing adapter (`--init_adapter`) instead of an untrained one."""

from dataclasses import dataclass
from math import isclose
from pathlib import Path

from retipair.models.empty import empty_unet
from retipair.models.lora import (
    adapter_sha256,
    add_adapter,
    check_fits,
    read_adapter_metadata,
    read_tensors,
    settings_of,
    to_lora,
)
from retipair.models.lora_files import Lora
from retipair.runs.recorded import adapter_at, base_warnings
from retipair.runs.run_dir import Run
from retipair.runtime.errors import SettingError
from retipair.training.plan import Plan, adapter_config, adapter_settings

AdapterSettings = tuple[int, float, str, bool, bool]
"""Rank, alpha, targets, DoRA and rsLoRA, as `adapter_settings` returns them."""


@dataclass(frozen=True)
class InitialAdapter:
    """The adapter from which a run starts. It is read once, as another program may replace its file meanwhile.

    warnings: how its training differs from that of the run.
    """

    path: Path
    lora: Lora
    sha256: str
    warnings: list[str]


def read_initial_adapter(plan: Plan) -> InitialAdapter | None:
    """Read and check the adapter of --init_adapter; None without this flag, and for a run that is resumed.

    No weights of the base are loaded. Raises UserError if the run cannot start from the adapter.
    """
    given = plan.config.init_adapter
    if given is None or (plan.config.resume and Run(plan.folder).checkpoints()):
        return None
    path, unet = adapter_at(given), empty_unet(plan.base)
    tensors = read_tensors(path)
    lora = to_lora(path, tensors, unet, plan.base)
    _check_settings(path, settings_of(lora), adapter_settings(plan.config))
    add_adapter(unet, adapter_config(plan.config))
    check_fits(path, unet, lora, plan.base)
    return InitialAdapter(path, lora, adapter_sha256(path, tensors), _warnings(path, plan))


def _warnings(path: Path, plan: Plan) -> list[str]:
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


def initial_sha256(initial: InitialAdapter | None, checkpoint: Path | None) -> str | None:
    """Return the hash of the adapter from which the run starts or, if it is resumed from a checkpoint, has started."""
    if checkpoint is not None:
        description = read_adapter_metadata(checkpoint / "unet_lora")
        return description.initial_sha256 if description else None
    return initial.sha256 if initial else None
