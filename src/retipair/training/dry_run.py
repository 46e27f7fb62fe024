"""Print the resolved settings of a run, for `train --dry_run`."""

from collections import Counter
from collections.abc import Sequence

from retipair.config import TrainConfig
from retipair.data.dataset import read_dataset
from retipair.data.manifest import has_manifest
from retipair.models.captions import caption_warnings
from retipair.models.memory import count_step
from retipair.preparation.from_dataset import raw_captions
from retipair.runtime.console import console
from retipair.runtime.errors import printable
from retipair.runtime.profiling import GIB
from retipair.runtime.schema import to_values
from retipair.training.plan import Plan, read_pairs, samples_text, view_size_on_disk, views_text, with_prompt


def print_plan(plan: Plan, warnings: Sequence[str] = ()) -> None:
    """Print what --dry_run shows: first the values that follow from the settings, then all settings."""
    if plan.config.data and has_manifest(plan.config.data):
        plan = with_prompt(plan, read_dataset(plan.config.data)[0].modalities)
    memory = plan.memory(plan.strategy)
    phases = ", ".join(f"{phase} {needed / GIB:.2f}" for phase, needed in memory.items())
    exists = (plan.folder / "config.json").is_file()
    size = plan.layout.view_size
    pairs, captions, on_disk = _described_data(plan.config, size)
    warnings = [*plan.base.warnings, *warnings, *caption_warnings(plan.base, captions)]
    facts = {
        "run": f"{plan.folder}{' (exists: --resume continues it)' if exists else ''}",
        "pairs": pairs,
        "views": views_text(size, on_disk),
        "samples": samples_text(plan.config),
        "system": plan.base.family.name,
        "prediction": plan.base.prediction,
        "layout": f"{plan.layout.name}, joint image {plan.layout.joint_size[1]}x{plan.layout.joint_size[0]}",
        "latent": str([plan.config.batch_size, *plan.latent_shape]),
        "trainable parameters": f"{count_step(plan.work, plan.strategy, backward=True).adapter:,}",
        "memory (estimate)": f"{max(memory.values()) / GIB:.2f} GiB at most, with {plan.strategy.name} ({phases})",
    }
    reason = f" ({plan.precision_reason})" if plan.precision_reason else ""
    dtype = str(plan.dtype).removeprefix("torch.")
    resolved = {"size": size, "device": plan.device, "precision": f"{dtype}{reason}"}
    for name, value in {**to_values(plan.config), **resolved}.items():
        facts.setdefault(name, value)
    for name, value in facts.items():
        print(f"{name:28} {value}")
    for warning in warnings:
        console.print(f"warning: {printable(warning)}")


def _described_data(config: TrainConfig, view_size: int) -> tuple[str, list[tuple[str, str]], int]:
    """Describe --data without preparing raw pairs.

    Returns (text with the numbers of pairs, (id, prompt) of each pair, side of the views on disk in px). The list
    leaves out the test pairs of a prepared folder. For raw pairs, the side is `view_size`.
    """
    assert config.data is not None
    if not has_manifest(config.data):
        raw = raw_captions(config.data)
        count = f"{len(raw)} raw pairs in {config.data}, prepared when training starts"
        return count, [(id, caption or config.prompt) for id, caption in raw], view_size
    entries = read_pairs(config.data, config.reviewed)
    counts = Counter(entry.split for entry in entries)
    count = f"{counts['train']} for training, {counts['val']} for validation, {counts['test']} for testing"
    captions = [(entry.id, entry.caption or config.prompt) for entry in entries if entry.split != "test"]
    return count, captions, view_size_on_disk(entries)
