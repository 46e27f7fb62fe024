"""Draw the plots of the report as SVG elements."""

import io
from collections.abc import Callable
from functools import partial
from itertools import cycle
from typing import Any

import numpy as np
from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from retipair.evaluation.scores import Means, Memorisation, Scores, TrainingScores

NAMES = {"generated": "generated", "train": "training", "val": "validation", "test": "test", "mispaired": "mispaired"}
NAMES |= {"real": "real", "autoencoder": "training, after the autoencoder"}
"""Set -> its name in the report."""
_COLOURS = {"generated": "#d9822b", "train": "#3a7ca5", "val": "#7fb069", "test": "#9b6bab", "mispaired": "#8d8d8d"}
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


def draw_plots(scores: Scores) -> dict[str, str]:
    """Return the plots of the report: name -> SVG element."""
    plots = {"agreement": _plot(partial(_draw_agreement, scores=scores), (6, 2.6))}
    for view in ("cf", "fa"):
        plots[f"{view}_spectrum"] = _plot(partial(_draw_spectrum, scores=scores, view=view))
        plots[f"{view}_fine"] = _plot(partial(_draw_detail, scores=scores, view=view), (4.5, 2))
        plots[f"{view}_thin"] = _plot(partial(_draw_thin_vessels, scores=scores, view=view), (4.5, 2))
    if scores.memorisation:
        plots["likeness"] = _plot(partial(_draw_similarity, memorisation=scores.memorisation), (6, 2.6))
    if scores.training:
        for view in ("cf", "fa"):
            plots[f"{view}_training"] = _plot(partial(_draw_training, training=scores.training, view=view))
    return plots


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
        figure.savefig(stream, format="svg", transparent=True, metadata=no_metadata)
    svg = stream.getvalue()
    return svg[svg.index("<svg") :].replace(_TEXT_COLOUR, "currentColor")


def _draw_dots(axes: Axes, pairs: dict[str, tuple[float, ...]], means: Means, label: str) -> None:
    """Plot each pair as a dot and the mean of each set as a vertical bar, one row per set.

    pairs: set -> the metric of each pair.
    means: set -> the mean of the metric.
    label: the label of the x axis.
    """
    for row, (name, values) in enumerate(pairs.items()):
        heights = row + 0.25 * np.array([step for step, _ in zip(cycle((-1, 0, 1)), values, strict=False)])
        axes.plot(values, heights, "o", color=_COLOURS[name], markersize=4, alpha=0.7)
        mean = means[name]
        assert mean is not None
        axes.plot(mean.mean, row, "|", color=_COLOURS[name], markersize=24)
    axes.set(xlabel=label, yticks=range(len(pairs)), ylim=(len(pairs) - 0.5, -0.5))
    axes.set_yticklabels([NAMES[name] for name in pairs])


def _draw_agreement(axes: Axes, scores: Scores) -> None:
    correlation = scores.consistency.correlation
    _draw_dots(axes, scores.plotted["consistency.correlation"], correlation, "consistency (vesselness correlation)")
    if chance := correlation["mispaired"]:
        axes.axvline(chance.mean, color=_COLOURS["mispaired"], linestyle=":", label="mispaired, mean")
        axes.legend(**_LEGEND_ABOVE)


def _draw_detail(axes: Axes, scores: Scores, view: str) -> None:
    pairs, means = scores.plotted[f"{view}.texture.fine_share"], scores.texture[view].fine_share
    _draw_dots(axes, pairs, means, f"fraction of fine detail, {view.upper()}")


def _draw_thin_vessels(axes: Axes, scores: Scores, view: str) -> None:
    pairs, means = scores.plotted[f"{view}.vessels.density_thin"], scores.vessels[view].density_thin
    _draw_dots(axes, pairs, means, f"area fraction of thin vessels, {view.upper()}")


def _draw_similarity(axes: Axes, memorisation: Memorisation) -> None:
    """Plot histograms of the similarity of each pair to its nearest training pair, and the threshold for copies."""
    sets, threshold = memorisation.similarities, memorisation.threshold
    bins = np.histogram_bin_edges([*sets["generated"], *sets["train"], threshold], 20)
    for name, values in sets.items():
        if values:
            weights = np.full(len(values), 1 / len(values))
            axes.hist(values, bins.tolist(), weights=weights, color=_COLOURS[name], alpha=0.6, label=NAMES[name])
    axes.axvline(threshold, color=_COLOURS["mispaired"], linestyle=":", label="threshold for copies")
    axes.set(xlabel="similarity to the nearest training pair", ylabel="fraction of pairs")
    axes.legend(**_LEGEND_ABOVE)


def _draw_spectrum(axes: Axes, scores: Scores, view: str) -> None:
    for name, power in getattr(scores.spectra, view).items():
        axes.loglog(scores.spectra.cycles, power, color=_COLOURS[name], label=NAMES[name])
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
