"""Real and generated pairs -> figures, each beside its reference -> scores.json, and a page made of it."""

import hashlib
from collections.abc import Sequence
from dataclasses import asdict
from itertools import pairwise
from pathlib import Path

import numpy as np

from retipair import __version__, roundtrip
from retipair.config import EvaluateConfig, canonical_json, json_sha256, to_values
from retipair.data.dataset import Entry, pair_sha256, read_dataset
from retipair.disk import read_json, write_json, write_text
from retipair.errors import UserError, printable
from retipair.kept import RECIPE
from retipair.measuring import MeasuredSet, deep_features, measure_set
from retipair.metrics import memorisation
from retipair.model.base import Base, open_base
from retipair.model.deep import ImageModel, open_image_model
from retipair.owner import owned
from retipair.processes import Processes, processes
from retipair.progress import console
from retipair.report import PAGE_NAME, write_report
from retipair.run import METRICS_NAME, Run, run_around
from retipair.scoring import Scores, Sets, deep_distances, score, write_figures
from retipair.verdict import headline, verdict

SCHEMA = "retipair.scores/2"
SCORES_NAME = "scores.json"
FIGURES_NAME = "figures.csv"
KEPT_NAME = "features"
_DECIDE_COST = ("batch_size", "gradient_accumulation_steps", "precision")
"""Settings of a training that make its steps slower or larger."""


def evaluate(config: EvaluateConfig) -> Path:
    """Measure what is not measured yet, score, and write OUT/scores.json and report.html; returns the latter's path.

    Without --generated the real pairs alone are checked. Raises UserError, before anything is written, for a folder
    that is no dataset, and where OUT holds the scores of other pairs.
    """
    # Check
    _check_flags(config)
    base = open_base(config.base) if config.base else None
    model = open_image_model(config.deep) if config.deep else None
    training = _training(_run_of(config.adapter)) if config.adapter else None
    real, generated = _entries(config.real), _entries(config.generated) if config.generated else []
    if config.withhold_copies and sum(entry.split == "train" for entry in real) < 2:
        raise UserError(f"{config.real}: fewer than two training pairs to be copied; leave --withhold_copies out")
    provenance = _provenance(config, real, generated, base, training, model)
    earlier = _earlier_scores(config.out, provenance)

    # Measure and score
    crew, page = processes("cpu"), config.out / PAGE_NAME
    with owned(config.out, crew.first):
        scores = earlier
        if scores is None:
            layouts = _layouts(base, real) if crew.first else {}  # its images are gone before many figures are held
            sets = _measured(config, real, generated, crew)
            scores = _scores(config, provenance, sets, layouts, base, training, model) if crew.first else {}
        if not crew.first:  # it has measured its share
            return page
        write_json(config.out / SCORES_NAME, {**scores, "sha256": json_sha256(scores)})
        if config.withhold_copies:
            _write_withheld(config.out / "withheld.txt", scores)

        # Report
        write_report(config.out, scores)
    _say(scores)
    print(f"Look at {page.resolve()}")
    return page


def _scores(
    config: EvaluateConfig,
    provenance: Scores,
    sets: Sets,
    layouts: Scores,
    base: Base | None,
    training: Scores | None,
    model: ImageModel | None,
) -> Scores:
    """Everything that scores.json says."""
    write_figures(config.out / FIGURES_NAME, sets)
    scores = {"schema": SCHEMA, "provenance": provenance, **score(sets)}
    scores["deep"] = _deep(sets, model) if model else None
    scores["layouts"] = layouts
    if base:
        _add_ceiling(scores, base)
    scores["training"] = training
    findings = verdict(scores)
    scores["headline"] = headline(scores, findings)
    scores["verdict"] = [asdict(finding) for finding in findings]
    return scores


# --- What is compared


def _check_flags(config: EvaluateConfig) -> None:
    if config.workers < 0:
        raise UserError(f"--workers {config.workers}: must be 0 (every core) or more")
    for flag, given in (("--withhold_copies", config.withhold_copies), ("--deep", config.deep)):
        if given and config.generated is None:
            raise UserError(f"{flag}: compares with generated pairs; give --generated too")


def _entries(folder: Path) -> list[Entry]:
    if not folder.is_dir():
        raise UserError(f"{folder}: no such folder; give a prepared or generated one")
    return read_dataset(folder)


def _provenance(
    config: EvaluateConfig,
    real: Sequence[Entry],
    generated: Sequence[Entry],
    base: Base | None,
    training: Scores | None,
    model: ImageModel | None,
) -> Scores:
    """What the scores are of: equal for equal pairs and settings."""
    return {
        "retipair": __version__,
        "recipe": RECIPE,
        "copy_search": memorisation.VERSION,
        "real": str(config.real),
        "real_sha256": _sha256(real),
        "generated": str(config.generated) if config.generated else None,
        "generated_sha256": _sha256(generated) if generated else None,
        "base": base.source if base else None,
        "base_sha256": base.fingerprint() if base else None,
        "adapter": str(config.adapter) if config.adapter else None,
        "step": training["training"][-1]["step"] if training else None,
        "deep": str(config.deep) if config.deep else None,
        "deep_sha256": model.sha256 if model else None,
    }


def _sha256(entries: Sequence[Entry]) -> str:
    """Of all that a score hangs on: what the pairs show, masks too, and which of them are of one eye and side."""
    digest = hashlib.sha256()
    for entry in entries:
        told = [entry.id, entry.group, entry.split, entry.fa_chroma, pair_sha256(entry)]
        digest.update(canonical_json(told).encode())
    return digest.hexdigest()


