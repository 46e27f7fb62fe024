"""Draw the plots of the report as SVG elements."""

import io
import warnings
from collections.abc import Callable, Mapping
from functools import partial
from itertools import chain, cycle
from typing import Any, TypeVar

import numpy as np
from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from retipair.evaluation.scores import Means, Scores, TrainingScores
from retipair.evaluation.sets import GENERATED
from retipair.runtime.errors import printable

NAMES = {"generated": "generated", "train": "training", "val": "validation", "test": "test", "mispaired": "mispaired"}
NAMES |= {"real": "real", "autoencoder": "training, after the autoencoder"}
"""Set -> its name in the report."""
_COLOURS = {"generated": "#d9822b", "train": "#3a7ca5", "val": "#7fb069", "test": "#9b6bab", "mispaired": "#8d8d8d"}
_SET_COLOURS = (_COLOURS["generated"], "#c0392b", "#1b9e9e", "#a6761d", "#e377c2", "#5b5bd6")
"""The colours of several sets of generated pairs, in turn."""
_MAX_LABEL = 24
"""Maximum number of characters of the name of a set in a plot."""
_TEXT_COLOUR = "#010203"  # placeholder, replaced by the text colour of the report
_LEGEND_ABOVE: dict[str, Any] = {"loc": "lower right", "bbox_to_anchor": (1, 1), "ncols": 3}
"""Legend settings that place the legend above the axes, where it does not cover data."""
_STYLE: dict[Any, Any] = {
    "svg.fonttype": "none",
    "svg.hashsalt": "retipair",
    "font.family": "sans-serif",
    "legend.frameon": False,
    "axes.spines.top": False,
    "axes.spines.right": False,
    **dict.fromkeys(("text.color", "axes.edgecolor", "axes.labelcolor", "xtick.color", "ytick.color"), _TEXT_COLOUR),
}


Value = TypeVar("Value")
Sets = Mapping[str, Scores]
"""Name of a set of generated pairs -> its scores. A set alone, and real pairs alone, are named "generated"."""


def draw_plots(sets: Sets) -> dict[str, str]:
    """Return the plots of the report: name -> SVG element. All sets are drawn into the same plots."""
    first, more = next(iter(sets.values())), len(sets) - 1
    plots = {"agreement": _plot(partial(_draw_agreement, sets=sets), (6, 2.6 + 0.45 * more))}
    for view in ("cf", "fa"):
        plots[f"{view}_spectrum"] = _plot(partial(_draw_spectrum, sets=sets, view=view))
        plots[f"{view}_fine"] = _plot(partial(_draw_detail, sets=sets, view=view), (4.5, 2 + 0.35 * more))
        plots[f"{view}_thin"] = _plot(partial(_draw_thin_vessels, sets=sets, view=view), (4.5, 2 + 0.35 * more))
    if first.memorisation:
        plots["likeness"] = _plot(partial(_draw_similarity, sets=sets), (6, 2.6 + 0.2 * more))
    if first.training:
        for view in ("cf", "fa"):
            plots[f"{view}_training"] = _plot(partial(_draw_training, training=first.training, view=view))
    return plots


def _merged(sets: Sets, values_of: Callable[[Scores], Mapping[str, Value]]) -> dict[str, Value]:
    """Return the values of each set by its name, then those of the real pairs, which are the same beside all sets.

    values_of: a function that returns values by the names "generated", "train" and so on.
    """
    of_sets = {name: values_of(scores) for name, scores in sets.items()}
    generated = {name: values[GENERATED] for name, values in of_sets.items() if GENERATED in values}
    real = next(iter(of_sets.values()))
    return generated | {name: value for name, value in real.items() if name != GENERATED}


def _colours(sets: Sets) -> dict[str, str]:
    return {**_COLOURS, **dict(zip(sets, cycle(_SET_COLOURS), strict=False))}


def _label(name: str) -> str:
    """Return the name of a set as matplotlib shows it unchanged, in the middle shortened to _MAX_LABEL characters."""
    name = printable(NAMES.get(name, name))
    if len(name) > _MAX_LABEL:
        name = f"{name[: _MAX_LABEL // 2 - 1]}…{name[-_MAX_LABEL // 2 :]}"
    name = name.replace("$", r"\$")
    return f" {name}" if name.startswith("_") else name  # matplotlib's legend leaves out names that begin with "_"


def _plot(draw: Callable[[Axes], None], size: tuple[float, float] = (4.6, 2.8)) -> str:
    """Draw a plot and return it as an SVG element, which is the same in each run and has the text colour of the report.

    draw: the function that draws into the axes.
    size: width and height, in inches.
    """
    with rc_context(_STYLE):
        figure = Figure(figsize=size, layout="constrained")
        draw(figure.add_subplot())
        stream = io.StringIO()
        no_metadata = dict.fromkeys(("Date", "Creator", "Format", "Type"))
        with warnings.catch_warnings():
            # The browser draws the text, so matplotlib's own font need not have all characters of a set's name.
            warnings.filterwarnings("ignore", "Glyph .* missing from font")
            figure.savefig(stream, format="svg", transparent=True, metadata=no_metadata)
    svg = stream.getvalue()
    return svg[svg.index("<svg") :].replace(_TEXT_COLOUR, "currentColor")


