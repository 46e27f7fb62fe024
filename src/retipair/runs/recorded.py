"""Find an adapter by a path, and the base that it was trained on, as its run or its metadata record it."""

from pathlib import Path

from retipair.models.base import Base, open_base
from retipair.models.lora import AdapterMetadata
from retipair.models.lora_files import PEFT_WEIGHTS
from retipair.runs.run_dir import Run
from retipair.runtime.errors import FileError, SettingError, UserError


def adapter_at(path: Path, checkpoint: str = "best") -> Path:
    """Return the adapter that a path names: a folder of PEFT (`unet_lora`), or a LoRA file.

    path: the folder of a run or checkpoint, a folder of PEFT or its weights file, or a LoRA file of another program.

    checkpoint: the checkpoint of the run, "best" or "latest".
    Raises UserError if the checkpoint of the run is missing or damaged, and SettingError if `checkpoint` is not "best"
    and the path is no run.
    """
    if (path / "config.json").is_file():
        return Run(path).adapter_folder(checkpoint)
    if checkpoint != "best":
        problem = (
            f"{path} is not the folder of a run, which has several checkpoints; give that folder, or omit the flag"
        )
        raise SettingError("checkpoint", checkpoint, problem)
    if path.name == PEFT_WEIGHTS and (path.parent / "adapter_config.json").is_file():
        return path.parent
    inner = path / "unet_lora"
    return inner if inner.is_dir() else path


def recorded_base(
    run: Run | None, description: AdapterMetadata | None, adapter: Path | None, tokenizer: Path | None
) -> Base:
    """Open the base that the adapter was trained on.

    The path or hub id of the base is read from the config of the run. If `run` is None, the name of the base is read
    from the adapter's metadata, which contain no path.
    """
    if run is not None:
        return open_base(run.read_config().base, tokenizer)
    assert adapter is not None  # without an adapter, `check_generation` requires --base
    if description is None:
        raise FileError(adapter, "does not record the base it was trained on; pass --base")
    try:
        return open_base(description.base, tokenizer)
    except UserError as error:
        raise FileError(adapter, f"was trained on {description.base}; pass its path with --base ({error})") from None


def recorded_tokenizer(run: Run) -> Path | None:
    """Return the folder that was given as --tokenizer in training, or None if none was given or it no longer exists.

    Another tokenizer could split the prompts into different tokens.
    """
    folder = run.read_config().tokenizer if (run.folder / "config.json").is_file() else None
    return folder if folder and folder.is_dir() else None


def adapter_warnings(adapter: Path, description: AdapterMetadata, base: Base) -> list[str]:
    """Return warnings if the adapter is untrained or was trained on another base."""
    warnings = base_warnings(description, base)
    if description.step == 0 and description.initial_sha256 is None:
        warnings.append(
            f"{adapter}: the adapter is untrained (step 0), so the base alone generates the pairs; train longer, or "
            "choose another step with --checkpoint"
        )
    return warnings


def base_warnings(description: AdapterMetadata, base: Base) -> list[str]:
    """Return a list of one warning if an adapter was trained on another base, else an empty list."""
    if base.fingerprint() == description.base_sha256:
        return []
    return [
        f"{base.source}: its weights differ from the base that the adapter was trained on ({description.base}), or "
        "are the same in another file format; pass that base with --base"
    ]
