"""Write the report: one self-contained HTML page with images of pairs and the numbers in scores.json."""

import io
import re
from base64 import b64encode
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from importlib.resources import files
from itertools import chain, zip_longest
from pathlib import Path
from typing import Any

import numpy as np
from jinja2 import Environment, StrictUndefined
from markupsafe import Markup, escape
from PIL import Image

from retipair import __version__
from retipair.data.dataset import PairRecord, read_folder
from retipair.data.pair import chessboard, load_image, to_rgb
from retipair.data.selection import evenly_spaced_indices
from retipair.evaluation.advice import FEW
from retipair.evaluation.checks import LOGGED_MEMORY
from retipair.evaluation.compared_scores import ComparedScores, differing_names
from retipair.evaluation.drawn_scores import DrawnExample
from retipair.evaluation.plots import NAMES, draw_plots
from retipair.evaluation.provenance import Provenance
from retipair.evaluation.scores import Conclusion, ExamplePair, Scores
from retipair.evaluation.sets import GENERATED
from retipair.runs.run_dir import run_around
from retipair.runtime.atomic_io import last_parts, shareable_name, write_text
from retipair.runtime.schema import to_values

PAGE_NAME = "report.html"
VIEW = 320
"""px: size of a view in the report."""

_MAX_SAMPLES = 6
_FOLDERS = ("real", "generated", "drawn_views", "adapter")
_Entries = Mapping[tuple[str, str], PairRecord]
"""(set, id) -> pair. The set is "generated", "drawn_views", or the split of a real pair."""


@dataclass(frozen=True)
class Shown:
    """Images of a pair as data URIs: CF, FA, and a checkerboard of tiles from both."""

    cf: str
    fa: str
    board: str


@dataclass(frozen=True)
class ShownDrawing:
    """Images of a pair of which one view was drawn, as data URIs. true_view: None if it is unknown.

    names: the names of the given and of the drawn view, "CF" or "FA".
    """

    given_view: str
    drawn_view: str
    true_view: str | None
    names: tuple[str, str]


@dataclass(frozen=True)
class ShownSet:
    """What the page shows of a set of generated pairs, or of real pairs alone.

    name: the name of the set; "" if there is only one.
    root: the path of its scores in scores.json.
    findings: its verdict, without the findings that all sets share.
    examples: the images of `Scores.examples`.
    closest: the images of `Scores.closest`, each with that of the training pair.
    drawings: the images of the examples in `Scores.drawn_views`.
    """

    name: str
    root: list[str | int]
    scores: Scores
    findings: list[Conclusion]
    provenance: dict[str, Any]
    examples: dict[str, list[Shown]]
    closest: list[tuple[str, str]]
    drawings: dict[str, list[ShownDrawing]]

    @property
    def prefix(self) -> str:
        """The beginning of a sentence about one of several sets."""
        return f"{self.name}: " if self.name else ""


@dataclass(frozen=True)
class Column:
    """A column of a table. root: the path of the scores that it shows; key: the name of the set in these scores."""

    root: list[str | int]
    key: str
    label: str


def write_report(out: Path, compared: ComparedScores) -> Path:
    """Write OUT/report.html atomically and return its path.

    The images come from the folders named in the provenance of the scores. Raises UserError if images are missing.
    """
    page = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    template = files("retipair.evaluation").joinpath("report.html.j2").read_text(encoding="utf-8")
    first, values, shared = compared.scores[0], compared.to_json(), _shared_findings(compared)
    sets = [_shown_set(compared, index, shared) for index in range(len(compared.names))]
    text = page.from_string(template).render(
        compared=compared,
        sets=sets,
        scores=first,
        root=sets[0].root,
        title=", ".join(compared.names) if compared.several else sets[0].provenance["generated"],
        provenance=sets[0].provenance,
        provenances=_split_provenance(sets),
        version=__version__,
        legend=read_folder(Path(first.provenance.real)).entries[0].modalities.legend,
        names=NAMES,
        memory_kinds=LOGGED_MEMORY,
        at=lambda *path: _at(values, path),
        expand=lambda keys, of=None: _columns(sets, keys, of),
        flags=_unbroken_flags,
        # Matplotlib escapes the names of sets, the only user input in plots.
        plots={name: Markup(plot) for name, plot in draw_plots(compared.sets).items()},
        examples=_rows_of_examples(sets),
        shared_findings=shared,
        few=FEW,
        suspect_pairs=[_shown(_entries(first), pair) for pair in first.suspect_pairs],
        samples=_samples(first.provenance.adapter),
    )
    path = out / PAGE_NAME
    write_text(path, text)
    return path


