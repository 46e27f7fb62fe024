"""Render scores.json and the images of pairs as one self-contained HTML page; every number on it is a score."""

import io
import re
from base64 import b64encode
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from importlib.resources import files
from itertools import chain, cycle
from pathlib import Path
from typing import Any

import numpy as np
from jinja2 import Environment, StrictUndefined
from markupsafe import Markup, escape
from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from PIL import Image

from retipair import __version__
from retipair.data.dataset import PairRecord, read_folder
from retipair.data.pair import chessboard, load_image
from retipair.evaluation.verdict import LOGGED_MEMORY
from retipair.runtime.atomic_io import shareable_name, write_text

PAGE_NAME = "report.html"
VIEW = 320
"""View size on the page, px."""

Scores = Mapping[str, Any]
_NAMES = {"generated": "generated", "train": "training", "val": "validation", "test": "test", "mispaired": "mispaired"}
_NAMES |= {"real": "real", "autoencoder": "training, after the autoencoder"}
_COLOURS = {"generated": "#d9822b", "train": "#3a7ca5", "val": "#7fb069", "test": "#9b6bab", "mispaired": "#8d8d8d"}
_INK = "#010203"  # placeholder, replaced by the text colour of the page
_DOTS = {
    "fine": ("texture.fine_share", "fraction of fine detail"),
    "thin": ("vessels.density_thin", "area fraction of thin vessels"),
}
"""Metrics of each view that are plotted per pair."""
_LEGEND_ABOVE: dict[str, Any] = {"loc": "lower right", "bbox_to_anchor": (1, 1), "ncols": 3}
"""Place the legend above the axes, where it covers no dot."""
_STYLE: dict[Any, Any] = {
    "svg.fonttype": "none",
    "svg.hashsalt": "retipair",
    "font.family": "sans-serif",
    "legend.frameon": False,
    "axes.spines.top": False,
    "axes.spines.right": False,
    **dict.fromkeys(("text.color", "axes.edgecolor", "axes.labelcolor", "xtick.color", "ytick.color"), _INK),
}

_FOLDERS = ("real", "generated", "adapter")


@dataclass(frozen=True)
class Shown:
    """Views and checkerboard of a pair, as data URIs."""

    cf: str
    fa: str
    board: str


def write_report(out: Path, scores: Scores) -> Path:
    """Write OUT/report.html atomically from the scores and the image folders they name, and return its path.

    Raises UserError if the images of the pairs are missing.
    """
    page = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    template = files("retipair.evaluation").joinpath("report.html.j2").read_text(encoding="utf-8")
    entries = _entries(scores)
    text = page.from_string(template).render(
        scores=scores,
        provenance=_shareable(scores["provenance"]),
        version=__version__,
        names=_NAMES,
        memory_kinds=LOGGED_MEMORY,
        at=lambda *path: _at(scores, path),
        flags=_flags,
        plots={name: Markup(plot) for name, plot in _plots(scores).items()},  # safe: plots contain no user input
        generated={name: [_shown(entries, pair) for pair in part] for name, part in scores["shown"].items()},
        doubtful=[_shown(entries, pair) for pair in scores["doubtful"]],
        closest=_closest(scores, entries),
    )
    path = out / PAGE_NAME
    write_text(path, text)
    return path


def _shareable(provenance: Scores) -> Scores:
    """Shorten paths to their last parts: the page may be shared, and parent folders may contain patient names."""
    folders = {name: "/".join(Path(provenance[name]).parts[-2:]) for name in _FOLDERS if provenance[name]}
    models = {name: shareable_name(provenance[name]) for name in ("base", "deep") if provenance[name]}
    return {**provenance, **folders, **models}


def _flags(text: str) -> Markup:
    """Escape a sentence and prevent line breaks within its flags."""
    return Markup(re.sub(r"(--\w+)", r'<span class="flag">\1</span>', str(escape(text))))


