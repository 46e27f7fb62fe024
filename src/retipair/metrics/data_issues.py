"""Find likely errors in a data set before training: swapped, flipped, misregistered, clipped or duplicate pairs."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from retipair.metrics.memorisation import COPY, Nearest, best_over_shifts
from retipair.metrics.pair_metrics import PairMetrics

_GREY = 4.0
"""Chroma below which a view is grey, grey levels: colour photographs have 40 or more, angiograms 0."""
_MIN_WIDE_TO_THIN = 0.75
"""Minimum ratio of medium and wide vessels to thin ones in a CF.

Seven real CF have .89 or more; their FA, if used as the CF, have .62 or less.
"""
_MAX_SHIFT_PX = 3.0
"""px at 512: the accuracy of hand-placed landmarks. A smaller shift only blurs what the model learns."""
_UNRELATED = 0.15
"""Correlation that views of two different eyes do not reach; views of one eye reach .40."""
_CLIPPED = 0.02
"""Maximum fraction of black or white pixels in the field of view."""
_MIN_FLIP_GAIN = 0.10
"""Minimum increase of the correlation by a flip of the FA."""
_FLIPS = {
    "mirrored left to right": lambda fa: fa[:, ::-1],
    "upside down": lambda fa: fa[::-1],
    "rotated by 180 degrees": lambda fa: fa[::-1, ::-1],
}


@dataclass(frozen=True)
class DataIssue:
    """A likely error in the pair `id`: its kind, and a sentence for the user."""

    id: str
    kind: str
    text: str


def find_issues(id: str, metrics: PairMetrics) -> list[DataIssue]:
    """Return the issues that the metrics of one pair indicate, the most serious first."""
    values, issues = metrics.values, []
    if values["cf.chroma"] < _GREY and (values["fa.chroma"] > _GREY or _shows_gaps(values)):
        issues.append(DataIssue(id, "swapped", "the CF has no colour: are the views swapped?"))
    elif values["fa.chroma"] > _GREY:
        issues.append(DataIssue(id, "colour in FA", f"the FA has colour: chroma {values['fa.chroma']:.0f} grey levels"))
    if flip := _best_flip(metrics):
        issues.append(DataIssue(id, "turned", f"the FA matches the CF better {flip}"))
    elif values["consistency.correlation"] < _UNRELATED:
        text = f"consistency (vesselness correlation) {values['consistency.correlation']:.2f}: two different eyes?"
        issues.append(DataIssue(id, "unrelated", text))
    elif values["consistency.shift_px"] > _MAX_SHIFT_PX:
        issues.append(DataIssue(id, "apart", f"the FA is shifted by {values['consistency.shift_px']:.1f} px"))
    for view in ("cf", "fa"):
        if values[f"{view}.clipped"] > _CLIPPED:
            text = f"{values[f'{view}.clipped']:.0%} of the {view.upper()} is black or white"
            issues.append(DataIssue(id, "clipped", text))
    return issues


def _shows_gaps(values: Mapping[str, float]) -> bool:
    """Return True if the CF's vessels are bright, as in an FA; those of a red-free CF are dark.

    The segmentation expects the vessels of a CF to be dark. If they are bright, it finds the gaps between them, which
    count as thin vessels.
    """
    thin, medium, wide = (values[f"cf.vessels.density_{calibre}"] for calibre in ("thin", "medium", "wide"))
    return medium + wide < _MIN_WIDE_TO_THIN * thin


def _best_flip(metrics: PairMetrics) -> str | None:
    """Return the flip of the FA that fits the CF clearly better than the unchanged FA, or None."""
    cf, fa = metrics.descriptors
    unchanged = best_over_shifts(fa, cf)
    fits = {name: best_over_shifts(np.ascontiguousarray(flip(fa)), cf) for name, flip in _FLIPS.items()}
    best = max(fits, key=lambda name: fits[name])
    return best if fits[best] > unchanged + _MIN_FLIP_GAIN else None


def find_duplicate_eyes(ids: Sequence[str], splits: Sequence[str], nearest: Sequence[Nearest]) -> list[DataIssue]:
    """Return the pairs that show one eye under two names. If their splits differ, validation uses a training eye.

    nearest (n): for each pair the most similar pair of another eye, from `memorisation.nearest`.
    """
    issues = []
    for index, other in enumerate(nearest):
        reverse = nearest[other.index]
        if other.similarity < COPY or (index > other.index and reverse.index == index and reverse.similarity >= COPY):
            continue  # mutual nearest neighbours are reported once
        here, there = splits[index], splits[other.index]
        where = f", in another split ({here} and {there})" if here != there else ""
        text = f"same eye as {ids[other.index]} (similarity {other.similarity:.2f}) under another name{where}"
        issues.append(DataIssue(ids[index], "same eye", text))
    return issues
