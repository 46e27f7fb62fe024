"""Load and check the inputs of an evaluation, and find scores that were computed earlier from the same inputs."""

import hashlib
import os
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from retipair import __version__
from retipair.config import EvaluateConfig
from retipair.data.dataset import PairFolder, PairRecord, pair_sha256, read_folder
from retipair.data.manifest import check_one_kind
from retipair.data.parquet import is_parquet_dataset
from retipair.data.rejected import REJECTED_NAME
from retipair.evaluation.metric_cache import RECIPE
from retipair.evaluation.provenance import Provenance
from retipair.evaluation.reconstruction import USUAL_SIZE
from retipair.evaluation.scores import SCHEMA, SCORES_NAME, Scores, TrainingScores
from retipair.evaluation.training_scores import read_training
from retipair.metrics import memorisation
from retipair.models.base import Base, open_base
from retipair.models.feature_extractor import ImageModel, open_image_model
from retipair.preparation.prepare import PREPARED_NAME, is_prepared, prepared_folder
from retipair.runtime.atomic_io import check_folder_place, read_json
from retipair.runtime.distributed import distributed_state
from retipair.runtime.errors import DamagedError, FileError, MissingError, OccupiedError, SettingError, UserError
from retipair.runtime.schema import canonical_json, to_values

FIGURES_NAME = "figures.csv"
CACHE_NAME = "features"


@dataclass(frozen=True)
class Comparison:
    """Inputs of an evaluation.

    config: the settings.
    real: the real pairs.
    generated: the generated pairs, if any.
    drawn_views: the pairs of --drawn_views, if given; in each, one view was drawn from the other.
    base: the base model whose autoencoder is measured, if any.
    model: the image model for deep features, if any.
    training: loss curves and cost of the run that trained the adapter, if an adapter is given.
    """

    config: EvaluateConfig
    real: PairFolder
    generated: PairFolder | None
    drawn_views: PairFolder | None
    base: Base | None
    model: ImageModel | None
    training: TrainingScores | None

    @property
    def provenance(self) -> Provenance:
        """Return a record of everything that the scores depend on: pairs, settings and versions."""
        config, generated = self.config, self.generated
        return Provenance(
            retipair=__version__,
            recipe=RECIPE,
            copy_search=memorisation.VERSION,
            real=str(config.real),
            real_sha256=pairs_sha256(self.real.kept),
            real_rejected_sha256=self.real.rejected_sha256,
            generated=str(config.generated) if config.generated else None,
            generated_sha256=pairs_sha256(generated.kept) if generated else None,
            generated_rejected_sha256=generated.rejected_sha256 if generated else None,
            base=self.base.source if self.base else None,
            base_sha256=self.base.fingerprint() if self.base else None,
            adapter=str(config.adapter) if config.adapter else None,
            step=self.training.training[-1].step if self.training else None,
            deep=str(config.deep) if config.deep else None,
            deep_sha256=self.model.sha256 if self.model else None,
            drawn_views=str(config.drawn_views) if config.drawn_views else None,
            drawn_views_sha256=pairs_sha256(self.drawn_views.kept) if self.drawn_views else None,
            drawn_views_rejected_sha256=self.drawn_views.rejected_sha256 if self.drawn_views else None,
        )


def load_comparison(config: EvaluateConfig) -> Comparison:
    """Load and check all inputs of an evaluation. Raises UserError if a setting is invalid or a folder has no pairs."""
    _check_flags(config)
    config = replace(config, real=_aligned(config))
    base = open_base(config.base) if config.base else None
    model = open_image_model(config.deep) if config.deep else None
    real, generated = _pairs(config.real), _pairs(config.generated) if config.generated else None
    drawn_views = _drawn_views(config.drawn_views, generated) if config.drawn_views else None
    for folder in (generated, drawn_views):
        if folder:
            pair = folder.entries[0]
            check_one_kind(folder.path, real.entries[0].modalities, pair.modalities, pair.id)
    training = read_training(config.adapter, real) if config.adapter else None
    if config.withhold_copies:
        _check_withholding(config, real)
    return Comparison(config, real, generated, drawn_views, base, model, training)


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
        if getattr(config, name) and config.generated is None:
            raise SettingError(name, None, "requires generated pairs; pass --generated")


