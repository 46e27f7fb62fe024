"""Load and check the inputs of an evaluation, and find scores that were computed earlier from the same inputs."""

import hashlib
import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

from retipair import __version__
from retipair.config import EvaluateConfig
from retipair.data.dataset import PairFolder, PairRecord, pair_sha256, read_folder
from retipair.data.manifest import check_one_kind, has_manifest
from retipair.data.pair_facts import generation_settings
from retipair.data.parquet import is_parquet_dataset
from retipair.data.rejected import REJECTED_NAME
from retipair.data.review import REVIEW_NAME, check_reviewed
from retipair.evaluation.compared_scores import SETS_SCHEMA, ComparedScores
from retipair.evaluation.metric_cache import RECIPE
from retipair.evaluation.provenance import Provenance
from retipair.evaluation.reconstruction import USUAL_SIZE
from retipair.evaluation.scores import SCHEMA, SCORES_NAME, Scores, TrainingScores
from retipair.evaluation.sets import GENERATED, set_names
from retipair.evaluation.training_scores import check_made_by, read_training
from retipair.metrics import memorisation
from retipair.models.base import Base, open_base
from retipair.models.feature_extractor import ImageModel, open_image_model
from retipair.preparation.prepare import PREPARED_NAME, prepared_folder
from retipair.runtime.atomic_io import check_folder_place, read_json, shareable_name
from retipair.runtime.console import console
from retipair.runtime.distributed import distributed_state
from retipair.runtime.errors import DamagedError, FileError, MissingError, OccupiedError, SettingError, UserError
from retipair.runtime.schema import canonical_json, json_sha256, to_values

FIGURES_NAME = "figures.csv"
CACHE_NAME = "features"


@dataclass(frozen=True)
class Comparison:
    """Inputs of the evaluation of one set of generated pairs, or of real pairs alone.

    config: the settings.
    provenance: a record of everything that the scores depend on: pairs, settings and versions.
    real: the real pairs.
    generated: the generated pairs, if any.
    drawn_views: the pairs of --drawn_views, if given; in each, one view was drawn from the other.
    base: the base model whose autoencoder is measured, if any.
    model: the image model for deep features, if any.
    training: loss curves and cost of the run that trained the adapter, if an adapter is given.
    """

    config: EvaluateConfig
    provenance: Provenance
    real: PairFolder
    generated: PairFolder | None
    drawn_views: PairFolder | None
    base: Base | None
    model: ImageModel | None
    training: TrainingScores | None

    def with_generated(self, generated: PairFolder) -> "Comparison":
        """Return the same inputs with these generated pairs."""
        provenance = replace(
            self.provenance,
            generated=str(generated.path),
            generated_sha256=pairs_sha256(generated.kept),
            generated_rejected_sha256=generated.rejected_sha256,
        )
        return replace(self, generated=generated, provenance=provenance)


def load_comparisons(config: EvaluateConfig) -> dict[str, Comparison]:
    """Load and check all inputs of an evaluation, and return those of each set of generated pairs, by its name.

    Without generated pairs, the only name is "generated" too.
    Raises UserError if a setting is invalid or a folder has no pairs.
    """
    _check_flags(config)
    config = replace(config, real=_aligned(config))
    if config.reviewed:
        check_reviewed([config.real, *config.generated, config.drawn_views])
        _report_unreviewed(config.generated)
    base = open_base(config.base) if config.base else None
    model = open_image_model(config.deep) if config.deep else None
    pairs = partial(_pairs, reviewed=config.reviewed)
    real, generated = pairs(config.real), [pairs(folder) for folder in config.generated]
    drawn_views = pairs(config.drawn_views) if config.drawn_views else None
    if drawn_views:
        _check_drawn_views(drawn_views, generated)
    for folder in (*generated, *([drawn_views] if drawn_views else [])):
        pair = folder.entries[0]
        check_one_kind(folder.path, real.entries[0].modalities, pair.modalities, pair.id)
    training = read_training(config.adapter, real) if config.adapter else None
    if config.adapter and len(generated) > 1:
        check_made_by(config.adapter, config.generated)
    if config.withhold_copies:
        _check_withholding(config, real)
    provenance = Provenance(
        retipair=__version__,
        recipe=RECIPE,
        copy_search=memorisation.VERSION,
        real=str(config.real),
        real_sha256=pairs_sha256(real.kept),
        real_rejected_sha256=real.rejected_sha256,
        generated=None,
        generated_sha256=None,
        generated_rejected_sha256=None,
        base=base.source if base else None,
        base_sha256=base.fingerprint() if base else None,
        adapter=str(config.adapter) if config.adapter else None,
        step=training.training[-1].step if training else None,
        deep=str(config.deep) if config.deep else None,
        deep_sha256=model.sha256 if model else None,
        drawn_views=str(config.drawn_views) if config.drawn_views else None,
        drawn_views_sha256=pairs_sha256(drawn_views.kept) if drawn_views else None,
        drawn_views_rejected_sha256=drawn_views.rejected_sha256 if drawn_views else None,
    )
    alone = Comparison(config, provenance, real, None, drawn_views, base, model, training)
    if not generated:
        return {GENERATED: alone}
    named = zip(set_names(config.generated), generated, strict=True)
    return {name: alone.with_generated(pairs) for name, pairs in named}


