"""What a base or an adapter learnt about the two views, which decides how it draws one view from the other."""

from dataclasses import dataclass, field

from retipair.models.base import Base
from retipair.runtime.atomic_io import read_json
from retipair.runtime.schema import from_values
from retipair.vision.appearance import Appearance

NAME = "retipair.json"
"""The file with the `TrainedViews` of a base, in its folder. Only the bases that ship with the package have it."""


@dataclass(frozen=True, kw_only=True)
class TrainedViews:
    """Facts about the views in a training.

    half_clean_fraction: the fraction of the samples in which one view had no noise.
    appearance: "cf" and "fa" -> the mean appearance of these views; a view is missing if it is not known.
    """

    half_clean_fraction: float = 0.0
    appearance: dict[str, Appearance] = field(default_factory=dict)


def trained_views_of(base: Base) -> TrainedViews | None:
    """Return what a base recorded about its training, or None, for example for a base from the hub."""
    path = base.configs / NAME
    if base.source_kind != "folder" or not path.is_file():
        return None
    return from_values(TrainedViews, read_json(path), str(path))
