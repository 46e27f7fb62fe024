"""Real and generated pairs -> figures, each beside its reference -> scores.json, and a page made of it."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
from scipy.stats import bootstrap

from retipair import __version__, roundtrip
from retipair.config import EvaluateConfig, to_values
from retipair.data.dataset import Entry, content_sha256, read_dataset
from retipair.errors import UserError
from retipair.measuring import RECIPE, MeasuredSet, deep_features, measure_set
from retipair.metrics import distribution, memorisation
from retipair.metrics.checks import Doubt, doubts_of, same_eyes
from retipair.metrics.figures import VIEWS
from retipair.metrics.memorisation import Nearest, pair_print
from retipair.metrics.texture import BANDS
from retipair.model.base import Base, open_base
from retipair.model.deep import ImageModel, open_image_model
from retipair.progress import console
from retipair.report import write_report
from retipair.run import METRICS_NAME, Run, read_json, write_json
from retipair.verdict import verdict

SCHEMA = "retipair-scores-1"
SCORES_NAME = "scores.json"
KEPT_NAME = "features"
CLOSEST = 10
"""Generated pairs that are shown beside the training pair they are most like."""
_RESAMPLES = 2000
_FEWEST_FOR_FLOOR = 4
_DECIDE_COST = ("batch_size", "gradient_accumulation_steps", "gradient_checkpointing", "precision")
"""Settings of a training that make its steps slower or larger."""

Scores = dict[str, Any]


@dataclass(frozen=True)
class Sets:
    """What is compared: the real pairs of both sides of the split, and the generated ones, if there are any."""

    real: MeasuredSet
    generated: MeasuredSet | None

    @cached_property
    def train(self) -> MeasuredSet:
        return self.real.of_split("train")

    def named(self) -> dict[str, MeasuredSet]:
        """A column of every table, left out where there are no such pairs."""
        val = self.real.of_split("val")
        columns = {"generated": self.generated, "train": self.train, "val": val}
        return {name: one for name, one in columns.items() if one is not None and one.entries}


def evaluate(config: EvaluateConfig) -> Path:
    """Measure what is not measured yet, score, and write OUT/scores.json and report.html; returns the latter's path.

    Without --generated the real pairs alone are checked. Raises UserError, before anything is written, for a folder
    that is no dataset, and where OUT holds the scores of other pairs.
    """
    # Check
    base = open_base(config.base) if config.base else None
    model = open_image_model(config.deep) if config.deep else None
    run = _run_of(config.adapter) if config.adapter else None
    real, generated = _entries(config.real), _entries(config.generated) if config.generated else []
    provenance = _provenance(config, real, generated, base, model)
    earlier = _earlier_scores(config.out, provenance)

    # Score
    config.out.mkdir(parents=True, exist_ok=True)
    scores = earlier or _scores(config, provenance, _measured(config, real, generated), base, run, model)
    write_json(config.out / SCORES_NAME, scores)
    if config.withhold_copies:
        _write_withheld(config.out / "withheld.txt", scores)

    # Report
    page = write_report(config.out, scores)
    _say(scores)
    print(f"Look at {page.resolve()}")
    return page


def _scores(
    config: EvaluateConfig,
    provenance: Scores,
    sets: Sets,
    base: Base | None,
    run: Run | None,
    model: ImageModel | None,
) -> Scores:
    """Everything that scores.json says."""
    scores: Scores = {"schema": SCHEMA, "provenance": provenance, "pairs": _pairs(sets)}
    scores["consistency"] = _table(sets, "consistency.", mispaired=True)
    scores["texture"] = {view: _table(sets, f"{view}.texture.") for view in VIEWS}
    scores["colour"] = {view: _columns(sets, f"{view}.chroma") for view in VIEWS}
    scores["vessels"] = {view: _table(sets, f"{view}.vessels.") for view in VIEWS}
    scores["anatomy"] = {view: _table(sets, f"{view}.anatomy.") for view in VIEWS}
    scores["diversity"] = _diversity(sets)
    scores["distribution"] = _distribution(sets)
    scores["deep"] = _deep(sets, model, config.out / KEPT_NAME) if model else None
    scores["memorisation"] = _memorisation(sets)
    scores["spectra"] = _spectra(sets)
    scores["layouts"] = _layouts(base, sets.real.entries)
    if base:
        _add_ceiling(scores, base)
    scores["training"] = _training(run) if run else None
    scores["doubts"] = [asdict(doubt) for doubt in _doubts(sets)]
    scores["verdict"] = [asdict(finding) for finding in verdict(scores)]
    return scores


# --- What is compared


def _entries(folder: Path) -> list[Entry]:
    if not folder.is_dir():
        raise UserError(f"{folder}: no such folder; give a prepared or generated one")
    return read_dataset(folder)


def _provenance(
    config: EvaluateConfig,
    real: Sequence[Entry],
    generated: Sequence[Entry],
    base: Base | None,
    model: ImageModel | None,
) -> Scores:
    """What the scores are of: equal for equal pairs and settings."""
    return {
        "retipair": __version__,
        "recipe": RECIPE,
        "real": str(config.real),
        "real_sha256": content_sha256(real),
        "generated": str(config.generated) if config.generated else None,
        "generated_sha256": content_sha256(generated) if generated else None,
        "base": base.source if base else None,
        "adapter": str(config.adapter) if config.adapter else None,
        "deep": str(config.deep) if config.deep else None,
        "deep_sha256": model.sha256 if model else None,
    }


def _earlier_scores(out: Path, provenance: Scores) -> Scores | None:
    """The scores of the same pairs and settings, if OUT has them; None if it is new or empty, or only measured.

    Raises UserError for other files, and for scores of other pairs: they must not be taken for these.
    """
    if out.exists() and not out.is_dir():
        raise UserError(f"{out}: is a file; choose another --out")
    there = {path.name for path in out.iterdir() if not path.name.startswith(".")} if out.is_dir() else set()
    if there and there.isdisjoint({SCORES_NAME, KEPT_NAME}):
        raise UserError(f"{out}: holds other files; choose a new or empty folder for --out")
    if SCORES_NAME not in there:
        return None
    scores = read_json(out / SCORES_NAME)
    before = scores.get("provenance", {})
    for name in ("real", "generated"):
        if before.get(f"{name}_sha256") != provenance[f"{name}_sha256"]:
            raise UserError(f"{out}: has the scores of other {name} pairs ({before.get(name)}); choose another --out")
    return scores if before == provenance else None


def _measured(config: EvaluateConfig, real: Sequence[Entry], generated: Sequence[Entry]) -> Sets:
    def of(name: str, entries: Sequence[Entry]) -> MeasuredSet:
        return measure_set(f"{name} pairs", entries, config.out / KEPT_NAME, config.workers)

    return Sets(of("real", real), of("generated", generated) if generated else None)


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


def _deep(sets: Sets, model: ImageModel, kept: Path) -> Scores | None:
    """The same distance, and FID, on an image model's features of each view; None as in _distribution."""
    if sets.generated is None or min(len(sets.real.entries), len(sets.generated.entries)) < _FEWEST_FOR_FLOOR:
        return None
    real, made = (
        deep_features(name, one.entries, model, kept)
        for name, one in (("real pairs", sets.real), ("generated pairs", sets.generated))
    )
    found: Scores = {"n": min(len(real), len(made)), "features": real.shape[-1]}
    for at, view in enumerate(VIEWS):
        a, b = made[:, at], real[:, at]
        found[view] = {
            "mmd2": distribution.mmd2(a, b, b),
            "floor": distribution.floor(b),
            "fid": distribution.frechet(a, b),
        }
    return found