def set_settings(folder: Path) -> dict[str, str]:
    """Return how a set was generated: name of a setting -> value; {} for a folder without settings.json.

    Prompts, which may name patients, are replaced by a hash.
    """
    path = folder / "settings.json"
    saved = read_json(path) if path.is_file() else {}
    named = {
        "Base": saved.get("base") and shareable_name(str(saved["base"])),
        "Adapter (hash)": str(saved.get("adapter_sha256") or "none")[:12],
        "Mode": saved.get("mode"),
        "Size of a view, px": saved.get("size"),
        "Prompts (hash)": json_sha256(saved.get("prompts"))[:12],
    }
    return {name: str(value) for name, value in named.items() if value} | generation_settings(folder) if saved else {}


def pairs_sha256(entries: Sequence[PairRecord]) -> str:
    """Return a hash of these pairs, by which earlier scores of the same pairs are recognised.

    It covers the id, the patient or eye, the split, the FA chroma, the images and the mask of each pair. For a pair
    with a drawn view, it also covers the mode and the id of the source.
    """
    digest = hashlib.sha256()
    for entry in entries:
        values: list[Any] = [entry.id, entry.group, entry.split, entry.fa_chroma, pair_sha256(entry)]
        values += [entry.mode, entry.source_id] if entry.given else []
        values += entry.modalities.hashed
        digest.update(canonical_json(values).encode())
    return digest.hexdigest()


def _check_flags(config: EvaluateConfig) -> None:
    if config.workers < 0:
        raise SettingError("workers", config.workers, "must be 0 (all cores) or more")
    for name in ("withhold_copies", "deep"):
        if getattr(config, name) and not config.generated:
            raise SettingError(name, None, "requires generated pairs; pass --generated")
    if config.drawn_views and len(config.generated) > 1:
        problem = "only with one --generated; with several, pass this folder as one of them"
        raise SettingError("drawn_views", config.drawn_views, f"{problem}: its drawn views are compared too")
    places: dict[Path, Path] = {}
    for folder in config.generated:
        if (other := places.setdefault(folder.resolve(), folder)) is not folder:
            raise SettingError("generated", folder, f"is the same folder as {other}; give each folder once")


def _check_withholding(config: EvaluateConfig, real: PairFolder) -> None:
    if sum(entry.split == "train" for entry in real.kept) < 2:
        raise FileError(config.real, "fewer than two training pairs to compare with; omit --withhold_copies")
    for folder in config.generated:
        if folder.resolve() == config.real.resolve():
            problem = "--generated is the same folder as --real, so each pair is a copy; omit the flag"
            raise SettingError("withhold_copies", None, problem)
        if not os.access(folder, os.W_OK):
            problem = f"cannot write {REJECTED_NAME}, {folder} is read-only; make it writable"
            raise SettingError("withhold_copies", None, problem)


def _aligned(config: EvaluateConfig) -> Path:
    """Return --real, or the folder into which the pairs of a data set of Parquet files are prepared, once."""
    if not is_parquet_dataset(config.real) or has_manifest(config.real):
        return config.real
    _check_out(config.out)
    with distributed_state("cpu").main_process_first():
        return prepared_folder(config.real, config.out, USUAL_SIZE)


def _report_unreviewed(folders: Sequence[Path]) -> None:
    """Print a warning if only some of the compared sets of generated pairs were reviewed."""
    unreviewed = [folder for folder in folders if not (folder / REVIEW_NAME).is_file()]
    for folder in unreviewed if len(unreviewed) < len(folders) else ():
        console.print(f"warning: {folder} has no {REVIEW_NAME}: no review leaves out its pairs")


def _pairs(folder: Path, reviewed: bool) -> PairFolder:
    """Load the pairs of a folder. Raises UserError if the folder does not exist or has no accepted pairs."""
    if not folder.is_dir():
        raise MissingError(folder, "no such folder; pass a prepared or generated one")
    pairs = read_folder(folder, reviewed)
    pairs.check_any_left()
    return pairs


def _check_drawn_views(pairs: PairFolder, generated: Sequence[PairFolder]) -> None:
    """Raise UserError if --drawn_views has pairs without a drawn view, or if --generated has pairs with one, too."""
    folder = pairs.path
    if not all(entry.given for entry in pairs.kept):
        raise SettingError(
            "drawn_views", folder, "has pairs of other modes than cf2fa and fa2cf; pass it as --generated"
        )
    if any(entry.given for other in generated for entry in other.kept):
        raise SettingError(
            "drawn_views", folder, "--generated also has pairs with drawn views; evaluate the two folders separately"
        )


