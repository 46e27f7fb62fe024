"""Read facts about the training views of a base and an adapter, for generating one view from the other."""

from dataclasses import dataclass, field

from retipair.models.base import Base
from retipair.runtime.atomic_io import read_json
from retipair.runtime.errors import DamagedError
from retipair.runtime.schema import from_values
from retipair.vision.appearance import Appearance

NAME = "retipair.json"
"""The file with the `TrainedViews` of a base, in its folder. Only the bases that ship with the package have it."""
_CHANNELS = {"cf": 3, "fa": 1}


@dataclass(frozen=True, kw_only=True)
class TrainedViews:
    """Facts about the views in a training.

    half_clean_fraction: the fraction of *half-clean* samples, in which one view had no noise.
    appearance: the mean appearance of the CFs ("cf") and of the FAs ("fa"). An unknown appearance is left out.
    """

    half_clean_fraction: float = 0.0
    appearance: dict[str, Appearance] = field(default_factory=dict)

    @property
    def is_valid(self) -> bool:
        """Whether each statistic of the views has one value for each channel."""
        return all(
            len(values) == _CHANNELS.get(view)
            for view, seen in self.appearance.items()
            for values in (seen.mean, seen.shading, seen.contrast)
        )


def trained_views_of(base: Base, adapter: TrainedViews | None, as_base: bool = True) -> TrainedViews:
    """Return the facts about the training views of a base with an adapter.

    The appearance is that of the base if it is known, because the base was trained much longer (docs/one_view.md).
    The half-clean fraction is the larger of the two, so it is above 0 if either training had half-clean samples.

    adapter: the facts in the adapter's metadata; None if there is no adapter or its metadata has no such facts.
    as_base: whether the adapter was trained on CF and FA, as the base was; if not, the appearance is its own.
    Raises UserError, naming the file, if the record of the base is damaged.
    """
    path = base.configs / NAME
    recorded = base.source_kind == "folder" and path.is_file()
    of_base = from_values(TrainedViews, read_json(path), str(path)) if recorded else TrainedViews()
    if not of_base.is_valid:
        raise DamagedError(path, "its appearance is damaged; restore the file")
    of_adapter = adapter or TrainedViews()
    return TrainedViews(
        half_clean_fraction=max(of_base.half_clean_fraction, of_adapter.half_clean_fraction),
        appearance=(as_base and of_base.appearance) or of_adapter.appearance,
    )