def _at(scores: Scores, path: Sequence[str | int]) -> Any:
    """Return the score at a path of keys and indices, or None if a part of the path is missing."""
    value: Any = scores
    for key in path:
        if value is None or (isinstance(value, Mapping) and key not in value):
            return None
        value = value[key]
    return value


# --- Pairs


def _entries(scores: Scores) -> dict[tuple[str, str], PairRecord]:
    """Return the pairs shown on the page by (set, id), where the set of a real pair is its split."""
    shown = [*chain.from_iterable(scores["shown"].values()), *scores["doubtful"]]
    wanted = {(pair["set"], pair["id"]) for pair in shown}
    closest = (scores["memorisation"] or {}).get("closest", [])
    wanted |= {name for match in closest for name in (("generated", match["id"]), ("train", match["train_id"]))}
    folders = scores["provenance"]
    real = read_folder(Path(folders["real"])).entries
    generated = read_folder(Path(folders["generated"])).entries if folders["generated"] else []
    named: list[tuple[tuple[str, str], PairRecord]] = [((entry.split, entry.id), entry) for entry in real]
    named += [(("generated", entry.id), entry) for entry in generated]
    return {name: entry for name, entry in named if name in wanted}


def _shown(entries: Mapping[tuple[str, str], PairRecord], pair: Scores) -> Shown:
    cf, fa = _views(entries[pair["set"], pair["id"]])
    return Shown(_uri(cf), _uri(fa), _uri(chessboard(cf, fa)))


def _closest(scores: Scores, entries: Mapping[tuple[str, str], PairRecord]) -> list[tuple[str, str]]:
    """Return the closest generated pairs and their training pairs, each with CF and FA in one image."""
    closest = (scores["memorisation"] or {}).get("closest", [])
    matches = [(entries["generated", match["id"]], entries["train", match["train_id"]]) for match in closest]
    return [(_side_by_side(made), _side_by_side(known)) for made, known in matches]


def _views(entry: PairRecord) -> tuple[np.ndarray, np.ndarray]:
    """Load CF (VIEW, VIEW, 3) and FA (VIEW, VIEW), uint8."""
    views = load_image(entry.cf, "RGB"), load_image(entry.fa, "L")
    cf, fa = (np.asarray(Image.fromarray(view).resize((VIEW, VIEW), Image.Resampling.LANCZOS)) for view in views)
    return cf, fa


def _side_by_side(entry: PairRecord) -> str:
    cf, fa = _views(entry)
    return _uri(np.concatenate([cf, np.repeat(fa[..., None], 3, axis=2)], axis=1))


def _uri(image: np.ndarray) -> str:
    stream = io.BytesIO()
    Image.fromarray(image).save(stream, "JPEG", quality=88)
    return f"data:image/jpeg;base64,{b64encode(stream.getvalue()).decode()}"


# --- Plots


def _plots(scores: Scores) -> dict[str, str]:
    """Return all plots of the page as SVG elements."""
    plots = {"agreement": _plot(lambda axes: _draw_agreement(axes, scores), (6, 2.6))}
    for view in ("cf", "fa"):
        plots[f"{view}_spectrum"] = _plot(partial(_draw_spectrum, spectra=scores["spectra"], view=view))
        for name, (metric, label) in _DOTS.items():
            draw = partial(_draw_dots, scores=scores, metric=f"{view}.{metric}", label=f"{label}, {view.upper()}")
            plots[f"{view}_{name}"] = _plot(draw, (4.5, 2))
    if scores["memorisation"]:
        plots["likeness"] = _plot(lambda axes: _draw_likeness(axes, scores["memorisation"]), (6, 2.6))
    if scores["training"]:
        plots["cf_training"] = _plot(lambda axes: _draw_training(axes, scores["training"], "cf"))
        plots["fa_training"] = _plot(lambda axes: _draw_training(axes, scores["training"], "fa"))
    return plots


