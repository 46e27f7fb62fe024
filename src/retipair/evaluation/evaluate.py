"""Real and generated pairs -> figures, each beside its reference -> scores.json, and a page made of it."""

import hashlib
import os
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from pathlib import Path

import numpy as np

from retipair import __version__
from retipair.config import EvaluateConfig
from retipair.data.dataset import PairFolder, PairRecord, pair_sha256, read_folder
from retipair.data.rejected import REJECTED_NAME, add_rejected
from retipair.evaluation import reconstruction
from retipair.evaluation.measurements import MeasuredSet, deep_features, measure_set
from retipair.evaluation.metric_cache import RECIPE
from retipair.evaluation.report import PAGE_NAME, write_report
from retipair.evaluation.scores import Scores, Sets, deep_distances, score, write_figures
from retipair.evaluation.verdict import as_values, headline, verdict
from retipair.metrics import memorisation
from retipair.models.base import Base, open_base
from retipair.models.feature_extractor import ImageModel, open_image_model
from retipair.runs.run_dir import METRICS_NAME, Run, run_around
from retipair.runtime.atomic_io import check_folder_place, read_json, write_json
from retipair.runtime.console import console
from retipair.runtime.distributed import SINGLE_PROCESS, DistributedState, distributed_state
from retipair.runtime.errors import UserError, printable
from retipair.runtime.lock import directory_lock
from retipair.runtime.schema import canonical_json, json_sha256, to_values

SCHEMA = "retipair.scores/2"
SCORES_NAME = "scores.json"
FIGURES_NAME = "figures.csv"
KEPT_NAME = "features"
_DECIDE_COST = ("batch_size", "gradient_accumulation_steps", "precision")
"""Settings of a training that make its steps slower or larger."""


@dataclass(frozen=True)
class Comparison:
    """What is compared with what, found and checked before anything is written."""

    config: EvaluateConfig
    real: PairFolder
    generated: PairFolder | None
    base: Base | None
    model: ImageModel | None
    training: Scores | None

    @property
    def provenance(self) -> Scores:
        """What the scores are of: equal for equal pairs and settings."""
        config, generated = self.config, self.generated
        return {
            "retipair": __version__,
            "recipe": RECIPE,
            "copy_search": memorisation.VERSION,
            "real": str(config.real),
            "real_sha256": _sha256(self.real.kept),
            "real_rejected_sha256": self.real.rejected_sha256,
            "generated": str(config.generated) if config.generated else None,
            "generated_sha256": _sha256(generated.kept) if generated else None,
            "generated_rejected_sha256": generated.rejected_sha256 if generated else None,
            "base": self.base.source if self.base else None,
            "base_sha256": self.base.fingerprint() if self.base else None,
            "adapter": str(config.adapter) if config.adapter else None,
            "step": self.training["training"][-1]["step"] if self.training else None,
            "deep": str(config.deep) if config.deep else None,
            "deep_sha256": self.model.sha256 if self.model else None,
        }


def evaluate(config: EvaluateConfig) -> Path:
    """Measure what is not measured yet, score, and write OUT/scores.json and report.html; returns the latter's path.

    Without --generated the real pairs alone are checked. Raises UserError, before anything is written, for a folder
    that is no dataset, and where OUT holds the scores of other pairs.
    """
    # Check
    _check_flags(config)
    base = open_base(config.base) if config.base else None
    model = open_image_model(config.deep) if config.deep else None
    real, generated = _pairs(config.real), _pairs(config.generated) if config.generated else None
    training = _training(_run_of(config.adapter), real) if config.adapter else None
    if config.withhold_copies:
        _check_withholding(config, real)
    compared = Comparison(config, real, generated, base, model, training)
    provenance = compared.provenance
    scores = _earlier_scores(config.out, provenance)

    # Measure and score
    dist, page = distributed_state("cpu"), config.out / PAGE_NAME
    for note in (one.note for one in (real, generated) if one and one.note):
        console.print(note)
    with directory_lock(config.out, dist.is_main_process):
        if scores is None:
            # First, as its images are gone again before many figures are held.
            layouts = _layouts(base, real.kept) if dist.is_main_process else {}
            scores = _score(compared, provenance, layouts, dist)
        if not dist.is_main_process:  # it has measured its share
            return page
        if config.withhold_copies:
            scores = _without_copies(compared, scores)
        write_json(config.out / SCORES_NAME, {**scores, "sha256": json_sha256(scores)})

        # Report
        write_report(config.out, scores)
    _say(scores)
    print(f"Look at {page.resolve()}")
    return page


