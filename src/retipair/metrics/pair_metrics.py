"""Compute all metrics of a pair, and all metrics that compare two pairs."""

from collections.abc import Iterator
from dataclasses import asdict, dataclass, field

import numpy as np

from retipair.data.pair import chroma
from retipair.metrics.anatomy import anatomy
from retipair.metrics.consistency import Consistency, consistency, mispaired
from retipair.metrics.distribution import features
from retipair.metrics.memorisation import view_descriptors
from retipair.metrics.similarity import ms_ssim
from retipair.metrics.texture import texture
from retipair.metrics.vessels import vessel_tree
from retipair.metrics.views import PairViews, PreparedView

VIEWS = ("cf", "fa")


@dataclass(frozen=True)
class PairMetrics:
    """All metrics of one pair.

    values: metric name, such as "consistency.dice" or "fa.texture.slope" -> value.
    features: the hand-crafted features, (D,) float64, see `distribution.features`.
    power: the power of CF and FA in each frequency ring, (2, 16) float64, see `spectrum.radial_power`.
    descriptors: the vessel descriptors of CF and FA, (2, 64, 64) float32, see `memorisation.view_descriptors`.
    """

    values: dict[str, float]
    features: np.ndarray
    power: np.ndarray
    descriptors: np.ndarray


@dataclass(frozen=True)
class CrossMetrics:
    """Metrics that compare two pairs.

    mispaired: the consistency of the CF of the first pair with the FA of the second pair.
    ms_ssim: "cf" -> the MS-SSIM between the two CF, "fa" -> the MS-SSIM between the two FA.
    """

    mispaired: Consistency
    ms_ssim: dict[str, float] = field(metadata={"json": "alike"})


def compute_pair_metrics(pair: PairViews) -> PairMetrics:
    """Compute all metrics of a pair."""
    views = {name: getattr(pair, name) for name in VIEWS}
    values = {f"consistency.{name}": value for name, value in asdict(consistency(pair)).items()}
    for name, view in views.items():
        values |= {f"{name}.{metric}": value for metric, value in _view_metrics(view)}
    power = np.stack([view.rings for view in views.values()])
    return PairMetrics(values, features(pair), power, view_descriptors(pair))


def compute_cross_metrics(first: PairViews, second: PairViews) -> CrossMetrics:
    """Compute the metrics that compare two pairs."""
    similarity = {name: ms_ssim(getattr(first, name).grey, getattr(second, name).grey) for name in VIEWS}
    return CrossMetrics(mispaired(first, second), similarity)


def _view_metrics(view: PreparedView) -> Iterator[tuple[str, float]]:
    yield from ((f"texture.{name}", value) for name, value in asdict(texture(view)).items())
    yield from ((f"vessels.{name}", value) for name, value in asdict(vessel_tree(view)).items())
    yield from ((f"anatomy.{name}", float(position is not None)) for name, position in vars(anatomy(view)).items())
    valid = view.inside & view.field
    inside = view.pixels[valid if valid.any() else ...]
    if view.pixels.ndim == 3:
        yield "chroma", chroma(inside)
    yield "clipped", float(((inside >= 255) | (inside <= 0)).mean())