def _shared_findings(compared: ComparedScores) -> list[Conclusion]:
    """Return the findings that are the same for all of several sets, such as those about the real pairs."""
    first, *others = ([replace(one, advice="") for one in scores.verdict] for scores in compared.scores)
    return [one for one in first if all(one in verdict for verdict in others)] if others else []


def _shown_set(compared: ComparedScores, index: int, shared: Sequence[Conclusion]) -> ShownSet:
    scores = compared.scores[index]
    entries = _entries(scores)
    return ShownSet(
        name=compared.names[index] if compared.several else "",
        root=["scores", index] if compared.several else [],
        scores=scores,
        findings=[one for one in scores.verdict if replace(one, advice="") not in shared],
        provenance=_shareable(scores.provenance),
        examples={group: [_shown(entries, pair) for pair in part] for group, part in scores.examples.items()},
        closest=_closest(scores, entries),
        drawings={
            mode: [_drawing(entries, _drawn_set(scores), one) for one in shown.examples]
            for mode, shown in scores.drawn_views.items()
        },
    )


def _columns(sets: Sequence[ShownSet], keys: Sequence[str], root: list[str | int] | None) -> list[Column]:
    """Return the columns of a table: of each set for the key "generated", else of the real pairs beside all sets.

    root: the path of the scores of the real pairs; None for those in the first set.
    """
    columns = []
    for key in keys:
        if key == GENERATED:
            columns += [Column(one.root, key, one.name or NAMES[key]) for one in sets]
        else:
            columns.append(Column(sets[0].root if root is None else root, key, NAMES[key]))
    return columns


def _rows_of_examples(sets: Sequence[ShownSet]) -> dict[str, list[list[tuple[ShownSet, int, Shown]]]]:
    """Return the example pairs of each group in rows. Of several sets, a row has the pair of the same rank of each."""
    groups = {group: [one for one in sets if group in one.examples] for group in ("best", "middle", "worst", "all")}
    pairs = {
        group: [[(one, rank, shown) for rank, shown in enumerate(one.examples[group])] for one in having]
        for group, having in groups.items()
        if having
    }
    if len(sets) == 1:
        return pairs
    return {group: [list(filter(None, row)) for row in zip_longest(*of_sets)] for group, of_sets in pairs.items()}


def _split_provenance(sets: Sequence[ShownSet]) -> dict[str, dict[str, Any]]:
    """Return what is equal in the provenance of all sets, by "", and the rest of each of several sets, by its name."""
    first = sets[0].provenance
    differing = differing_names(first, [one.provenance for one in sets])
    common = {name: value for name, value in first.items() if name not in differing}
    return {"": common} | {one.name: {name: one.provenance[name] for name in differing} for one in sets if one.name}


def _shareable(provenance: Provenance) -> dict[str, Any]:
    """Return the provenance with paths shortened to their last parts.

    The report may be shared, and names of parent folders may contain names of patients.
    """
    values = to_values(provenance)
    folders = {name: last_parts(values[name]) for name in _FOLDERS if values[name]}
    models = {name: shareable_name(values[name]) for name in ("base", "deep") if values[name]}
    return {**values, **folders, **models}


def _unbroken_flags(text: str) -> Markup:
    """Escape a text for HTML, and prevent line breaks within command-line flags such as "--max_steps"."""
    return Markup(re.sub(r"(--\w+)", r'<span class="flag">\1</span>', str(escape(text))))


def _at(values: Any, path: Sequence[str | int]) -> Any:
    """Return the value at a path of keys and indices in nested JSON values, or None if a key of the path is missing."""
    value = values
    for key in path:
        if value is None or (isinstance(value, Mapping) and key not in value):
            return None
        value = value[key]
    return value


