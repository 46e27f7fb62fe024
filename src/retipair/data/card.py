"""Write README.md, the card of a data set or of an adapter, in the form that the Hugging Face hub reads.

The card begins with YAML (front matter). Its last line is a comment with a hash of the other lines. It shows whether a
user has edited the card, which is then not overwritten.
"""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from retipair import __version__
from retipair.data.pair_facts import FIRST, SECOND, PairFacts
from retipair.runtime.atomic_io import write_text
from retipair.runtime.errors import DamagedError, OccupiedError
from retipair.vision.modality import CF_FA, noun_of

CARD_NAME = "README.md"
_MARK = "<!-- retipair card "
_SCORES = "Evaluation"
_SIZES = ((10**3, "n<1K"), (10**4, "1K<n<10K"), (10**5, "10K<n<100K"), (10**6, "100K<n<1M"), (10**7, "1M<n<10M"))
_ORIGINS = {
    "real": "prepared from real views",
    "synthetic": "prepared from synthetic views",
    "noise": "generated from noise",
    "from_data": "variations of training pairs (`from_data`)",
    "cf2fa": "FA drawn for a given CF (`cf2fa`)",
    "fa2cf": "CF drawn for a given FA (`fa2cf`)",
}
_LICENCE = "# license: to be filled in by you, see https://huggingface.co/docs/hub/repositories-licenses"
_USE = (
    "For research only. Not for clinical use, diagnosis or treatment.",
    "## Licence\n\nTo be filled in by the owner of the data: here, and as `license` in the first lines of this file.",
)


@dataclass(frozen=True)
class Table:
    """A table of a card: a title, the names of two columns, and the rows."""

    title: str
    columns: tuple[str, str]
    rows: Mapping[str, object]

    def __str__(self) -> str:
        lines = [f"| {name} | {value} |" for name, value in self.rows.items()]
        return "\n".join([f"## {self.title}", "", "| {} | {} |".format(*self.columns), "|---|---|", *lines])


def dataset_card(
    facts: PairFacts,
    settings: Mapping[str, object],
    scores: Mapping[str, object],
    files: Mapping[str, str],
    reading: str | None = None,
    has_masks: bool = True,
) -> str:
    """Return the card of a data set.

    settings: how the pairs were generated, by name.
    scores: the results of an evaluation, by name; empty if there is none.
    files: the pattern of the files of each split, by the split's name in the library `datasets`; empty for a folder
        that is no data set of this library.
    reading: the code that reads the data set, or None.
    has_masks: whether each pair has a mask.
    """
    first, second = _views(settings)
    mask = ", with the mask of the pixels that are valid in both (`mask`)" if has_masks else ""
    made = Table("How it was made", ("Setting", "Value"), {**_provenance(facts), **settings})
    return _signed(
        _front_matter(_dataset_values(facts, settings), files),
        f"# {facts.kind} pairs of {_plural(first)} and {_plural(second)}",
        f"{facts.pairs} pairs of {first} (`cf`) and {second} (`fa`) of one eye,"
        f" aligned pixel to pixel{mask}. {_statement(facts, has_columns=bool(files))}",
        _USE[0],
        *([f"## Read it\n\n```python\n{reading}\n```"] if reading else []),
        str(Table("Pairs", ("Split", "Pairs"), facts.splits)),
        str(Table("Origin", ("Origin", "Pairs"), {_ORIGINS[name]: count for name, count in facts.origins.items()})),
        str(made),
        *([str(Table(_SCORES, ("Score", "Value"), scores))] if scores else []),
        _USE[1],
    )


def model_card(
    base: str,
    facts: Mapping[str, object],
    settings: Mapping[str, object],
    scores: Mapping[str, object],
    data: str,
) -> str:
    """Return the card of an adapter.

    base: the name of the base; facts, settings: what was trained, and how, by name.
    data: a sentence that says what the adapter was trained on.
    """
    values = {
        **({"base_model": base} if "/" in base else {}),
        **{"library_name": "diffusers", "pipeline_tag": "text-to-image"},
        "tags": ["lora", *_subject_tags(facts), "retipair"],
    }
    first, second = _views(facts)
    return _signed(
        _front_matter(values, {}),
        f"# Adapter for pairs of {_plural(first)} and {_plural(second)}",
        f"LoRA weights for the UNet of {base}. With them, it generates a joint image: {first} (CF)"
        f" and {second} (FA) of one eye, side by side. {data}",
        f"{_USE[0]} Generated images are synthetic and have no clinical validity. An adapter can memorise training"
        " pairs: if these are real, treat it as patient data.",
        str(Table("Adapter", ("Property", "Value"), facts)),
        str(Table("How it was trained", ("Setting", "Value"), settings)),
        *([str(Table(_SCORES, ("Score", "Value"), scores))] if scores else []),
        _USE[1],
    )


