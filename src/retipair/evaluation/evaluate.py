"""Compute the metrics of real and generated pairs, and write scores.json and the report page."""

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
CACHE_NAME = "features"
_COST_SETTINGS = ("batch_size", "gradient_accumulation_steps", "precision")
"""Training settings that affect the time or memory of a step."""


@dataclass(frozen=True)
class Comparison:
    """Inputs of the evaluation, loaded and checked before anything is written."""

    config: EvaluateConfig
    real: PairFolder
    generated: PairFolder | None
    base: Base | None
    model: ImageModel | None
    training: Scores | None

    @property
    def provenance(self) -> Scores:
        """Return what the scores depend on: pairs, settings and versions."""
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
    """Compute missing metrics, write OUT/scores.json and OUT/report.html, and return the path of the report.

    Without --generated, only the real pairs are checked. Raises UserError, before anything is written, if a folder is
    not a dataset, or if OUT contains the scores of other pairs.
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
    for note in (pairs.note for pairs in (real, generated) if pairs and pairs.note):
        console.print(note)
    with directory_lock(config.out, dist.is_main_process):
        if scores is None:
            # Done first, so that its images are freed before the metrics are loaded.
            layouts = _layouts(base, real.kept) if dist.is_main_process else {}
            scores = _score(compared, provenance, layouts, dist)
        if not dist.is_main_process:  # it has computed its part of the metrics
            return page
        if config.withhold_copies:
            scores = _without_copies(compared, scores)
        write_json(config.out / SCORES_NAME, {**scores, "sha256": json_sha256(scores)})

        # Report
        write_report(config.out, scores)
    _print_summary(scores)
    print(f"Report: {page.resolve()}")
    return page


def _score(
    compared: Comparison,
    provenance: Scores,
    layouts: Scores,
    dist: DistributedState = SINGLE_PROCESS,
    withheld: Sequence[str] = (),
) -> Scores:
    """Return the content of scores.json; an empty dict on all but the main process."""
    sets = _measure(compared, dist)
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

    The scores are returned unchanged if there are no copies, or if all pairs are copies.
    """
    folder, copies = compared.config.generated, (scores["memorisation"] or {}).get("copies", [])
    if not copies:
        return scores
    assert folder is not None
    add_rejected(folder, copies, "copies of training pairs (retipair evaluate --withhold_copies)")
    print(f"{len(copies)} copies of training pairs rejected in {folder / REJECTED_NAME}")
    others = read_folder(folder)
    if not others.kept:
        return scores
    remaining = replace(compared, generated=others)
    return _score(remaining, remaining.provenance, scores["layouts"], withheld=copies)


# --- Inputs


def _check_flags(config: EvaluateConfig) -> None:
    if config.workers < 0:
        raise UserError(f"--workers {config.workers}: must be 0 (all cores) or more")
    for flag, given in (("--withhold_copies", config.withhold_copies), ("--deep", config.deep)):
        if given and config.generated is None:
            raise UserError(f"{flag}: requires generated pairs; pass --generated")


def _check_withholding(config: EvaluateConfig, real: PairFolder) -> None:
    assert config.generated is not None
    if sum(entry.split == "train" for entry in real.kept) < 2:
        raise UserError(f"{config.real}: fewer than two training pairs to compare with; omit --withhold_copies")
    if config.generated.resolve() == config.real.resolve():
        raise UserError(
            "--withhold_copies: --generated is the same folder as --real, so each pair is a copy; omit the flag"
        )
    if not os.access(config.generated, os.W_OK):
        raise UserError(
            f"--withhold_copies: cannot write {REJECTED_NAME}, {config.generated} is read-only; make it writable"
        )


def _pairs(folder: Path) -> PairFolder:
    """Load the pairs of a folder. Raises UserError if the folder does not exist or has no accepted pairs."""
    if not folder.is_dir():
        raise UserError(f"{folder}: no such folder; pass a prepared or generated one")
    pairs = read_folder(folder)
    pairs.check_any_left()
    return pairs


def _sha256(entries: Sequence[PairRecord]) -> str:
    """Hash everything that the scores depend on: images and masks, eye and split of each pair."""
    digest = hashlib.sha256()
    for entry in entries:
        values = [entry.id, entry.group, entry.split, entry.fa_chroma, pair_sha256(entry)]
        digest.update(canonical_json(values).encode())
    return digest.hexdigest()


def _earlier_scores(out: Path, provenance: Scores) -> Scores | None:
    """Return the scores in OUT if they are of the same pairs and settings.

    Returns None if OUT is new or empty, holds only cached metrics, or if the rejected pairs of the same folders have
    changed. Raises UserError if OUT holds other files, or scores of other pairs.
    """
    check_folder_place(out / CACHE_NAME)
    names = {path.name for path in out.iterdir() if not path.name.startswith(".")} if out.is_dir() else set()
    if any((out / name).is_dir() for name in (SCORES_NAME, FIGURES_NAME)):
        raise UserError(f"{out}: {SCORES_NAME} or {FIGURES_NAME} is a folder; choose a new or empty folder for --out")
    if names and SCORES_NAME not in names and not names <= {CACHE_NAME, FIGURES_NAME}:
        raise UserError(f"{out}: contains other files; choose a new or empty folder for --out")
    if SCORES_NAME not in names:
        return None
    scores = read_json(out / SCORES_NAME)
    if scores.get("schema") != SCHEMA or not isinstance(scores.get("provenance"), dict):
        raise UserError(
            f"{out / SCORES_NAME}: written by another version of retipair, or damaged; choose another --out"
        )
    before = scores["provenance"]
    for name in ("real", "generated"):
        if _pairs_differ(name, before, provenance):
            source = "the folder has changed" if before.get(name) == provenance[name] else before.get(name)
            raise UserError(f"{out}: contains scores of other {name} pairs ({source}); choose another --out")
    intact = scores.pop("sha256", None) == json_sha256(scores) and FIGURES_NAME in names
    return scores if before == provenance and intact else None