# --- Pairs


def _entries(scores: Scores) -> _Entries:
    """Return the pairs whose images the report shows."""
    shown = [*chain.from_iterable(scores.examples.values()), *scores.suspect_pairs]
    wanted = {(pair.set, pair.id) for pair in shown}
    wanted |= {name for pair in scores.closest for name in (("generated", pair.id), ("train", pair.train_id))}
    for drawing in chain.from_iterable(shown.examples for shown in scores.drawn_views.values()):
        wanted |= {(_drawn_set(scores), drawing.id), (drawing.split or "", drawing.true_id or "")}
    folders = scores.provenance
    real = read_folder(Path(folders.real)).entries
    named: list[tuple[tuple[str, str], PairRecord]] = [((entry.split, entry.id), entry) for entry in real]
    for name, folder in (("generated", folders.generated), ("drawn_views", folders.drawn_views)):
        named += [((name, entry.id), entry) for entry in (read_folder(Path(folder)).entries if folder else [])]
    return {name: entry for name, entry in named if name in wanted}


def _shown(entries: _Entries, pair: ExamplePair) -> Shown:
    entry = entries[pair.set, pair.id]
    cf, fa = _views(entry.cf, entry.fa)
    return Shown(_uri(cf), _uri(fa), _uri(chessboard(cf, fa)))


def _drawn_set(scores: Scores) -> str:
    """Return the name of the set that contains the drawn views."""
    return "drawn_views" if scores.provenance.drawn_views else "generated"


def _drawing(entries: _Entries, name: str, example: DrawnExample) -> ShownDrawing:
    generated = entries[name, example.id]
    given, other = (0, 1) if generated.given == "cf" else (1, 0)
    images, names = [_uri(view) for view in _views(generated.cf, generated.fa)], ("CF", "FA")
    true = None
    if example.split and example.true_id:
        real = entries[example.split, example.true_id]
        true = _uri(_views(real.cf, real.fa)[other])
    return ShownDrawing(images[given], images[other], true, (names[given], names[other]))


def _closest(scores: Scores, entries: _Entries) -> list[tuple[str, str]]:
    """Return the images of the generated pairs most similar to training pairs, each with that training pair's image.

    An image is a data URI and shows CF and FA side by side.
    """
    pairs = [(entries["generated", pair.id], entries["train", pair.train_id]) for pair in scores.closest]
    return [(_side_by_side(one.cf, one.fa), _side_by_side(train.cf, train.fa)) for one, train in pairs]


def _samples(adapter: str | None) -> list[tuple[int, str]]:
    """Return (step, image) of the first sample pair at up to 6 evenly spaced validations of the adapter's run.

    An image is a data URI and shows CF and FA side by side.
    """
    run = run_around(Path(adapter)) if adapter else None
    folders = run.sample_folders() if run else {}
    pairs = [(step, folder / "pair_00") for step, folder in folders.items() if (folder / "pair_00/fa.png").is_file()]
    shown = [pairs[index] for index in evenly_spaced_indices(len(pairs), _MAX_SAMPLES)]
    return [(step, _side_by_side(pair / "cf.png", pair / "fa.png")) for step, pair in shown]


def _views(cf_path: Path, fa_path: Path) -> tuple[np.ndarray, np.ndarray]:
    """Load the views of a pair and resize them: CF (VIEW, VIEW, 3) and FA (VIEW, VIEW), uint8."""
    views = load_image(cf_path, "RGB"), load_image(fa_path, "L")
    cf, fa = (np.asarray(Image.fromarray(view).resize((VIEW, VIEW), Image.Resampling.LANCZOS)) for view in views)
    return cf, fa


def _side_by_side(cf_path: Path, fa_path: Path) -> str:
    cf, fa = _views(cf_path, fa_path)
    return _uri(np.concatenate([cf, to_rgb(fa)], axis=1))


def _uri(image: np.ndarray) -> str:
    stream = io.BytesIO()
    Image.fromarray(image).save(stream, "JPEG", quality=88)
    return f"data:image/jpeg;base64,{b64encode(stream.getvalue()).decode()}"