def _score(
    compared: Comparison,
    provenance: Scores,
    layouts: Scores,
    dist: DistributedState = SINGLE_PROCESS,
    withheld: Sequence[str] = (),
) -> Scores:
    """Everything that scores.json says; for all processes but the first nothing."""
    sets = _measured(compared, dist)
    if not dist.is_main_process:
        return {}
    write_figures(compared.config.out / FIGURES_NAME, sets)
    scores = {"schema": SCHEMA, "provenance": provenance, **score(sets), "withheld": list(withheld)}
    scores["deep"] = _deep(sets, compared.model) if compared.model else None
    scores["layouts"] = layouts
    if compared.base:
        _add_ceiling(scores, compared.base)
    scores["training"] = compared.training
    findings = verdict(scores)
    scores["headline"] = headline(scores, findings)
    scores["verdict"] = [as_values(finding) for finding in findings]
    scores["advice"] = [advice.text for finding in findings for advice in finding.advice]
    return scores


def _without_copies(compared: Comparison, scores: Scores) -> Scores:
    """Reject the generated pairs that copy training pairs, and score the others.

    The scores stay those of all pairs if there is no copy, or if nothing but copies is there.
    """
    folder, copies = compared.config.generated, (scores["memorisation"] or {}).get("copies", [])
    if not copies:
        return scores
    assert folder is not None
    add_rejected(folder, copies, "copies of training pairs (retipair evaluate --withhold_copies)")
    print(f"{len(copies)} copies of training pairs are now rejected, in {folder / REJECTED_NAME}")
    others = read_folder(folder)
    if not others.kept:
        return scores
    remaining = replace(compared, generated=others)
    return _score(remaining, remaining.provenance, scores["layouts"], withheld=copies)


# --- What is compared


def _check_flags(config: EvaluateConfig) -> None:
    if config.workers < 0:
        raise UserError(f"--workers {config.workers}: must be 0 (every core) or more")
    for flag, given in (("--withhold_copies", config.withhold_copies), ("--deep", config.deep)):
        if given and config.generated is None:
            raise UserError(f"{flag}: compares with generated pairs; give --generated too")


def _check_withholding(config: EvaluateConfig, real: PairFolder) -> None:
    assert config.generated is not None
    if sum(entry.split == "train" for entry in real.kept) < 2:
        raise UserError(f"{config.real}: fewer than two training pairs to be copied; leave --withhold_copies out")
    if config.generated.resolve() == config.real.resolve():
        raise UserError("--withhold_copies: --generated is --real, and each pair a copy of itself; leave it out")
    if not os.access(config.generated, os.W_OK):
        raise UserError(f"--withhold_copies: writes {REJECTED_NAME} into {config.generated}, which is read-only")


def _pairs(folder: Path) -> PairFolder:
    """The folder's pairs. Raises UserError if there is no such folder, or none of its pairs is left."""
    if not folder.is_dir():
        raise UserError(f"{folder}: no such folder; give a prepared or generated one")
    found = read_folder(folder)
    found.check_any_left()
    return found


def _sha256(entries: Sequence[PairRecord]) -> str:
    """Of all that a score hangs on: what the pairs show, masks too, and which of them are of one eye and side."""
    digest = hashlib.sha256()
    for entry in entries:
        told = [entry.id, entry.group, entry.split, entry.fa_chroma, pair_sha256(entry)]
        digest.update(canonical_json(told).encode())
    return digest.hexdigest()