# --- The file


def write_card(folder: Path, text: str) -> Path:
    """Write the card of a folder and return its path. Raises UserError if a README.md of the user would be lost."""
    path = folder / CARD_NAME
    if not is_replaceable(folder):
        problem = "was edited, or was not written by `retipair card`"
        raise OccupiedError(path, f"{problem}; rename it, and copy your text into the new card")
    write_text(path, text)
    return path


def is_replaceable(folder: Path) -> bool:
    """Return whether a folder has no README.md, or one that was written by `write_card` and not edited since."""
    path = folder / CARD_NAME
    if not path.exists():
        return True
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, ValueError) as error:
        raise DamagedError(path, f"cannot be read ({error}); rename or remove it") from None
    body, _, mark = text.rpartition(_MARK)
    return mark == f"{_digest(body)} -->\n"


def has_scores(folder: Path) -> bool:
    """Return whether a folder has a README.md with the scores of an evaluation."""
    path = folder / CARD_NAME
    return path.exists() and f"\n## {_SCORES}\n" in path.read_text(encoding="utf-8")


def _signed(*parts: str) -> str:
    body = "\n\n".join([*parts, f"Written by retipair {__version__}."]) + "\n\n"
    return f"{body}{_MARK}{_digest(body)} -->\n"


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:16]


# --- Parts


def _front_matter(values: Mapping[str, object], files: Mapping[str, str]) -> str:
    lines = [f"{key}: {json.dumps(value)}" for key, value in values.items()]  # JSON is YAML
    if files:
        lines += ["configs:", "- config_name: default", "  data_files:"]
        lines += [line for name, path in files.items() for line in (f"  - split: {name}", f"    path: {path}")]
    return "\n".join(["---", _LICENCE, *lines, "---"])


def _views(rows: Mapping[str, object]) -> tuple[str, str]:
    """Return the names of the modalities of both views, with their articles, as the rows of a card state them."""
    return str(rows.get(FIRST, CF_FA.first.name)), str(rows.get(SECOND, CF_FA.second.name))


def _plural(name: str) -> str:
    return f"{noun_of(name)}s"


def _dataset_values(facts: PairFacts, settings: Mapping[str, object]) -> dict[str, object]:
    size = next((name for limit, name in _SIZES if facts.pairs < limit), "n>10M")
    tags = [*_subject_tags(settings), "image-registration", "retipair"]
    return {
        "pretty_name": f"{facts.kind} {'pairs' if FIRST in settings else 'CF-FA pairs'}",
        "task_categories": ["image-to-image"],
        "size_categories": [size],
        "tags": [*tags, *(["synthetic"] if facts.kind != "Real" else [])],
    }


def _subject_tags(rows: Mapping[str, object]) -> list[str]:
    """Return the tags of the hub that say what the images show; `rows` as for `_views`."""
    angiography = ["fluorescein-angiography"] if CF_FA.second.name in _views(rows) else []
    return ["medical", "ophthalmology", "retina", "fundus", *angiography]


def _statement(facts: PairFacts, has_columns: bool) -> str:
    """Say whether the images are synthetic, and whether they show patients.

    has_columns: whether the pairs are a data set with the column `synthetic`.
    """
    column = "; the column `synthetic` is false for pairs with such an image" if has_columns else ""
    texts = {
        "Real": "The images are real: they show patients.",
        "Real and synthetic": f"Some images are real and show patients{column}.",
        "Synthetic": "The images are synthetic.",
    }
    marked = "" if facts.kind == "Real" else " Each synthetic image states this in the metadata of its PNG file."
    depends = (
        f" {facts.sourced} pairs were made from training pairs or given views, and show their eyes: if these are "
        "real, treat the pairs as patient data."
    )
    return f"{texts[facts.kind]}{marked}{depends if facts.sourced else ''}"


def _provenance(facts: PairFacts) -> dict[str, object]:
    rows: dict[str, object] = {"Size of a view, px": ", ".join(map(str, facts.sizes))}
    if facts.bases:
        rows["Base"] = ", ".join(facts.bases)
    if facts.adapters:
        rows["Adapter (SHA-256)"] = ", ".join(facts.adapters)
    return rows | {"Mean vesselness correlation of CF and FA": facts.consistency}
