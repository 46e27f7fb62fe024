"""`retipair card DIR`: write README.md, the card of a data set or of an adapter."""

from pathlib import Path

from retipair.config import CardConfig, TrainConfig
from retipair.data.card import dataset_card, model_card, write_card
from retipair.data.dataset import read_folder, read_with_content
from retipair.data.manifest import MANIFEST_NAME, PreparedPair, has_manifest
from retipair.data.pair_facts import count_pairs, generation_settings, view_names
from retipair.data.pair_stream import open_stream
from retipair.data.review import REVIEW_NAME, check_reviewed
from retipair.evaluation.compared_scores import read_compared_scores
from retipair.evaluation.comparison import pairs_sha256
from retipair.evaluation.runs import is_about
from retipair.evaluation.scores import SCORES_NAME, Scores
from retipair.preparation.export_pairs import STATE_NAME, ExportState, export_card, read_export
from retipair.preparation.prepare import PREPARED_NAME
from retipair.runs.run_dir import Run
from retipair.runtime.atomic_io import read_json, shareable_name
from retipair.runtime.console import console
from retipair.runtime.errors import MissingError, SettingError, UserError
from retipair.vision.modality import RECORDED, find_modalities

_EVALUATION = "evaluation"


def card(config: CardConfig) -> Path:
    """Write DIR/README.md and return its path.

    The card names no patient and no folder. An evaluation of other pairs in DIR/evaluation is left out, with a message.
    Raises UserError if DIR is neither a folder of pairs nor an export nor a run, if --evaluation is of other pairs, or
    if DIR has a README.md that the user has written or edited.
    """
    folder = config.directory
    if config.reviewed:
        check_reviewed([folder])
    if has_manifest(folder):
        counter = count_pairs(folder, open_stream(folder, config.reviewed))
        settings = {**counter.views, **generation_settings(folder)}
        has_masks = counter.kinds == {PreparedPair}
        text = dataset_card(counter.facts(), settings, _scores_of_pairs(config), files={}, has_masks=has_masks)
    elif (folder / STATE_NAME).is_file():
        state = read_export(folder)
        text = export_card(state, _rows_of_export(config, state))
    elif (folder / "config.json").is_file():
        text = _model_card(Run(folder), _rows_of_one(config, folder.resolve()))
    else:
        kinds = f"no {MANIFEST_NAME}, no {STATE_NAME} of `export pairs` and no config.json of a run here"
        raise MissingError(folder, f"{kinds}; give a folder of pairs, an export of pairs, or a run")
    path = write_card(folder, text)
    print(f"{path}: fill in the licence before you publish it")
    return path


# --- Scores


def _scores(config: CardConfig) -> tuple[Scores, ...]:
    """Return the scores of each set in --evaluation, or in DIR/evaluation if it exists."""
    folder = config.evaluation or config.directory / _EVALUATION
    if (folder / SCORES_NAME).is_file():
        return read_compared_scores(folder).scores
    if config.evaluation:
        raise MissingError(folder, f"no {SCORES_NAME} here; give the folder that `retipair evaluate` wrote")
    return ()


def _scores_of_pairs(config: CardConfig) -> dict[str, str]:
    """Return the scores of the pairs in DIR, by name. Raises SettingError if --evaluation is of other pairs.

    Of real pairs that were compared with several sets, the scores that do not depend on the set are returned.
    """
    scores = _scores(config)
    if not scores:
        return {}
    content = pairs_sha256(read_folder(config.directory, config.reviewed).kept)
    rows = [_rows(one) for one in scores if content in _hashes(one)]
    if rows:
        return {name: text for name, text in rows[0].items() if all(other.get(name) == text for other in rows)}
    _leave_out(config, "its scores are of other pairs", f"evaluate these pairs again{_hint(config)}")
    return {}


def _hint(config: CardConfig) -> str:
    other = "without" if config.reviewed else "with"
    return f", or repeat this command {other} --reviewed" if (config.directory / REVIEW_NAME).is_file() else ""


def _hashes(scores: Scores) -> set[str | None]:
    """Return the hashes of the sets of pairs that scores are about."""
    known = scores.provenance
    return {known.real_sha256, known.generated_sha256, known.drawn_views_sha256}


def _rows_of_export(config: CardConfig, state: ExportState) -> dict[str, str]:
    """Return the scores of an export, by name. Raises SettingError if --evaluation is of another number of pairs.

    An export does not contain the hash of its pairs, so only their number is compared.
    """
    assert state.facts
    amounts = {amount for one in _scores(config) for amount in one.amounts}
    if amounts and state.facts.pairs not in amounts:
        _leave_out(config, f"its scores are not of {state.facts.pairs} pairs", "evaluate the exported pairs")
        return {}
    return _rows_of_one(config)