def _memorisation(sets: Sets) -> Scores | None:
    if sets.generated is None or len(sets.train.entries) < 2:
        return None
    made, known = (
        np.stack([pair_print(figures.prints) for figures in one.figures]) for one in (sets.generated, sets.train)
    )
    eyes = np.array([entry.group for entry in sets.train.entries])
    of_made = memorisation.nearest(made, known)
    of_known = memorisation.nearest(known, known, forbidden=eyes[:, None] == eyes[None, :])
    likeness = [one.likeness for one in of_made]
    among = [one.likeness for one in of_known]
    order = sorted(range(len(of_made)), key=lambda index: -likeness[index])
    return {
        "likeness": {"generated": _interval(likeness), "train": _interval(among)},
        "likenesses": {"generated": likeness, "train": among},
        "ratio": float(np.mean(likeness)) / max(float(np.mean(among)), 1e-9),
        "authenticity": memorisation.authenticity(of_made, of_known),
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


# --- What bounds a model, and how it was trained


def _layouts(base: Base | None, real: Sequence[Entry]) -> Scores:
    """What each layout leaves of the real pairs and, with a base, what its autoencoder does beside."""
    ways = {"nothing": roundtrip.nothing} | ({"autoencoder": roundtrip.autoencoder(base)} if base else {})
    size = base.view_size if base else roundtrip.USUAL_SIZE
    return {"size": size, "rows": roundtrip.ceilings(real, size, ways)}


def _add_ceiling(scores: Scores, base: Base) -> None:
    """A column more in the tables of texture: real pairs, passed through the base's layout and autoencoder."""
    for row in scores["layouts"]["rows"]:
        if (row["layout"], row["between"]) == (base.system.layout, "autoencoder"):
            for name, columns in scores["texture"][row["view"]].items():
                columns["autoencoder"] = {"mean": row[f"texture.{name}"], "low": None, "high": None, "n": row["n"]}


def _run_of(adapter: Path) -> Run:
    """The run, from any folder within it. Raises UserError if there is none."""
    for folder in (adapter, *adapter.resolve().parents):
        if (folder / METRICS_NAME).is_file():
            return Run(folder)
    raise UserError(
        f"{adapter}: lies in no run of `retipair train` (a folder with {METRICS_NAME}); leave --adapter out"
    )


def _training(run: Run) -> Scores:
    """The losses of each half over the steps, and what a step cost with which settings."""
    logged = run.read_metrics()
    lines = {kind: [line for line in logged if line["kind"] == kind] for kind in ("training", "validation")}
    settings = to_values(run.read_config())
    return {**lines, "cost": _cost(lines["training"]), "settings": {name: settings[name] for name in _DECIDE_COST}}


def _cost(lines: Sequence[Scores]) -> Scores:
    """Seconds a step, the median between lines of the log (validation aside), and the most memory, GiB."""
    marks = [(line["step"], line["seconds"]) for line in lines]
    steps = [(b[1] - a[1]) / (b[0] - a[0]) for a, b in pairwise(marks) if b[0] > a[0] and b[1] > a[1]]
    memory = [line["memory_gib"] for line in lines if "memory_gib" in line]
    return {
        "seconds_per_step": float(np.median(steps)) if steps else None,
        "memory_gib": max(memory) if memory else None,
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
    return found + same_eyes(ids, groups, splits, figures)


# --- Output


def _write_withheld(path: Path, scores: Scores) -> None:
    copies = (scores["memorisation"] or {}).get("copies", [])
    path.write_text("".join(f"{one}\n" for one in copies), encoding="utf-8")


def _say(scores: Scores) -> None:
    def mean(column: str) -> str:
        found = scores["consistency"]["correlation"].get(column)
        return f"{found['mean']:.2f}" if found else "-"

    columns = ", ".join(f"{name} {mean(name)}" for name in ("generated", "train", "val", "mispaired"))
    console.print(f"Vessels of the two views correlate by: {columns}")
    for doubt in scores["doubts"]:
        console.print(f"look at {doubt['id']}: {doubt['text']}", markup=False)