def _plot(draw: Callable[[Axes], None], size: tuple[float, float] = (4.6, 2.8)) -> str:
    """Return the plot as a deterministic SVG element in the text colour of the page."""
    with rc_context(_STYLE):
        figure = Figure(figsize=size, layout="constrained")
        draw(figure.add_subplot())
        stream = io.StringIO()
        no_metadata = dict.fromkeys(("Date", "Creator", "Format", "Type"))
        figure.savefig(stream, format="svg", transparent=True, metadata=no_metadata)
    svg = stream.getvalue()
    return svg[svg.index("<svg") :].replace(_INK, "currentColor")


def _draw_dots(axes: Axes, scores: Scores, metric: str, label: str) -> None:
    """Plot pairs as dots, one row per set, with the mean of each set."""
    rows = scores["dots"][metric]
    for row, (name, values) in enumerate(rows.items()):
        heights = row + 0.25 * np.array([step for step, _ in zip(cycle((-1, 0, 1)), values, strict=False)])
        axes.plot(values, heights, "o", color=_COLOURS[name], markersize=4, alpha=0.7)
        axes.plot(_mean(scores, metric, name), row, "|", color=_COLOURS[name], markersize=24)
    axes.set(xlabel=label, yticks=range(len(rows)), ylim=(len(rows) - 0.5, -0.5))
    axes.set_yticklabels([_NAMES[name] for name in rows])


def _mean(scores: Scores, metric: str, name: str) -> float:
    """Return the mean of a metric over a set: "cf.texture.slope" is stored under texture/cf/slope."""
    *view, table, short = metric.split(".")
    return float(_at(scores, [table, *view, short, name, "mean"]))


def _draw_agreement(axes: Axes, scores: Scores) -> None:
    _draw_dots(axes, scores, "consistency.correlation", "consistency (vesselness correlation)")
    if chance := scores["consistency"]["correlation"]["mispaired"]:
        axes.axvline(chance["mean"], color=_COLOURS["mispaired"], linestyle=":", label="mispaired, mean")
        axes.legend(**_LEGEND_ABOVE)


def _draw_likeness(axes: Axes, memorisation: Scores) -> None:
    """Plot the histogram of similarities to the nearest training pair, and the threshold for copies."""
    likenesses = memorisation["likenesses"]
    bins = np.histogram_bin_edges([*likenesses["generated"], *likenesses["train"], memorisation["threshold"]], 20)
    for name, values in ((name, values) for name, values in likenesses.items() if values):
        weights = np.full(len(values), 1 / len(values))
        axes.hist(values, bins.tolist(), weights=weights, color=_COLOURS[name], alpha=0.6, label=_NAMES[name])
    axes.axvline(memorisation["threshold"], color=_COLOURS["mispaired"], linestyle=":", label="threshold for copies")
    axes.set(xlabel="similarity to the nearest training pair", ylabel="fraction of pairs")
    axes.legend(**_LEGEND_ABOVE)


def _draw_spectrum(axes: Axes, spectra: Scores, view: str) -> None:
    for name, power in spectra[view].items():
        axes.loglog(spectra["cycles"], power, color=_COLOURS[name], label=_NAMES[name])
    axes.set(xlabel="cycles over 256 px", ylabel=f"power, {view.upper()}")
    axes.legend()


def _draw_training(axes: Axes, training: Scores, view: str) -> None:
    """Plot the error of one half in training, and in validation as the mean over its timesteps."""
    steps = [line["step"] for line in training["training"]]
    axes.plot(steps, [line[f"mse_{view}"] for line in training["training"]], color=_COLOURS["train"], label="training")
    lines = training["validation"]
    held_out = [np.mean([value for key, value in line.items() if key.endswith(f"_{view}")]) for line in lines]
    axes.plot([line["step"] for line in lines], held_out, "o-", color=_COLOURS["val"], label="validation")
    axes.set(xlabel="step", ylabel=f"mean squared error, {view.upper()}")
    axes.legend()
