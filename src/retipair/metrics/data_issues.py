"""What is wrong with a pair or a set of them: found before anybody trains on it."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from retipair.metrics.memorisation import COPY, Nearest, best_over_shifts
from retipair.metrics.pair_metrics import PairMetrics

_GREY = 4.0
"""Chroma, grey levels: a photograph in colour has 40 and more, an angiogram none."""
_GAPS = 0.75
"""Medium and wide vessels for each thin one: seven real CF have .89 and more, their FA in their place .62 at most."""
_APART_PX = 3.0
"""px at 512: landmarks placed by hand are no better, and training learns what lies closer as a blur."""
_UNRELATED = 0.15
"""Correlation: pairs of two eyes stay below, pairs of one reach .40."""
_CLIPPED = 0.02
"""Share of a field's pixels."""
_TURNED_MORE = 0.10
"""By how much the FA, turned, must fit better than as it is."""
_TURNS = {
    "mirrored left to right": lambda fa: fa[:, ::-1],
    "upside down": lambda fa: fa[::-1],
    "turned by 180 degrees": lambda fa: fa[::-1, ::-1],
}


@dataclass(frozen=True)
class DataIssue:
    """Something to look at: of which pair (its id), what, and what else it concerns."""

    id: str
    kind: str
    text: str


def find_issues(id: str, figures: PairMetrics) -> list[DataIssue]:
    """What one pair's figures say against it, the gravest first."""
    values, found = figures.values, []
    if values["cf.chroma"] < _GREY and (values["fa.chroma"] > _GREY or _shows_gaps(values)):
        found.append(DataIssue(id, "swapped", "the CF has no colour: are the views swapped?"))
    elif values["fa.chroma"] > _GREY:
        found.append(DataIssue(id, "colour in FA", f"the FA has colour, {values['fa.chroma']:.0f} grey levels of it"))
    if turn := _turn_of(figures):
        found.append(DataIssue(id, "turned", f"the FA fits better {turn}"))
    elif values["consistency.correlation"] < _UNRELATED:
        text = f"consistency (vesselness correlation) {values['consistency.correlation']:.2f}: two different eyes?"
        found.append(DataIssue(id, "unrelated", text))
    elif values["consistency.shift_px"] > _APART_PX:
        found.append(DataIssue(id, "apart", f"the FA lies {values['consistency.shift_px']:.1f} px beside the CF"))
    for view in ("cf", "fa"):
        if values[f"{view}.clipped"] > _CLIPPED:
            text = f"{values[f'{view}.clipped']:.0%} of the {view.upper()} is black or white"
            found.append(DataIssue(id, "clipped", text))
    return found


def _shows_gaps(values: Mapping[str, float]) -> bool:
    """Whether the CF's vessels are bright, so that the gaps between them are found; a red-free CF's are dark."""
    thin, medium, wide = (values[f"cf.vessels.density_{calibre}"] for calibre in ("thin", "medium", "wide"))
    return medium + wide < _GAPS * thin


def _turn_of(figures: PairMetrics) -> str | None:
    """How the FA's vessels would have to be turned to lie on the CF's, where that is plainly not as they are."""
    cf, fa = figures.prints
    as_it_is = best_over_shifts(fa, cf)
    fits = {name: best_over_shifts(np.ascontiguousarray(turn(fa)), cf) for name, turn in _TURNS.items()}
    best = max(fits, key=lambda name: fits[name])
    return best if fits[best] > as_it_is + _TURNED_MORE else None


def find_duplicate_eyes(ids: Sequence[str], splits: Sequence[str], most_like: Sequence[Nearest]) -> list[DataIssue]:
    """Pairs of one eye under two names: on two sides of the split, validation would be on eyes that were trained on.

    most_like (n): the pair of another eye that each is most like (memorisation.nearest).
    """
    found = []
    for here, other in enumerate(most_like):
        back = most_like[other.index]
        if other.likeness < COPY or (here > other.index and back.index == here and back.likeness >= COPY):
            continue  # said once of two that are each other's
        sides = f"{splits[here]} and {splits[other.index]}"
        side = f", on two sides of the split ({sides})" if splits[here] != splits[other.index] else ""
        text = f"shows the eye of {ids[other.index]} (likeness {other.likeness:.2f}) under another name{side}"
        found.append(DataIssue(ids[here], "same eye", text))
    return found