# --- Earlier scores in the same folder


def earlier_scores(out: Path, provenances: Mapping[str, Provenance]) -> dict[str, Scores]:
    """Return those scores in the folder OUT that can be reused, by the name of the set.

    Scores can be reused if they are unedited and were computed from the same pairs, settings and versions.
    None is reused if figures.csv must be written again: if it is missing, or if only the names or the order of the sets
    have changed.

    Raises UserError if OUT contains unrelated files, or a scores.json that must not be overwritten: one with scores of
    other pairs, or one in another format. If the folders are the same, but their lists of rejected pairs have changed,
    the scores may be overwritten. Sets may be added, but not left out.

    provenances: name of a set -> its provenance now.
    """
    names = _check_out(out)
    if SCORES_NAME not in names:
        return {}
    values = read_json(out / SCORES_NAME)
    now = {name: to_values(provenance) for name, provenance in provenances.items()}
    for before in _stored_provenances(out / SCORES_NAME, values):
        _check_same_pairs(out, before, now.values())
    earlier = _intact(values)
    if earlier is None or FIGURES_NAME not in names:
        return {}
    known = {canonical_json(to_values(scores.provenance)): scores for scores in earlier.scores}
    reusable = {name: known[key] for name, one in now.items() if (key := canonical_json(one)) in known}
    return {} if len(reusable) == len(now) and list(earlier.names) != list(now) else reusable


def _stored_provenances(path: Path, values: dict[str, Any]) -> list[dict[str, Any]]:
    """Return the provenance of each set in scores.json, as JSON values."""
    of_sets = values.get("scores") if values.get("schema") == SETS_SCHEMA else [values]
    if values.get("schema") in (SCHEMA, SETS_SCHEMA) and isinstance(of_sets, list):
        found = [one.get("provenance") if isinstance(one, dict) else None for one in of_sets]
        known = [one for one in found if isinstance(one, dict)]
        if known and len(known) == len(found):
            return known
    raise DamagedError(path, "written by another version of retipair, or damaged; choose another --out")


def _check_same_pairs(out: Path, before: dict[str, Any], provenances: Iterable[dict[str, Any]]) -> None:
    """Raise UserError unless a provenance names the same pairs as the provenance `before` in OUT (JSON values)."""
    folders = ("real", "generated", "drawn_views")
    differing = [([name for name in folders if _pairs_differ(name, before, now)], now) for now in provenances]
    names, now = min(differing, key=lambda one: (len(one[0]), one[1]["generated"] != before.get("generated")))
    if not names:
        return
    name = names[0]
    source = "the folder has changed" if before.get(name) == now[name] else before.get(name)
    problem = f"contains scores of other pairs for --{name} ({source})"
    problem = f"contains scores that were computed without --{name}" if source is None else problem
    raise OccupiedError(out, f"{problem}; choose another --out")


def _check_out(out: Path) -> set[str]:
    """Return the names of the files in OUT. Raises UserError if OUT is not empty and not written by `evaluate`."""
    check_folder_place(out / CACHE_NAME)
    names = {path.name for path in out.iterdir() if not path.name.startswith(".")} if out.is_dir() else set()
    if any((out / name).is_dir() for name in (SCORES_NAME, FIGURES_NAME)):
        raise OccupiedError(out, f"{SCORES_NAME} or {FIGURES_NAME} is a folder; choose a new or empty folder for --out")
    if names and SCORES_NAME not in names and not names <= {CACHE_NAME, FIGURES_NAME, PREPARED_NAME}:
        problem = f"contains files, but no {SCORES_NAME} of `retipair evaluate`"
        raise OccupiedError(out, f"{problem}; choose a new or empty folder for --out")
    return names


def _pairs_differ(name: str, before: dict[str, Any], now: dict[str, Any]) -> bool:
    """Return whether two provenances (JSON values) name different pairs.

    The pairs count as the same if their hashes are equal, or if both provenances name the same folder and its list of
    rejected pairs differs: in that case, the hashes differ even if no pair has changed.

    name: the folder to compare: "real", "generated" or "drawn_views".
    """
    rejected = f"{name}_rejected_sha256"
    same_folder = before.get(name) == now[name] and before.get(rejected) != now[rejected]
    return before.get(f"{name}_sha256") != now[f"{name}_sha256"] and not same_folder


def _intact(values: dict[str, Any]) -> ComparedScores | None:
    """Return the scores, or None if scores.json was edited or damaged."""
    try:
        return ComparedScores.from_json(values)
    except UserError:
        return None