def _check_withholding(config: EvaluateConfig, real: PairFolder) -> None:
    assert config.generated is not None
    if sum(entry.split == "train" for entry in real.kept) < 2:
        raise FileError(config.real, "fewer than two training pairs to compare with; omit --withhold_copies")
    if config.generated.resolve() == config.real.resolve():
        raise SettingError(
            "withhold_copies", None, "--generated is the same folder as --real, so each pair is a copy; omit the flag"
        )
    if not os.access(config.generated, os.W_OK):
        raise SettingError(
            "withhold_copies", None, f"cannot write {REJECTED_NAME}, {config.generated} is read-only; make it writable"
        )


def _aligned(config: EvaluateConfig) -> Path:
    """Return --real, or the folder into which the pairs of a data set of Parquet files are prepared, once."""
    if not is_parquet_dataset(config.real) or is_prepared(config.real):
        return config.real
    _check_out(config.out)
    with distributed_state("cpu").main_process_first():
        return prepared_folder(config.real, config.out, USUAL_SIZE)


def _pairs(folder: Path) -> PairFolder:
    """Load the pairs of a folder. Raises UserError if the folder does not exist or has no accepted pairs."""
    if not folder.is_dir():
        raise MissingError(folder, "no such folder; pass a prepared or generated one")
    pairs = read_folder(folder)
    pairs.check_any_left()
    return pairs


def _drawn_views(folder: Path, generated: PairFolder | None) -> PairFolder:
    """Load the pairs of --drawn_views.

    Raises UserError if any of them has no drawn view, or if --generated contains pairs with drawn views too.
    """
    pairs = _pairs(folder)
    if not all(entry.given for entry in pairs.kept):
        raise SettingError(
            "drawn_views", folder, "has pairs of other modes than cf2fa and fa2cf; pass it as --generated"
        )
    if generated and any(entry.given for entry in generated.kept):
        raise SettingError(
            "drawn_views", folder, "--generated also has pairs with drawn views; evaluate the two folders separately"
        )
    return pairs


# --- Earlier scores in the same folder


def earlier_scores(out: Path, provenance: Provenance) -> Scores | None:
    """Return the scores in the folder OUT if they can be reused, or None if they must be computed again.

    They can be reused if they are unedited and were computed from the same pairs, with the same settings and versions,
    and if figures.csv exists.

    Raises UserError if OUT contains unrelated files, or a scores.json that must not be overwritten: one with scores of
    other pairs, or one in another format. If the folders are the same, but their lists of rejected pairs have changed,
    the scores may be overwritten, so None is returned.
    """
    names = _check_out(out)
    if SCORES_NAME not in names:
        return None
    values = read_json(out / SCORES_NAME)
    before, now = values.get("provenance"), to_values(provenance)
    if values.get("schema") != SCHEMA or not isinstance(before, dict):
        raise DamagedError(
            out / SCORES_NAME, "written by another version of retipair, or damaged; choose another --out"
        )
    for name in ("real", "generated", "drawn_views"):
        if _pairs_differ(name, before, now):
            source = "the folder has changed" if before.get(name) == now[name] else before.get(name)
            problem = f"contains scores of other pairs for --{name} ({source})"
            problem = f"contains scores that were computed without --{name}" if source is None else problem
            raise OccupiedError(out, f"{problem}; choose another --out")
    return _intact(values) if before == now and FIGURES_NAME in names else None


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


def _intact(values: dict[str, Any]) -> Scores | None:
    """Return the scores, or None if scores.json was edited or damaged."""
    try:
        return Scores.from_json(values)
    except UserError:
        return None
