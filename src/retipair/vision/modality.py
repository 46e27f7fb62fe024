"""Define the modalities that the two views of a pair may have, and whether vessels are dark or bright in them.

The views are a CF and an FA by default. Pairs of other modalities keep the names of the two places: `cf` is the first
view and `fa` the second, in folders, file names, manifests and messages.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cache
from typing import Any, Literal, cast, get_args

import numpy as np

Vessels = Literal["dark", "bright"]


@dataclass(frozen=True)
class Modality:
    """A kind of retinal image.

    key: the name in settings and manifests.
    name: the name in prompts and reports, with its article.
    colour: whether the images are in colour; the others are stored with one channel.
    vessels: whether vessels are darker or brighter than their surroundings.
    """

    key: str
    name: str
    colour: bool
    vessels: Vessels

    @property
    def noun(self) -> str:
        """The name without its article."""
        return noun_of(self.name)


def noun_of(name: str) -> str:
    """Return the name of a modality without its article."""
    return name.partition(" ")[2]


MODALITIES = {
    modality.key: modality
    for modality in (
        Modality("cf", "a colour fundus photograph", colour=True, vessels="dark"),
        Modality("red_free", "a red-free photograph", colour=False, vessels="dark"),
        Modality("fa", "a fluorescein angiogram", colour=False, vessels="bright"),
        Modality("autofluorescence", "an autofluorescence image", colour=False, vessels="dark"),
        Modality("octa", "an en face OCT angiogram", colour=False, vessels="bright"),
    )
}


@dataclass(frozen=True)
class Modalities:
    """The modalities of the two views of a pair; `find_modalities` returns them by their keys."""

    first: Modality
    second: Modality

    def __str__(self) -> str:
        usual = Modalities(*(MODALITIES[key] for key in self.keys))
        return " and ".join(self.keys) + ("" if self == usual else f" with {self.second.vessels} vessels")

    @property
    def keys(self) -> tuple[str, str]:
        return self.first.key, self.second.key

    @property
    def dark_vessels(self) -> tuple[bool, bool]:
        """Whether vessels are darker than their surroundings in the first and in the second view."""
        return self.first.vessels == "dark", self.second.vessels == "dark"

    @property
    def prompt(self) -> str:
        """The default prompt of such pairs."""
        return f"{self.first.name} and {self.second.name} of the same eye, side by side"

    @property
    def legend(self) -> str:
        """One sentence that tells what the views are; "" for CF and FA."""
        if self == CF_FA:
            return ""
        parts = (
            f"{place} is {view.name} with {view.vessels} vessels"
            for place, view in (("CF", self.first), ("FA", self.second))
        )
        return f"In these pairs, {' and '.join(parts)}."

    @property
    def recorded(self) -> dict[str, Any]:
        """The optional fields `modalities` and `vessels` of manifests and adapters; None for CF and FA."""
        if self == CF_FA:
            return {"modalities": None, "vessels": None}
        return {"modalities": list(self.keys), "vessels": [self.first.vessels, self.second.vessels]}

    @property
    def hashed(self) -> list[Any]:
        """What hashes of inputs and settings contain of the modalities: nothing for CF and FA."""
        return [] if self == CF_FA else [self.recorded]

    def with_second(self, vessels: Vessels) -> "Modalities":
        """Return the modalities with these vessels in the second view."""
        return replace(self, second=replace(self.second, vessels=vessels))

    def stored(self, first: np.ndarray) -> np.ndarray:
        """Return the first view (H, W, 3) as files store it: one channel (H, W) if its modality has no colour."""
        return first if self.first.colour else first[..., 0]


CF_FA = Modalities(MODALITIES["cf"], MODALITIES["fa"])
RECORDED = tuple(CF_FA.recorded)
"""The names of the fields that `Modalities.recorded` returns."""


def drop_unrecorded(values: dict[str, Any]) -> dict[str, Any]:
    """Return the values without those of RECORDED that are None, since files of earlier versions lack these fields."""
    return {key: value for key, value in values.items() if key not in RECORDED or value is not None}


def find_modalities(keys: Sequence[str] | None, vessels: Sequence[str] | None = None) -> Modalities:
    """Return the modalities with these keys, of the first and of the second view; CF and FA for None.

    vessels: "dark" or "bright" for each view; None: as is usual for the modalities.
    Raises ValueError, with the remedy, for unknown keys, two equal keys, and a second view in colour.
    """
    return _find(CF_FA.keys if keys is None else tuple(keys), None if vessels is None else tuple(vessels))


@cache
def _find(keys: tuple[str, ...], vessels: tuple[str, ...] | None) -> Modalities:
    if len(keys) != 2 or not set(keys) <= set(MODALITIES):
        raise ValueError(f"must be two of {', '.join(MODALITIES)}")
    first, second = (MODALITIES[key] for key in keys)
    if first == second:
        raise ValueError("names one modality twice; a pair has two modalities")
    if second.colour:
        raise ValueError(f"the second view cannot be in colour; name {second.key} first")
    if vessels is not None:
        if len(vessels) != 2 or not set(vessels) <= set(get_args(Vessels)):
            raise ValueError("vessels must be dark or bright in each view")
        first, second = (
            replace(view, vessels=cast("Vessels", seen)) for view, seen in zip((first, second), vessels, strict=True)
        )
    return Modalities(first, second)
