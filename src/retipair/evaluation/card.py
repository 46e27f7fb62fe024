"""`retipair card DIR`: write README.md, the card of a data set or of an adapter."""

from pathlib import Path

from retipair.config import CardConfig, TrainConfig
from retipair.data.card import dataset_card, model_card, write_card
from retipair.data.dataset import read_folder
from retipair.data.manifest import MANIFEST_NAME
from retipair.data.pair_facts import count_pairs, generation_settings, view_names
from retipair.data.pair_stream import open_stream
from retipair.evaluation.comparison import pairs_sha256
from retipair.evaluation.scores import SCORES_NAME, Scores, read_scores
from retipair.preparation.export_pairs import STATE_NAME, export_card, read_export
from retipair.runs.run_dir import Run
from retipair.runtime.atomic_io import read_json, shareable_name
from retipair.runtime.console import console
from retipair.runtime.errors import MissingError, SettingError
from retipair.vision.modality import RECORDED, find_modalities

_EVALUATION = "evaluation"
_TAGS = ("lora", "medical", "ophthalmology", "retina", "fundus", "fluorescein-angiography", "retipair")


def card(config: CardConfig) -> Path:
    """Write DIR/README.md and return its path.

    The card names no patient and no folder. Raises UserError if DIR is neither a folder of pairs nor a run, if the
    evaluation is of other pairs, or if DIR has a README.md that the user has written or edited.
    """
    folder = config.directory
    if (folder / MANIFEST_NAME).is_file():
        counter = count_pairs(folder, open_stream(folder))
        settings = {**counter.views, **generation_settings(folder)}
        text = dataset_card(counter.facts(), settings, _scores_of_pairs(config), files={})
    elif (folder / STATE_NAME).is_file():
        scores = _scores(config)
        text = export_card(read_export(folder), _rows(scores) if scores else {})
    elif (folder / "config.json").is_file():
        text = _model_card(Run(folder), _scores(config))
    else:
        kinds = f"no {MANIFEST_NAME}, no {STATE_NAME} of `export pairs` and no config.json of a run here"
        raise MissingError(folder, f"{kinds}; give a folder of pairs, an export of pairs, or a run")
    path = write_card(folder, text)
    print(f"{path}: fill in the licence before you publish it")
    return path


# --- Scores


def _scores(config: CardConfig) -> Scores | None:
    """Return the scores in --evaluation, or in DIR/evaluation if it exists."""
    folder = config.evaluation
    if folder is None:
        found = config.directory / _EVALUATION
        return read_scores(found) if (found / SCORES_NAME).is_file() else None
    if not (folder / SCORES_NAME).is_file():
        raise MissingError(folder, f"no {SCORES_NAME} here; give the folder that `retipair evaluate` wrote")
    return read_scores(folder)


def _scores_of_pairs(config: CardConfig) -> dict[str, str]:
    """Return the scores of the pairs in DIR, by name. Raises SettingError if the evaluation is of other pairs."""
    scores = _scores(config)
    if scores is None:
        return {}
    made_of = {scores.provenance.real_sha256, scores.provenance.generated_sha256, scores.provenance.drawn_views_sha256}
    if pairs_sha256(read_folder(config.directory).kept) in made_of:
        return _rows(scores)
    if config.evaluation:
        raise SettingError("evaluation", config.evaluation, "its scores are of other pairs; evaluate these pairs again")
    console.print(f"{config.directory / _EVALUATION}: its scores are of other pairs and are left out")
    return {}


def _rows(scores: Scores) -> dict[str, str]:
    """Return the main scores as text, by name. Sentences and ids of pairs are left out."""
    rows = {
        f"Vesselness correlation of CF and FA, {name}": f"{mean.mean:.3f} (n = {mean.n})"
        for name, mean in scores.consistency.correlation.items()
        if mean
    }
    if distance := scores.distribution:
        rows["Distance to real pairs (squared MMD)"] = f"{distance.mmd2:.4f}"
        rows["The same between halves of the real pairs"] = f"{distance.floor:.4f}"
        for name in ("precision", "recall", "density", "coverage"):
            rows[name.capitalize()] = f"{getattr(distance, name):.3f}"
    if (copies := scores.memorisation) is not None:
        rows["Copies of training pairs"] = f"{len(copies.copies)} (similarity above {copies.threshold:.3f})"
        if copies.authenticity is not None:
            rows["Authenticity"] = f"{copies.authenticity:.3f}"
    return rows


# --- Runs


def _model_card(run: Run, scores: Scores | None) -> str:
    config = run.read_config()
    base, recorded = shareable_name(config.base), read_json(run.folder / "config.json")
    modalities = find_modalities(*(str(recorded[key]).split() if key in recorded else None for key in RECORDED))
    facts: dict[str, object] = {"Base": base, "System": recorded.get("system")}
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
    return model_card(base, _TAGS, known, settings, _rows(scores) if scores else {}, _trained_on(config))


def _variant(config: TrainConfig) -> str:
    names = [name for name, used in (("DoRA", config.dora), ("rsLoRA", config.rslora)) if used]
    return " with ".join(names) or "LoRA"


def _trained_on(config: TrainConfig) -> str:
    """Return a sentence about the training pairs, as far as their folder is still there."""
    if config.data is None or not (config.data / MANIFEST_NAME).is_file():
        return "State here what it was trained on: the folder of the pairs was not found."
    facts = count_pairs(config.data, open_stream(config.data)).facts()
    return f"It was trained on {facts.kind.lower()} pairs: {facts.splits_text}."
