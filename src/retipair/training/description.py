"""Describe an adapter: the metadata that are saved with it, which generation needs."""

from collections.abc import Sequence

from retipair.data.dataset import PairRecord, load_views
from retipair.data.selection import evenly_spaced_indices
from retipair.models.conditioning import size_ids_for
from retipair.models.lora import AdapterMetadata
from retipair.models.trained_views import TrainedViews
from retipair.training.plan import Data, Plan
from retipair.vision.appearance import Appearance, appearance, mean_appearance
from retipair.vision.field_of_view import field_of_view

_MAX_MEASURED = 16
"""The maximum number of training pairs on which the appearance of the views is measured."""


def describe_adapter(plan: Plan, data: Data, initial_sha256: str | None = None) -> AdapterMetadata:
    """Return the metadata that are saved with the adapter, for step 0.

    initial_sha256: the hash of the adapter from which the training started, or None.
    """
    config = plan.config
    return AdapterMetadata(
        system=plan.base.family.name,
        layout=plan.layout.name,
        view_size=plan.layout.view_size,
        base=plan.base.name,
        base_sha256=plan.base.fingerprint(),
        rank=config.unet_lora_rank,
        alpha=config.unet_lora_alpha,
        targets=config.lora_targets,
        dora=config.dora,
        rslora=config.rslora,
        prompts=data.prompts(config.prompt),
        prompt_dropout=config.prompt_dropout,
        size_ids=size_ids_for(plan.base, plan.layout.joint_size),
        data_sha256=data.sha256,
        step=0,
        initial_sha256=initial_sha256,
        views=TrainedViews(
            half_clean_fraction=config.half_clean_fraction,
            appearance=measure_appearance(data.train, plan.layout.view_size),
        ),
        **data.modalities.recorded,
    )


def measure_appearance(entries: Sequence[PairRecord], size: int) -> dict[str, Appearance]:
    """Return the mean appearance of the CF and of the FA of evenly spaced pairs, with views of `size` px."""
    measured: dict[str, list[Appearance]] = {"cf": [], "fa": []}
    for index in evenly_spaced_indices(len(entries), _MAX_MEASURED):
        for name, view in zip(measured, load_views(entries[index], size), strict=True):
            field = field_of_view(view)
            if field.any():
                measured[name].append(appearance(view, field))
    return {name: mean_appearance(views) for name, views in measured.items() if views}