def _draw_dots(axes: Axes, sets: Sets, metric: str, means_of: Callable[[Scores], Means], label: str) -> None:
    """Plot each pair as a dot and the mean of each set as a vertical bar, one row per set.

    metric: the metric of each pair, a key of `Scores.plotted`.
    means_of: a function that returns the mean of the metric over each set.
    label: the label of the x axis.
    """
    pairs, means = _merged(sets, lambda scores: scores.plotted[metric]), _merged(sets, means_of)
    colours = _colours(sets)
    for row, (name, values) in enumerate(pairs.items()):
        heights = row + 0.25 * np.array([step for step, _ in zip(cycle((-1, 0, 1)), values, strict=False)])
        axes.plot(values, heights, "o", color=colours[name], markersize=4, alpha=0.7)
        mean = means[name]
        assert mean is not None
        axes.plot(mean.mean, row, "|", color=colours[name], markersize=24)
    axes.set(xlabel=label, yticks=range(len(pairs)), ylim=(len(pairs) - 0.5, -0.5))
    axes.set_yticklabels([_label(name) for name in pairs])


def _draw_agreement(axes: Axes, sets: Sets) -> None:
    label = "consistency (vesselness correlation)"
    _draw_dots(axes, sets, "consistency.correlation", lambda scores: scores.consistency.correlation, label)
    if chance := next(iter(sets.values())).consistency.correlation["mispaired"]:
        axes.axvline(chance.mean, color=_COLOURS["mispaired"], linestyle=":", label="mispaired, mean")
        axes.legend(**_LEGEND_ABOVE)


def _draw_detail(axes: Axes, sets: Sets, view: str) -> None:
    metric, label = f"{view}.texture.fine_share", f"fraction of fine detail, {view.upper()}"
    _draw_dots(axes, sets, metric, lambda scores: scores.texture[view].fine_share, label)


def _draw_thin_vessels(axes: Axes, sets: Sets, view: str) -> None:
    metric, label = f"{view}.vessels.density_thin", f"area fraction of thin vessels, {view.upper()}"
    _draw_dots(axes, sets, metric, lambda scores: scores.vessels[view].density_thin, label)


def _draw_similarity(axes: Axes, sets: Sets) -> None:
    """Plot histograms of the similarity of each pair to its nearest training pair, and the threshold for copies."""
    searches = {name: scores.memorisation for name, scores in sets.items()}
    threshold = next(search.threshold for search in searches.values() if search)
    similarities = _merged(sets, lambda scores: scores.memorisation.similarities if scores.memorisation else {})
    bins = np.histogram_bin_edges([*chain.from_iterable(similarities.values()), threshold], 20)
    style: dict[str, Any] = {"alpha": 0.6} if len(sets) == 1 else {"histtype": "step", "linewidth": 1.5}
    for name, values in similarities.items():
        if values:
            weights = np.full(len(values), 1 / len(values))
            axes.hist(values, bins.tolist(), weights=weights, color=_colours(sets)[name], label=_label(name), **style)
    axes.axvline(threshold, color=_COLOURS["mispaired"], linestyle=":", label="threshold for copies")
    axes.set(xlabel="similarity to the nearest training pair", ylabel="fraction of pairs")
    axes.legend(**_LEGEND_ABOVE)


def _draw_spectrum(axes: Axes, sets: Sets, view: str) -> None:
    spectra: dict[str, tuple[float, ...]] = _merged(sets, lambda scores: getattr(scores.spectra, view))
    cycles, colours = next(iter(sets.values())).spectra.cycles, _colours(sets)
    for name, power in spectra.items():
        axes.loglog(cycles, power, color=colours[name], label=_label(name))
    axes.set(xlabel="cycles over 256 px", ylabel=f"power, {view.upper()}")
    axes.legend()


def _draw_training(axes: Axes, training: TrainingScores, view: str) -> None:
    """Plot training and validation error of one view by step.

    The validation error is averaged over the validation timesteps.
    """
    lines, validation = training.training, training.validation
    losses = [line.values[f"mse_{view}"] for line in lines]
    axes.plot([line.step for line in lines], losses, color=_COLOURS["train"], label="training")
    means = [np.mean([value for key, value in line.values.items() if key.endswith(f"_{view}")]) for line in validation]
    axes.plot([line.step for line in validation], means, "o-", color=_COLOURS["val"], label="validation")
    axes.set(xlabel="step", ylabel=f"mean squared error, {view.upper()}")
    axes.legend()
