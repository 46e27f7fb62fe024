"""What was measured of two sets of pairs -> scores: means beside their references, distances, copies, doubts."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from typing import Any

import numpy as np
from scipy.stats import bootstrap

from retipair.measuring import MeasuredSet
from retipair.metrics import distribution, memorisation
from retipair.metrics.checks import Doubt, doubts_of, same_eyes
from retipair.metrics.figures import VIEWS
from retipair.metrics.memorisation import Nearest, pair_print
from retipair.metrics.texture import BANDS

CLOSEST = 10
"""Generated pairs that are shown beside the training pair they are most like."""
_RESAMPLES = 2000
_FEWEST_FOR_FLOOR = 4

Scores = dict[str, Any]


@dataclass(frozen=True)
class Sets:
    """What is compared: the real pairs of both sides of the split, and the generated ones, if there are any."""

    real: MeasuredSet
    generated: MeasuredSet | None

    @cached_property
    def train(self) -> MeasuredSet:
        return self.real.of_split("train")

    @cached_property
    def kin(self) -> np.ndarray:
        """How like each real pair's vessels are each other's, (n, n)."""
        prints = _prints(self.real)
        return memorisation.likenesses(prints, prints)

    def named(self) -> dict[str, MeasuredSet]:
        """A column of every table, left out where there are no such pairs."""
        val = self.real.of_split("val")
        columns = {"generated": self.generated, "train": self.train, "val": val}
        return {name: one for name, one in columns.items() if one is not None and one.entries}


def score(sets: Sets) -> Scores:
    """All that hangs on the pairs' figures alone; the keys are those of scores.json."""
    return {
        "pairs": _pairs(sets),
        "consistency": _table(sets, "consistency.", mispaired=True),
        "texture": {view: _table(sets, f"{view}.texture.") for view in VIEWS},
        "colour": {view: _columns(sets, f"{view}.chroma") for view in VIEWS},
        "vessels": {view: _table(sets, f"{view}.vessels.") for view in VIEWS},
        "anatomy": {view: _table(sets, f"{view}.anatomy.") for view in VIEWS},
        "diversity": _diversity(sets),
        "distribution": _distribution(sets),
        "memorisation": _memorisation(sets),
        "spectra": _spectra(sets),
        "doubts": [asdict(doubt) for doubt in _doubts(sets)],
    }


# --- Tables: a mean with its interval, one column a set


def _interval(values: Sequence[float]) -> dict[str, float | int | None] | None:
    """The mean and where it lies with 95 % (percentile bootstrap over pairs; none of fewer than three)."""
    if not values:
        return None
    found: dict[str, float | int | None] = {"mean": float(np.mean(values)), "low": None, "high": None, "n": len(values)}
    if len(values) > 2:
        sampled = bootstrap((values,), np.mean, n_resamples=_RESAMPLES, method="percentile", rng=0)
        found |= {"low": float(sampled.confidence_interval.low), "high": float(sampled.confidence_interval.high)}
    return found


def _columns(sets: Sets, figure: str) -> Scores:
    """The mean of a figure over each set."""
    return {name: _interval([figures.values[figure] for figures in one.figures]) for name, one in sets.named().items()}


def _table(sets: Sets, prefix: str, mispaired: bool = False) -> Scores:
    """Every figure whose name begins so, over each set; mispaired: also of real CFs with other eyes' FAs."""
    names = [name for name in sets.real.figures[0].values if name.startswith(prefix)]
    table: Scores = {}
    for name in names:
        short = name.removeprefix(prefix)
        table[short] = _columns(sets, name)
        if mispaired:
            table[short]["mispaired"] = _interval([getattr(link.mispaired, short) for link in sets.real.links])
    return table


def _pairs(sets: Sets) -> list[Scores]:
    """Every figure of every pair, in the order of the manifests."""
    return [
        {"set": name, "id": entry.id, **figures.values}
        for name, one in sets.named().items()
        for entry, figures in zip(one.entries, one.figures, strict=True)
    ]


def _diversity(sets: Sets) -> Scores:
    """MS-SSIM of pairs of two eyes each: high where a model draws one eye again and again."""
    both = {"generated": sets.generated, "real": sets.real}
    return {
        view: {name: _interval([link.alike[view] for link in one.links]) for name, one in both.items() if one}
        for view in VIEWS
    }


# --- Distances


