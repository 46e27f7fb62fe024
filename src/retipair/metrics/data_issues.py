"""Find likely errors in a data set before training: swapped, flipped, misregistered, clipped or duplicate pairs."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from retipair.metrics.memorisation import COPY, Nearest, best_over_shifts
from retipair.metrics.pair_metrics import PairMetrics

_GREY = 4.0
"""Chroma below which a view counts as grey, in grey levels. Colour photographs have 40 or more, angiograms 0."""
_MIN_WIDE_TO_THIN = 0.75
"""Minimum ratio, in a CF, of the density of medium and wide vessels to the density of thin vessels.

The ratio is .89 or more in seven real CF. If the FA of the same pairs are used as the CF, it is .62 or less.
"""
_MAX_SHIFT_PX = 3.0
"""Maximum shift of the FA relative to the CF, px in a view 512 px wide; about the accuracy of hand-placed landmarks."""
_UNRELATED = 0.15
"""Minimum vesselness correlation of a pair. Views of two different eyes are below it; real pairs reach .40."""
_CLIPPED = 0.02
"""Maximum fraction of the channel values in the field of view that are 0 or 255."""
_MIN_FLIP_GAIN = 0.10
"""Minimum increase of the correlation of the vessel descriptors by a flip of the FA, for the flip to be reported."""
_FLIPS = {
    "mirrored left to right": lambda fa: fa[:, ::-1],
    "upside down": lambda fa: fa[::-1],
    "rotated by 180 degrees": lambda fa: fa[::-1, ::-1],
}


@dataclass(frozen=True)
class DataIssue:
    """A likely error in a pair. id: the id of the pair. kind: the kind of error. text: a description for the user."""

    id: str
    kind: str
    text: str


def find_issues(id: str, metrics: PairMetrics, colour: bool = True) -> list[DataIssue]:
    """Return the likely errors in one pair according to its metrics, most serious first.

    colour: whether the modality of the first view has colour; if not, a grey CF is no error.
    """
    values, issues = metrics.values, []
    if colour and values["cf.chroma"] < _GREY and (values["fa.chroma"] > _GREY or _has_bright_vessels(values)):
        issues.append(DataIssue(id, "swapped", "the CF has no colour: are the views swapped?"))
    elif values["fa.chroma"] > _GREY:
        issues.append(DataIssue(id, "colour in FA", f"the FA has colour: chroma {values['fa.chroma']:.0f} grey levels"))
    if flip := _best_flip(metrics):
        issues.append(DataIssue(id, "turned", f"the FA matches the CF better {flip}"))
    elif values["consistency.correlation"] < _UNRELATED:
        text = f"consistency (vesselness correlation) {values['consistency.correlation']:.2f}: two different eyes?"
        issues.append(DataIssue(id, "unrelated", text))
    elif values["consistency.shift_px"] > _MAX_SHIFT_PX:
        text = f"the FA is shifted by {values['consistency.shift_px']:.1f} px (at a width of 512 px) relative to the CF"
        issues.append(DataIssue(id, "apart", text))
    for view in ("cf", "fa"):
        if values[f"{view}.clipped"] > _CLIPPED:
            text = f"{values[f'{view}.clipped']:.0%} of the values in the {view.upper()} are 0 or 255"
            issues.append(DataIssue(id, "clipped", text))
    return issues


def _has_bright_vessels(values: Mapping[str, float]) -> bool:
    """Return whether the vessels in a grey CF are bright, so that the image is probably an FA.

    The segmentation expects dark vessels in a CF. If the vessels are bright, it finds the gaps between vessels instead,
    and most of these are as narrow as thin vessels. In a red-free CF, which is grey too, the vessels are dark.
    """
    thin, medium, wide = (values[f"cf.vessels.density_{calibre}"] for calibre in ("thin", "medium", "wide"))
    return medium + wide < _MIN_WIDE_TO_THIN * thin


def _best_flip(metrics: PairMetrics) -> str | None:
    """Return the name of the flip with which the FA matches the CF clearly better than without a flip, or None."""
    cf, fa = metrics.descriptors
    unchanged = best_over_shifts(fa, cf)
    fits = {name: best_over_shifts(np.ascontiguousarray(flip(fa)), cf) for name, flip in _FLIPS.items()}
    best = max(fits, key=lambda name: fits[name])
    return best if fits[best] > unchanged + _MIN_FLIP_GAIN else None


def find_duplicate_eyes(ids: Sequence[str], splits: Sequence[str], nearest: Sequence[Nearest]) -> list[DataIssue]:
    """Return an issue for pairs that probably show one eye under different ids of patient or eye.

    If two pairs are the nearest of each other, only one of them gets an issue. The issue says if the two are in
    different splits: a model may then be validated or tested on an eye it was trained on.

    ids, splits: the id and the split of each of n pairs.
    nearest: for each of the n pairs, the most similar pair of another patient or eye (see `memorisation.nearest`).
    """
    issues = []
    for index, other in enumerate(nearest):
        reverse = nearest[other.index]
        if other.similarity < COPY or (index > other.index and reverse.index == index and reverse.similarity >= COPY):
            continue  # if two pairs are the nearest of each other, only one of them is reported
        here, there = splits[index], splits[other.index]
        where = f", in another split ({here} and {there})" if here != there else ""
        text = f"same eye as {ids[other.index]} (similarity {other.similarity:.2f}) under another name{where}"
        issues.append(DataIssue(ids[index], "same eye", text))
    return issues