def _earlier_scores(out: Path, provenance: Scores) -> Scores | None:
    """The scores of the same pairs and settings, if OUT has them; None if it is new or empty, or only measured.

    Raises UserError for other files, and for scores of other pairs: they must not be taken for these.
    """
    if out.exists() and not out.is_dir():
        raise UserError(f"{out}: is a file; choose another --out")
    there = {path.name for path in out.iterdir() if not path.name.startswith(".")} if out.is_dir() else set()
    if any((out / name).is_dir() for name in (SCORES_NAME, FIGURES_NAME)):
        raise UserError(f"{out}: has folders where files of ours would be; choose a new or empty folder for --out")
    if there and SCORES_NAME not in there and not there <= {KEPT_NAME, FIGURES_NAME}:
        raise UserError(f"{out}: holds other files; choose a new or empty folder for --out")
    if SCORES_NAME not in there:
        return None
    scores = read_json(out / SCORES_NAME)
    if scores.get("schema") != SCHEMA or not isinstance(scores.get("provenance"), dict):
        raise UserError(f"{out / SCORES_NAME}: of another version of retipair, or damaged; choose another --out")
    before = scores["provenance"]
    for name in ("real", "generated"):
        if before.get(f"{name}_sha256") != provenance[f"{name}_sha256"]:
            raise UserError(f"{out}: has the scores of other {name} pairs ({before.get(name)}); choose another --out")
    whole = scores.pop("sha256", None) == json_sha256(scores) and FIGURES_NAME in there
    return scores if before == provenance and whole else None


def _measured(config: EvaluateConfig, real: Sequence[Entry], generated: Sequence[Entry], crew: Processes) -> Sets:
    def of(name: str, entries: Sequence[Entry]) -> MeasuredSet:
        return measure_set(f"{name} pairs", entries, config.out / KEPT_NAME, config.workers, crew)

    return Sets(of("real", real), of("generated", generated) if generated else None)


# --- What an image model sees, what bounds a model, and how it was trained


def _deep(sets: Sets, model: ImageModel) -> Scores | None:
    if sets.generated is None:
        return None
    named = {"generated pairs": sets.generated, "real pairs": sets.real}
    return deep_distances(*(deep_features(name, one, model) for name, one in named.items()))


def _layouts(base: Base | None, real: Sequence[Entry]) -> Scores:
    """What each layout leaves of the real pairs and, with a base, what its autoencoder does beside."""
    ways = {"nothing": roundtrip.nothing} | ({"autoencoder": roundtrip.autoencoder(base)} if base else {})
    size = base.view_size if base else roundtrip.USUAL_SIZE
    train = [entry for entry in real if entry.split == "train"]
    return {"size": size, "rows": roundtrip.ceilings(train or real, size, ways)}


def _add_ceiling(scores: Scores, base: Base) -> None:
    """A column more in the tables of texture: real pairs, passed through the base's layout and autoencoder."""
    for row in scores["layouts"]["rows"]:
        if (row["layout"], row["between"]) == (base.system.layout, "autoencoder"):
            for name, columns in scores["texture"][row["view"]].items():
                columns["autoencoder"] = {"mean": row[f"texture.{name}"], "low": None, "high": None, "n": row["n"]}


def _run_of(adapter: Path) -> Run:
    """The run, from any folder within it. Raises UserError if there is none."""
    if run := run_around(adapter):
        return run
    raise UserError(
        f"{adapter}: lies in no run of `retipair train` (a folder with {METRICS_NAME}); leave --adapter out"
    )


def _training(run: Run) -> Scores:
    """The losses of each half over the steps, and what a step cost with which settings."""
    settings, path = to_values(run.read_config()), run.folder / METRICS_NAME
    try:
        logged = run.read_metrics()
        lines = {kind: [line for line in logged if line["kind"] == kind] for kind in ("training", "validation")}
        known = all({"step", "seconds", "mse_cf", "mse_fa"} <= set(line) for line in lines["training"])
        known &= all({"step", "loss"} <= set(line) for line in lines["validation"])
        known &= all(type(value) in (int, float) for line in logged for key, value in line.items() if key != "kind")
    except (KeyError, TypeError, AttributeError):
        known = False
    if not known or not lines["training"]:
        raise UserError(f"{path}: not the log of a training, or of one that has not begun; leave --adapter out")
    decide = {name: settings[name] for name in _DECIDE_COST} | {"memory": run.memory_way()}
    return {**lines, "cost": _cost(lines["training"]), "settings": decide}


def _cost(lines: Sequence[Scores]) -> Scores:
    """Seconds a step, the median between lines of the log (validation aside), and the most memory, GiB."""
    marks = [(line["step"], line["seconds"]) for line in lines]
    steps = [(b[1] - a[1]) / (b[0] - a[0]) for a, b in pairwise(marks) if b[0] > a[0] and b[1] > a[1]]
    memory = [line["memory_gib"] for line in lines if "memory_gib" in line]
    return {
        "seconds_per_step": float(np.median(steps)) if steps else None,
        "memory_gib": max(memory) if memory else None,
    }


# --- Output


def _write_withheld(path: Path, scores: Scores) -> None:
    copies = (scores["memorisation"] or {}).get("copies", [])
    write_text(path, "".join(f"{one}\n" for one in copies))
    print(f"{len(copies)} copies of training pairs, listed in {path}")


def _say(scores: Scores) -> None:
    means = {name: found["mean"] for name, found in scores["consistency"]["correlation"].items() if found}
    columns = ", ".join(f"{name} {mean:.2f}" for name, mean in means.items())
    console.print(f"Vessels of the two views correlate by: {columns}")
    for doubt in scores["doubts"]:
        console.print(f"look at {doubt['id']}: {doubt['text']}")
    console.print(printable(scores["headline"]))
