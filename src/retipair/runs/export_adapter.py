"""`retipair export adapter RUN OUT`: write a trained adapter in the format of another program."""

from collections.abc import Mapping
from functools import partial
from pathlib import Path

from retipair.config import ExportAdapterConfig
from retipair.config.adapters import AdapterFormat
from retipair.models.base import Base, open_base
from retipair.models.empty import empty_unet
from retipair.models.lora import as_file_metadata, read_adapter_metadata, read_fitting_lora
from retipair.models.lora_files import write_diffusers, write_kohya, write_peft
from retipair.models.merged import write_merged
from retipair.runs.recorded import adapter_at, adapter_warnings, recorded_base
from retipair.runs.run_dir import run_around
from retipair.runtime.atomic_io import atomic_write_by, atomic_write_dir, check_folder_place
from retipair.runtime.console import console
from retipair.runtime.errors import FileError, OccupiedError, SettingError, printable

_NEXT: Mapping[AdapterFormat, str] = {
    "kohya": "copy it into the folder models/loras of ComfyUI",
    "diffusers": 'pipeline.load_lora_weights("{out}")',
    "peft": 'PeftModel.from_pretrained(pipeline.unet, "{out}")',
    "merged": "copy it into the folder models/checkpoints of ComfyUI",
}


def export_adapter(config: ExportAdapterConfig) -> Path:
    """Write the adapter of a run, or another adapter, to OUT in the format `--to`, and return OUT.

    Raises UserError if the adapter or its base cannot be read, if they do not fit each other, if the format cannot hold
    the adapter, or if OUT exists.
    """
    # Check
    _check_out(config)
    adapter = adapter_at(config.adapter, config.checkpoint)
    description = read_adapter_metadata(adapter)
    base = open_base(config.base) if config.base else recorded_base(run_around(adapter), description, adapter, None)
    if description is not None and description.system != base.family.name:
        raise FileError(adapter, f"was trained on {description.system}, but {base.source} is {base.family.name}")
    for warning in adapter_warnings(adapter, description, base) if description else []:
        console.print(f"warning: {printable(warning)}")

    # Write
    _write(config, base, adapter, as_file_metadata(description))
    print(f"{config.out}: {_NEXT[config.to].format(out=config.out)}")
    return config.out


def _write(config: ExportAdapterConfig, base: Base, adapter: Path, metadata: Mapping[str, str]) -> None:
    if config.to == "merged":
        atomic_write_by(partial(write_merged, base=base, adapter=adapter, metadata=metadata), config.out)
        return
    lora = read_fitting_lora(adapter, empty_unet(base), base)
    if config.to == "kohya" and lora.config.use_dora:
        raise SettingError(
            "to", config.to, f"{adapter} is a DoRA, which programs read in different ways; use --to merged"
        )
    if config.to == "peft":
        atomic_write_dir(config.out, partial(write_peft, lora=lora, metadata=metadata))
        return
    write = write_kohya if config.to == "kohya" else write_diffusers
    atomic_write_by(partial(write, lora=lora, base=base, metadata=metadata), config.out)


def _check_out(config: ExportAdapterConfig) -> None:
    if config.to != "peft" and config.out.suffix != ".safetensors":
        raise SettingError("out", config.out, "must end with .safetensors")
    if config.out.exists():
        raise OccupiedError(config.out, "exists; choose another OUT")
    check_folder_place(config.out if config.to == "peft" else config.out.parent)