def _rows_of_one(config: CardConfig, run: Path | None = None) -> dict[str, str]:
    """Return the scores in the evaluation, by name; if it has several sets, those of the set that `run` generated.

    Raises SettingError if --evaluation has several sets, and the scores to take are not known.
    """
    scores = _scores(config)
    if len(scores) > 1:
        scores = tuple(one for one in scores if run and is_about(one, run))
        if len(scores) != 1:
            _leave_out(config, "it compares several sets of pairs", "give the evaluation of one set")
            return {}
    return _rows(scores[0]) if scores else {}


def _leave_out(config: CardConfig, problem: str, remedy: str) -> None:
    """Print why DIR/evaluation is left out. Raises SettingError if the user gave the evaluation as --evaluation."""
    if config.evaluation:
        raise SettingError("evaluation", config.evaluation, f"{problem}; {remedy}")
    console.print(f"{config.directory / _EVALUATION}: left out, because {problem}")


def _rows(scores: Scores) -> dict[str, str]:
    """Return the main scores as text, by name. Sentences and ids of pairs are left out."""
    rows = {
        f"Vesselness correlation of CF and FA, {name}": f"{mean.mean:.3f} (n = {mean.n})"
        for name, mean in scores.consistency.correlation.items()
        if mean
    }
    if distance := scores.distribution:
        rows["Distance to real pairs (squared MMD)"] = f"{distance.mmd2:.4f}"
        rows["The same between random halves of the real pairs (95th percentile)"] = f"{distance.floor:.4f}"
        for name in ("precision", "recall", "density", "coverage"):
            rows[name.capitalize()] = f"{getattr(distance, name):.3f}"
    if (copies := scores.memorisation) is not None:
        rows["Copies of training pairs"] = f"{len(copies.copies)} (similarity of at least {copies.threshold:.3f})"
        if copies.authenticity is not None:
            rows["Authenticity"] = f"{copies.authenticity:.3f}"
    return rows


# --- Runs


def _model_card(run: Run, scores: dict[str, str]) -> str:
    config = run.read_config()
    base, recorded = shareable_name(config.base), read_json(run.folder / "config.json")
    modalities = find_modalities(*(str(recorded[key]).split() if key in recorded else None for key in RECORDED))
    facts: dict[str, object] = {"Base": base, "Model family": recorded.get("system")}
    facts |= {"Rank": config.unet_lora_rank, "Alpha": f"{config.unet_lora_alpha:g}", "Layers": config.lora_targets}
    facts |= {"Variant": _variant(config), "Prompt": " ".join(config.prompt.split()).replace("|", "\\|")}
    best = run.folder / "best_checkpoint" / "reason.json"
    if best.is_file():
        reason = read_json(best)
        facts |= {"Best step": reason.get("step"), "Validation loss at this step": reason.get("loss")}
        facts |= {"Consistency of samples at this step": reason.get("consistency")}
    settings = {
        **{"Steps": config.max_steps, "Batch size": config.batch_size * config.gradient_accumulation_steps},
        **{"Learning rate": f"{config.learning_rate:g} ({config.lr_schedule})", "Layout": config.layout},
        **{"High-frequency loss": config.hf_lambda, "Offset noise": config.offset_noise_strength},
        **{"Half-clean samples": config.half_clean_fraction, "Prompt dropout": config.prompt_dropout},
        **{"Precision of the base": config.precision, "Seed": config.seed},
    }
    facts |= view_names(modalities)
    known = {name: value for name, value in facts.items() if value is not None}
    return model_card(base, known, settings, scores, _trained_on(run, config, str(recorded.get("data_sha256"))))


def _variant(config: TrainConfig) -> str:
    names = [name for name, used in (("DoRA", config.dora), ("rsLoRA", config.rslora)) if used]
    return " with ".join(names) or "LoRA"


def _trained_on(run: Run, config: TrainConfig, sha256: str) -> str:
    """Return a sentence about the training pairs, as far as their folder is still there."""
    folder = _training_folder(run, config.data, sha256)
    if folder is None:
        return "State here what it was trained on: the folder of the pairs was not found."
    facts = count_pairs(folder, open_stream(folder, config.reviewed)).facts()
    return f"It was trained on {facts.kind.lower()} pairs: {facts.splits_text}."


def _training_folder(run: Run, data: Path | None, sha256: str) -> Path | None:
    """Return the folder of the training pairs; of raw pairs, the folder in RESULTS/prepared with the same content."""
    if data and has_manifest(data):
        return data
    prepared = sorted((run.folder.resolve().parent.parent / PREPARED_NAME).glob("*"))
    return next((folder for folder in prepared if _has_content(folder, sha256)), None)


def _has_content(folder: Path, sha256: str) -> bool:
    try:
        return read_with_content(folder, sha256) is not None
    except UserError:  # a folder of other pairs that is damaged
        return False