def _earlier_scores(out: Path, provenance: Scores) -> Scores | None:
    """The scores of the same pairs and settings, if OUT has them; None if it is new or empty, or only measured, or if
    other pairs of the same folders are rejected now.

    Raises UserError for other files, and for scores of other pairs: they must not be taken for these.
    """
    check_folder_place(out / KEPT_NAME)
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
        if _others(name, before, provenance):
            told = (
                "as they were before their folder changed" if before.get(name) == provenance[name] else before.get(name)
            )
            raise UserError(f"{out}: has the scores of other {name} pairs ({told}); choose another --out")
    whole = scores.pop("sha256", None) == json_sha256(scores) and FIGURES_NAME in there
    return scores if before == provenance and whole else None


def _others(name: str, before: Scores, now: Scores) -> bool:
    """Whether scores are of other pairs than those rejecting some of the same folder explains."""
    rejected = f"{name}_rejected_sha256"
    same_folder = before.get(name) == now[name] and before.get(rejected) != now[rejected]
    return before.get(f"{name}_sha256") != now[f"{name}_sha256"] and not same_folder


def _measured(compared: Comparison, dist: DistributedState) -> Sets:
    config = compared.config

    def of(name: str, entries: Sequence[PairRecord]) -> MeasuredSet:
        return measure_set(f"{name} pairs", entries, config.out / KEPT_NAME, config.workers, dist)

    if compared.generated is None:
        return Sets(of("real", compared.real.kept), None)
    left_out = set(compared.real.rejected)
    rejected = [entry for entry in compared.real.known if entry.id in left_out and entry.split == "train"]
    return Sets(
        of("real", compared.real.kept),
        of("generated", compared.generated.kept),
        of("rejected training", rejected) if rejected else None,
    )


# --- What an image model sees, what bounds a model, and how it was trained


def _deep(sets: Sets, model: ImageModel) -> Scores | None:
    if sets.generated is None:
        return None
    named = {"generated pairs": sets.generated, "real pairs": sets.real}
    return deep_distances(*(deep_features(name, one, model) for name, one in named.items()))


def _layouts(base: Base | None, real: Sequence[PairRecord]) -> Scores:
    """What each layout leaves of the real pairs and, with a base, what its autoencoder does beside."""
    ways = {"nothing": reconstruction.nothing} | ({"autoencoder": reconstruction.autoencoder(base)} if base else {})
    size = base.view_size if base else reconstruction.USUAL_SIZE
    train = [entry for entry in real if entry.split == "train"]
    return {"size": size, "rows": reconstruction.ceilings(train or real, size, ways)}


def _add_ceiling(scores: Scores, base: Base) -> None:
    """A column more in the tables of texture: real pairs, passed through the base's layout and autoencoder."""
    for row in scores["layouts"]["rows"]:
        if (row["layout"], row["between"]) == (base.family.layout, "autoencoder"):
            for name, columns in scores["texture"][row["view"]].items():
                columns["autoencoder"] = {"mean": row[f"texture.{name}"], "low": None, "high": None, "n": row["n"]}


def _run_of(adapter: Path) -> Run:
    """The run, from any folder within it. Raises UserError if there is none."""
    if run := run_around(adapter):
        return run
    raise UserError(
        f"{adapter}: lies in no run of `retipair train` (a folder with {METRICS_NAME}); leave --adapter out"
    )


def _training(run: Run, real: PairFolder) -> Scores:
    """The losses of each half over the steps, what a step cost with which settings, and whether it saw these pairs."""
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
    decide = {name: settings[name] for name in _DECIDE_COST} | {"memory": run.memory_strategy()}
    trained_on_real = _was_trained_on(run, real)
    return {**lines, "cost": _cost(lines["training"]), "settings": decide, "trained_on_real": trained_on_real}


def _was_trained_on(run: Run, real: PairFolder) -> bool | None:
    """Whether the run was trained on these pairs, some of them rejected since or not; None if it does not say."""
    data = read_json(run.folder / "config.json").get("data_sha256")
    return real.has_content(data) if data else None


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


def _say(scores: Scores) -> None:
    means = {name: found["mean"] for name, found in scores["consistency"]["correlation"].items() if found}
    columns = ", ".join(f"{name} {mean:.2f}" for name, mean in means.items())
    console.print(f"Consistency (vesselness correlation) of the two views: {columns}")
    for doubt in scores["doubts"]:
        console.print(f"look at {doubt['id']}: {doubt['text']}")
    console.print(printable(scores["headline"]))
