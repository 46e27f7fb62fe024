"""What was measured of two sets of pairs -> scores: means beside their references, distances, copies, doubts."""

import csv
from codecs import getwriter
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from scipy.stats import bootstrap

from retipair.evaluation.measurements import MeasuredSet
from retipair.evaluation.metric_cache import StoredDescriptors
from retipair.metrics import distribution, memorisation
from retipair.metrics.data_issues import DataIssue, find_duplicate_eyes, find_issues
from retipair.metrics.distribution import evenly_spaced_indices
from retipair.metrics.memorisation import Nearest
from retipair.metrics.pair_metrics import VIEWS
from retipair.metrics.texture import BANDS
from retipair.runtime.atomic_io import atomic_write
from retipair.runtime.console import progress

CLOSEST = 10
"""Generated pairs that are shown beside the training pair they are most like."""
SHOWN = 3
"""Pairs of each kind that are shown: best, middle and worst."""
DOTS = 500
"""Pairs of each set whose figures are drawn one by one, at most."""
_DOTTED = (
    "consistency.correlation",
    *(f"{view}.{name}" for view in VIEWS for name in ("texture.fine_share", "vessels.density_thin")),
)
_COMPARED = 1000
"""Real pairs, at most, among which each real pair's likest is looked for: all would take the square of their number."""
_MEASURED_APART = 20_000
"""Pairs of a set between which distances are measured, at most: they too grow with the square."""
_RESAMPLED = 1000
"""Values that are resampled for an interval, at most; the mean of more is as good as normal."""
_RESAMPLES = 2000
_FEWEST_FOR_FLOOR = 4

Scores = dict[str, Any]


@dataclass(frozen=True)
class Sets:
    """What is compared: the real pairs of both sides of the split, and the generated ones, if there are any.

    rejected: training pairs that are rejected and still have their files; they count only where copies are looked for.
    """

    real: MeasuredSet
    generated: MeasuredSet | None
    rejected: MeasuredSet | None = None

    @cached_property
    def train(self) -> MeasuredSet:
        return self.real.of_split("train")

    @cached_property
    def known(self) -> MeasuredSet:
        """The training pairs, rejected ones too: a model may have been trained on them before that."""
        return self.train.joined(self.rejected) if self.rejected else self.train

    @cached_property
    def named(self) -> dict[str, MeasuredSet]:
        """A column of every table, left out where there are no such pairs."""
        held_out: dict[str, MeasuredSet] = {side: self.real.of_split(side) for side in ("val", "test")}
        columns = {"generated": self.generated, "train": self.train, **held_out}
        return {name: one for name, one in columns.items() if one is not None and one.entries}


def score(sets: Sets) -> Scores:
    """All that hangs on the pairs' figures alone; the keys are those of scores.json."""
    doubts = _doubts(sets)
    return {
        "sizes": {name: len(one.entries) for name, one in sets.named.items()},
        "consistency": _table(sets, "consistency.", mispaired=True),
        "texture": {view: _table(sets, f"{view}.texture.") for view in VIEWS},
        "colour": {view: _columns(sets, f"{view}.chroma") for view in VIEWS},
        "vessels": {view: _table(sets, f"{view}.vessels.") for view in VIEWS},
        "anatomy": {view: _table(sets, f"{view}.anatomy.") for view in VIEWS},
        "diversity": _diversity(sets),
        "distribution": _distribution(sets),
        "memorisation": _memorisation(sets),
        "spectra": _spectra(sets),
        "doubts": [asdict(doubt) for doubt in doubts],
        "dots": {figure: _dots(sets, figure) for figure in _DOTTED},
        "shown": _chosen(sets.generated) if sets.generated else {},
        "doubtful": _doubtful(sets, doubts),
    }


def write_figures(path: Path, sets: Sets) -> None:
    """Every figure of every pair as a table, in the order of the manifests; whole or not at all."""
    with atomic_write(path) as stream:
        table = csv.writer(getwriter("utf-8")(stream), lineterminator="\n")
        table.writerow(["set", "id", *sets.real.values])
        for name, one in sets.named.items():
            for entry, *values in zip(one.entries, *one.values.values(), strict=True):
                table.writerow([name, entry.id, *map(float, values)])