def _prints(one: MeasuredSet) -> np.ndarray:
    return np.stack([pair_print(figures.prints) for figures in one.figures])


def _rows(one: MeasuredSet) -> np.ndarray:
    return np.stack([figures.features for figures in one.figures])


def _distribution(sets: Sets) -> Scores | None:
    """None where there is nothing to compare, or fewer real pairs than a floor can be found from."""
    real = _rows(sets.real)
    if sets.generated is None or min(len(real), len(sets.generated.entries)) <= distribution.NEIGHBOURS:
        return None
    made = _rows(sets.generated)
    moved = distribution.normalised(made, real).mean(axis=0)
    furthest = sorted(zip(distribution.feature_names(), moved.tolist(), strict=True), key=lambda one: -abs(one[1]))
    return {
        "mmd2": distribution.mmd2(made, real, real),
        "floor": distribution.floor(real),
        **asdict(distribution.manifolds(real, made)),
        "furthest": [{"feature": name, "deviations": far} for name, far in furthest[:CLOSEST]],
    }


def deep_distances(generated: np.ndarray, real: np.ndarray) -> Scores | None:
    """The same distance, and FID, on an image model's features of each view, (n, 2, D) each; None as above."""
    amount = min(len(real), len(generated))
    if amount < _FEWEST_FOR_FLOOR:
        return None
    found: Scores = {"n": amount, "features": real.shape[-1]}
    for at, view in enumerate(VIEWS):
        a, b = generated[:, at], real[:, at]
        found[view] = {
            "mmd2": distribution.mmd2(a, b, b),
            "floor": distribution.floor(b),
            "fid": distribution.frechet(a, b),
        }
    return found


def _memorisation(sets: Sets) -> Scores | None:
    if sets.generated is None or len(sets.train.entries) < 2:
        return None
    eyes = np.array([entry.group for entry in sets.train.entries])
    trained = [index for index, entry in enumerate(sets.real.entries) if entry.split == "train"]
    of_made = memorisation.nearest(memorisation.likenesses(_prints(sets.generated), _prints(sets.train)))
    of_known = memorisation.nearest(sets.kin[np.ix_(trained, trained)], forbidden=eyes[:, None] == eyes[None, :])
    likeness = [one.likeness for one in of_made]
    among = [one.likeness for one in of_known if one.likeness > -1]  # none where all are of one eye
    order = sorted(range(len(of_made)), key=lambda index: -likeness[index])
    return {
        "likeness": {"generated": _interval(likeness), "train": _interval(among)},
        "likenesses": {"generated": likeness, "train": among},
        "ratio": float(np.mean(likeness)) / max(float(np.mean(among)), 1e-9) if among else None,
        "authenticity": memorisation.authenticity(of_made, of_known) if among else None,
        "threshold": memorisation.COPY,
        "copies": [sets.generated.entries[index].id for index in order if likeness[index] >= memorisation.COPY],
        "closest": [_close(sets, index, of_made[index]) for index in order[:CLOSEST]],
    }


def _close(sets: Sets, index: int, found: Nearest) -> Scores:
    assert sets.generated
    return {
        "id": sets.generated.entries[index].id,
        "train_id": sets.train.entries[found.index].id,
        "likeness": found.likeness,
    }


def _spectra(sets: Sets) -> Scores:
    """Mean power in each ring of frequencies, over each set: what blur and noise look like."""
    rows = {name: np.mean([one.power for one in each.figures], axis=0) for name, each in sets.named().items()}
    centres = np.sqrt(BANDS[:-1] * BANDS[1:])
    return {
        "cycles": centres.tolist(),
        **{view: {name: row[at].tolist() for name, row in rows.items()} for at, view in enumerate(VIEWS)},
    }


# --- Doubts


def _doubts(sets: Sets) -> list[Doubt]:
    """Of the real pairs, those to look at first; of eyes under two names after the others."""
    entries, figures = sets.real.entries, sets.real.figures
    order = sorted(range(len(entries)), key=lambda index: figures[index].values["consistency.correlation"])
    found = [doubt for index in order for doubt in doubts_of(entries[index].id, figures[index])]
    if len(entries) < 2:
        return found
    ids, groups, splits = zip(*((entry.id, entry.group, entry.split) for entry in entries), strict=True)
    return found + same_eyes(ids, groups, splits, sets.kin)
