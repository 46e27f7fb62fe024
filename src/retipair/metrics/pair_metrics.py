"""Everything that is measured of a pair, and of two that stand beside each other, so that no image need be kept."""

from collections.abc import Iterator
from dataclasses import asdict, dataclass

import numpy as np

from retipair.data.pair import chroma
from retipair.metrics.anatomy import anatomy
from retipair.metrics.consistency import Consistency, consistency, mispaired
from retipair.metrics.distribution import features
from retipair.metrics.memorisation import vessel_prints
from retipair.metrics.similarity import ms_ssim
from retipair.metrics.texture import radial_power, texture
from retipair.metrics.vessels import vessel_tree
from retipair.metrics.views import PairViews, PreparedView

VIEWS = ("cf", "fa")


@dataclass(frozen=True)
class PairMetrics:
    """Of one pair.

    values: each figure under its name, "consistency.dice" or "fa.texture.slope"; features (D,) float64;
    power (2, 16) float64, of CF and FA in each ring of texture.BANDS; prints (2, 64, 64) float32, where the vessels of
    CF and FA lie.
    """

    values: dict[str, float]
    features: np.ndarray
    power: np.ndarray
    prints: np.ndarray


@dataclass(frozen=True)
class MispairedMetrics:
    """Of two pairs: how the CF of one and the FA of the other agree, and how alike their views are (MS-SSIM)."""

    mispaired: Consistency
    alike: dict[str, float]


def compute_pair_metrics(seen: PairViews) -> PairMetrics:
    views = {name: getattr(seen, name) for name in VIEWS}
    values = {f"consistency.{name}": value for name, value in asdict(consistency(seen)).items()}
    for name, view in views.items():
        values |= {f"{name}.{figure}": value for figure, value in _of_view(view)}
    power = np.stack([radial_power(view.grey / 255.0) for view in views.values()])
    return PairMetrics(values, features(seen), power, vessel_prints(seen))


def compute_mispaired_metrics(first: PairViews, second: PairViews) -> MispairedMetrics:
    alike = {name: ms_ssim(getattr(first, name).grey, getattr(second, name).grey) for name in VIEWS}
    return MispairedMetrics(mispaired(first, second), alike)


def _of_view(view: PreparedView) -> Iterator[tuple[str, float]]:
    yield from ((f"texture.{name}", value) for name, value in asdict(texture(view)).items())
    yield from ((f"vessels.{name}", value) for name, value in asdict(vessel_tree(view)).items())
    yield from ((f"anatomy.{name}", float(place is not None)) for name, place in vars(anatomy(view)).items())
    valid = view.inside & view.field
    inside = view.pixels[valid if valid.any() else ...]
    if view.pixels.ndim == 3:
        yield "chroma", chroma(inside)
    yield "clipped", float(((inside >= 255) | (inside <= 0)).mean())