# --- Tables: a mean with its interval, one column a set


def _interval(values: np.ndarray) -> dict[str, float | int | None] | None:
    """The mean of values (n,), and where it lies with 95 % (percentile bootstrap; none of fewer than three)."""
    if not len(values):
        return None
    found: dict[str, float | int | None] = {"mean": float(np.mean(values)), "low": None, "high": None, "n": len(values)}
    if len(values) > 2:
        found |= dict(zip(("low", "high"), _between(values), strict=True))
    return found


def _between(values: np.ndarray) -> tuple[float, float]:
    if len(values) > _RESAMPLED:
        mean, apart = float(values.mean()), 1.96 * float(values.std(ddof=1)) / len(values) ** 0.5
        return mean - apart, mean + apart
    sampled = bootstrap((values,), np.mean, n_resamples=_RESAMPLES, method="percentile", rng=0).confidence_interval
    return float(sampled.low), float(sampled.high)


def _columns(sets: Sets, figure: str) -> Scores:
    """The mean of a figure over each set."""
    return {name: _interval(one.values[figure]) for name, one in sets.named.items()}


def _table(sets: Sets, prefix: str, mispaired: bool = False) -> Scores:
    """Every figure whose name begins so, over each set; mispaired: also of real CFs with other eyes' FAs."""
    names = [name for name in sets.real.values if name.startswith(prefix)]
    table: Scores = {}
    for name in names:
        short = name.removeprefix(prefix)
        table[short] = _columns(sets, name)
        if mispaired:
            table[short]["mispaired"] = _of_links(sets.real, f"mispaired.{short}")
    return table


def _of_links(one: MeasuredSet, figure: str) -> dict[str, float | int | None] | None:
    """None where all pairs are of one eye."""
    return _interval(one.links[figure]) if one.links else None


# --- What is shown, of too many pairs to show all


def _shown(one: MeasuredSet, name: str, row: int) -> Scores:
    """A pair under its set, with all its figures."""
    return {"set": name, "id": one.entries[row].id, **{key: float(column[row]) for key, column in one.values.items()}}


