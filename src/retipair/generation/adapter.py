"""Find the adapter of a generation, and the layout and prompts that it was trained with."""

from pathlib import Path
from typing import cast

from retipair.config import DEFAULT_PROMPT, GenerateConfig
from retipair.data.layout import LAYOUTS, Layout, LayoutName
from retipair.generation.checks import uses_path
from retipair.models.base import Base
from retipair.models.families import FAMILIES
from retipair.models.lora import AdapterMetadata, read_adapter_metadata
from retipair.runs.recorded import adapter_at
from retipair.runs.run_dir import Run, find_run
from retipair.runtime.errors import FileError, SettingError, UserError


def find_adapter(config: GenerateConfig, base: Base | None) -> tuple[Run | None, Path | None]:
    """Return the run of --name (None without --name) and the adapter folder that --checkpoint selects.

    If there is no --name, and --checkpoint is not a path either, the adapter is None: the base generates without one.
    """
    systems: list[str] = [base.family.name] if base else list(FAMILIES)
    if not uses_path(config):
        if config.name is None:
            return None, None
        run = find_run(config.results, str(config.name), systems)
        return run, run.adapter_folder(config.checkpoint)
    adapter = adapter_at(Path(config.checkpoint))
    description = read_adapter_metadata(adapter)
    if base is None and description:
        systems = [description.system]
    if config.name is None:
        return None, adapter
    try:
        return find_run(config.results, config.name, systems), adapter
    except UserError:
        raise SettingError(
            "checkpoint",
            config.checkpoint,
            f"there is no run {config.name!r} in {config.results}; omit -n, "
            "and pass the folder for the generated pairs with --out DIR",
        ) from None


def training_layout_and_prompts(
    config: GenerateConfig, base: Base, description: AdapterMetadata | None, adapter: Path | None, warnings: list[str]
) -> tuple[Layout, list[tuple[str, int]]]:
    """Return the layout of the training, and its prompts (text, count) or, if given, --prompt.

    Raises UserError if the settings contradict the training.
    """
    if description is None:
        size, prompt = config.size or base.view_size, config.prompt or DEFAULT_PROMPT
        if adapter:
            warnings.append(f"{adapter} has no retipair metadata; using --size {size} --prompt {prompt!r}")
        return Layout(base.family.layout, size), [(prompt, 1)]
    assert adapter is not None
    if description.system != base.family.name:
        raise FileError(
            adapter,
            f"was trained on {description.system}, but {base.source} is {base.family.name}; pass the base "
            "it was trained on with --base",
        )
    if description.layout not in LAYOUTS:
        raise FileError(adapter, f"has an unknown layout {description.layout!r}; use another checkpoint")
    if config.size not in (None, description.view_size):
        raise SettingError("size", config.size, f"this adapter was trained at {description.view_size}; omit --size")
    if config.guidance_scale > 1 and not description.prompt_dropout:
        warnings.append("this adapter was trained without --prompt_dropout; --guidance_scale above 1 may harm quality")
    prompts = [(config.prompt, 1)] if config.prompt is not None else description.prompts
    return Layout(cast(LayoutName, description.layout), description.view_size), prompts