def _pairs_differ(name: str, before: Scores, now: Scores) -> bool:
    """Return whether the pairs differ for another reason than a change of the rejected ones in the same folder."""
    rejected = f"{name}_rejected_sha256"
    same_folder = before.get(name) == now[name] and before.get(rejected) != now[rejected]
    return before.get(f"{name}_sha256") != now[f"{name}_sha256"] and not same_folder


def _measure(compared: Comparison, dist: DistributedState) -> Sets:
    config = compared.config

    def measured(name: str, entries: Sequence[PairRecord]) -> MeasuredSet:
        return measure_set(f"{name} pairs", entries, config.out / CACHE_NAME, config.workers, dist)

    if compared.generated is None:
        return Sets(measured("real", compared.real.kept), None)
    ids = set(compared.real.rejected)
    rejected = [entry for entry in compared.real.known if entry.id in ids and entry.split == "train"]
    return Sets(
        measured("real", compared.real.kept),
        measured("generated", compared.generated.kept),
        measured("rejected training", rejected) if rejected else None,
    )


# --- Deep features, reconstruction through the layouts, training


def _deep(sets: Sets, model: ImageModel) -> Scores | None:
    if sets.generated is None:
        return None
    named = {"generated pairs": sets.generated, "real pairs": sets.real}
    return deep_distances(*(deep_features(name, measured, model) for name, measured in named.items()))


def _layouts(base: Base | None, real: Sequence[PairRecord]) -> Scores:
    """Measure how well real pairs survive each layout and, with a base, also its autoencoder."""
    codecs = {"nothing": reconstruction.nothing} | ({"autoencoder": reconstruction.autoencoder(base)} if base else {})
    size = base.view_size if base else reconstruction.USUAL_SIZE
    train = [entry for entry in real if entry.split == "train"]
    return {"size": size, "rows": reconstruction.ceilings(train or real, size, codecs)}


def _add_ceiling(scores: Scores, base: Base) -> None:
    """Add an "autoencoder" column to the texture tables: real pairs after the base's layout and autoencoder."""
    for row in scores["layouts"]["rows"]:
        if (row["layout"], row["between"]) == (base.family.layout, "autoencoder"):
            for name, columns in scores["texture"][row["view"]].items():
                columns["autoencoder"] = {"mean": row[f"texture.{name}"], "low": None, "high": None, "n": row["n"]}


def _run_of(adapter: Path) -> Run:
    """Return the run that contains the folder. Raises UserError if there is none."""
    if run := run_around(adapter):
        return run
    raise UserError(f"{adapter}: not inside a run of `retipair train` (a folder with {METRICS_NAME}); omit --adapter")


def _training(run: Run, real: PairFolder) -> Scores:
    """Return the loss curves of each half, cost and settings of a step, and whether the run was trained on `real`."""
    settings, path = to_values(run.read_config()), run.folder / METRICS_NAME
    try:
        logged = run.read_metrics()
        lines = {kind: [line for line in logged if line["kind"] == kind] for kind in ("training", "validation")}
        valid = all({"step", "seconds", "mse_cf", "mse_fa"} <= set(line) for line in lines["training"])
        valid &= all({"step", "loss"} <= set(line) for line in lines["validation"])
        valid &= all(type(value) in (int, float) for line in logged for key, value in line.items() if key != "kind")
    except (KeyError, TypeError, AttributeError):
        valid = False
    if not valid or not lines["training"]:
        raise UserError(f"{path}: not a training log, or a log without training steps; omit --adapter")
    cost_settings = {name: settings[name] for name in _COST_SETTINGS} | {"memory": run.memory_strategy()}
    trained_on_real = _was_trained_on(run, real)
    return {**lines, "cost": _cost(lines["training"]), "settings": cost_settings, "trained_on_real": trained_on_real}


def _was_trained_on(run: Run, real: PairFolder) -> bool | None:
    """Return whether the run was trained on these pairs, including those rejected since; None if not recorded."""
    data = read_json(run.folder / "config.json").get("data_sha256")
    return real.has_content(data) if data else None


def _cost(lines: Sequence[Scores]) -> Scores:
    """Return seconds per step (median between training lines of the log) and peak memory in GiB."""
    marks = [(line["step"], line["seconds"]) for line in lines]
    steps = [(b[1] - a[1]) / (b[0] - a[0]) for a, b in pairwise(marks) if b[0] > a[0] and b[1] > a[1]]
    memory = [line["memory_gib"] for line in lines if "memory_gib" in line]
    return {
        "seconds_per_step": float(np.median(steps)) if steps else None,
        "memory_gib": max(memory) if memory else None,
    }


# --- Output


def _print_summary(scores: Scores) -> None:
    means = {name: row["mean"] for name, row in scores["consistency"]["correlation"].items() if row}
    columns = ", ".join(f"{name} {mean:.2f}" for name, mean in means.items())
    console.print(f"Consistency (vesselness correlation) of the two views: {columns}")
    for issue in scores["doubts"]:
        console.print(f"check {issue['id']}: {issue['text']}")
    console.print(printable(scores["headline"]))