def _chosen(generated: MeasuredSet) -> Scores:
    """The best, the middle and the worst by the correlation of their vessels."""
    rows = np.argsort(-generated.values["consistency.correlation"], kind="stable").tolist()
    middle = max(0, (len(rows) - SHOWN) // 2)
    parts = {"best": rows[:SHOWN], "middle": rows[middle : middle + SHOWN], "worst": rows[-SHOWN:]}
    if len(rows) <= 3 * SHOWN:
        parts = {"all": rows}
    return {name: [_shown(generated, "generated", row) for row in part] for name, part in parts.items()}


def _doubtful(sets: Sets, doubts: Sequence[DataIssue]) -> list[Scores]:
    """The real pairs in doubt, the first first."""
    ids = list(dict.fromkeys(doubt.id for doubt in doubts))[: 2 * SHOWN]
    rows = {entry.id: row for row, entry in enumerate(sets.real.entries) if entry.id in ids}
    return [_shown(sets.real, sets.real.entries[rows[id]].split, rows[id]) for id in ids]


def _dots(sets: Sets, figure: str) -> Scores:
    """A figure of each pair, or of pairs evenly spread over a set."""
    values = {name: one.values[figure] for name, one in sets.named.items()}
    return {name: column[evenly_spaced_indices(len(column), DOTS)].tolist() for name, column in values.items()}


def _diversity(sets: Sets) -> Scores:
    """MS-SSIM of pairs of two eyes each: high where a model draws one eye again and again."""
    both = {"generated": sets.generated, "real": sets.real}
    return {view: {name: _of_links(one, f"alike.{view}") for name, one in both.items() if one} for view in VIEWS}


# --- Distances


def _distribution(sets: Sets) -> Scores | None:
    """None where there is nothing to compare, or fewer real pairs than a floor can be found from."""
    real = sets.real.features[evenly_spaced_indices(len(sets.real.features), _MEASURED_APART)].astype(np.float64)
    if sets.generated is None or min(len(real), len(sets.generated.entries)) <= distribution.NEIGHBOURS:
        return None
    made = sets.generated.features[evenly_spaced_indices(len(sets.generated.features), _MEASURED_APART)].astype(
        np.float64
    )
    moved = distribution.robust_standardize(made, real).mean(axis=0)
    furthest = sorted(zip(distribution.feature_names(), moved.tolist(), strict=True), key=lambda one: -abs(one[1]))
    plain = distribution.plain_names()
    return {
        "mmd2": distribution.mmd2(made, real, real),
        "floor": distribution.null_mmd2(real),
        **asdict(distribution.prdc(real, made)),
        "furthest": [{"feature": name, "name": plain[name], "deviations": far} for name, far in furthest[:CLOSEST]],
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
            "floor": distribution.null_mmd2(b),
            "fid": distribution.frechet(a, b),
        }
    return found


def _memorisation(sets: Sets) -> Scores | None:
    if sets.generated is None or len(sets.known.entries) < 2:
        return None
    of_made = _nearest("Looking for copies", sets.generated.prints, sets.known.prints)
    of_known = _nearest_real("Holding training pairs against each other", sets.known)
    likeness = np.array([one.likeness for one in of_made])
    among = np.array([one.likeness for one in of_known if one.likeness > -1])  # none where all are of one eye
    order = np.argsort(-likeness, kind="stable").tolist()
    both = {"generated": likeness, "train": among}
    return {
        "likeness": {name: _interval(one) for name, one in both.items()},
        "likenesses": {name: one[evenly_spaced_indices(len(one), DOTS)].tolist() for name, one in both.items()},
        "ratio": float(likeness.mean()) / max(float(among.mean()), 1e-9) if len(among) else None,
        "authenticity": memorisation.authenticity(of_made, of_known) if len(among) else None,
        "threshold": memorisation.COPY,
        "copies": [sets.generated.entries[row].id for row in order if likeness[row] >= memorisation.COPY],
        "variations": sum(entry.variation for entry in sets.generated.entries),
        "closest": [_close(sets, row, of_made[row]) for row in order[:CLOSEST]],
    }


def _nearest(title: str, prints: StoredDescriptors, among: StoredDescriptors) -> list[Nearest]:
    with progress(title, len(prints) * -(-len(among) // memorisation.AT_ONCE)) as advance:
        return memorisation.nearest(prints, among, advance=advance)


def _nearest_real(title: str, one: MeasuredSet) -> list[Nearest]:
    """The pair of another eye that each is most like."""
    rows = evenly_spaced_indices(len(one.entries), _COMPARED)
    among = StoredDescriptors(one.kept, [one.keys[row] for row in rows])
    eyes = np.array([entry.group for entry in one.entries])
    with progress(title, len(eyes) * -(-len(rows) // memorisation.AT_ONCE)) as advance:
        found = memorisation.nearest(one.prints, among, (eyes, eyes[rows]), advance)
    return [Nearest(int(rows[each.index]), each.likeness) for each in found]


def _close(sets: Sets, index: int, found: Nearest) -> Scores:
    assert sets.generated
    return {
        "id": sets.generated.entries[index].id,
        "train_id": sets.known.entries[found.index].id,
        "likeness": found.likeness,
    }


def _spectra(sets: Sets) -> Scores:
    """Mean power in each ring of frequencies, over each set: what blur and noise look like."""
    rows = {name: one.power.mean(axis=0, dtype=np.float64) for name, one in sets.named.items()}
    centres = np.sqrt(BANDS[:-1] * BANDS[1:])
    return {
        "cycles": centres.tolist(),
        **{view: {name: row[at].tolist() for name, row in rows.items()} for at, view in enumerate(VIEWS)},
    }


# --- Doubts


def _doubts(sets: Sets) -> list[DataIssue]:
    """Of the real pairs, those to look at first; of eyes under two names after the others."""
    real = sets.real
    order = np.argsort(real.values["consistency.correlation"], kind="stable").tolist()
    found = [doubt for row in order for doubt in find_issues(real.entries[row].id, real.figures(row))]
    if len(real.entries) < 2:
        return found
    ids, splits = ([getattr(entry, name) for entry in real.entries] for name in ("id", "split"))
    return found + find_duplicate_eyes(ids, splits, _nearest_real("Looking for eyes under two names", real))
