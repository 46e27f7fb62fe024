"""What each layout, and a base's autoencoder, leave of real pairs: the ceiling of any model that is trained on them."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict
from itertools import product
from typing import get_args

import numpy as np

from retipair.data.dataset import PairRecord, load_pair, load_views
from retipair.data.layout import Layout, LayoutName, to_grey
from retipair.data.pair import Pair
from retipair.metrics.fidelity import fidelity
from retipair.metrics.texture import texture
from retipair.metrics.views import prepare_views
from retipair.models.base import Base
from retipair.models.device import one_thread
from retipair.models.vae import decode, encode_moments
from retipair.runtime.console import track
from retipair.runtime.parallel import parallel_map

Between = Callable[[np.ndarray], np.ndarray]
"""What lies between join and split: joint image (H, W, 3) uint8 -> the same."""

USUAL_SIZE = 512
"""px: of the views that SDXL and SD1.5 draw."""
MOST = 12
"""Pairs: their means hardly change with more, and each is measured five times."""


def round_trip(pair: Pair, layout: Layout, between: Between) -> Pair:
    """Joined, passed through what lies between, and split."""
    cf, fa = layout.split(between(layout.join(pair.cf, pair.fa)))
    return Pair(cf, to_grey(fa)[0], pair.mask)


def nothing(joint: np.ndarray) -> np.ndarray:
    return joint


def autoencoder(base: Base, device: str = "cpu") -> Between:
    """A base's encoder and decoder, without noise."""
    vae = base.vae(device=device)

    def through(joint: np.ndarray) -> np.ndarray:
        return np.asarray(decode(vae, encode_moments(vae, joint[None]).mean)[0])

    return through


def ceilings(entries: Sequence[PairRecord], size: int, ways: Mapping[str, Between]) -> list[dict[str, object]]:
    """One row for each layout, way and view: the mean of each figure over at most MOST pairs, evenly chosen.

    size: of the views within the layouts, px. A row has the figures of Fidelity, and of the Texture that came back.
    """
    step = -(-len(entries) // MOST)
    chosen = entries[::step]
    rows: dict[tuple[str, str, str], list[dict[str, float]]] = {}
    with one_thread():
        found = parallel_map(lambda entry: list(_of_pair(_at(entry, size), size, ways)), chosen)
        for of_pair in track("Passing real pairs through the layouts", found, len(chosen)):
            for key, figures in of_pair:
                rows.setdefault(key, []).append(figures)
    return [
        {"layout": layout, "between": way, "view": view, "n": len(figures), **_means(figures)}
        for (layout, way, view), figures in rows.items()
    ]


def _at(entry: PairRecord, size: int) -> Pair:
    pair = load_pair(entry)
    cf, fa = load_views(entry, size)
    rows, columns = (np.arange(size) * side // size for side in pair.mask.shape)
    return Pair(cf, fa, pair.mask[np.ix_(rows, columns)])


def _of_pair(
    pair: Pair, size: int, ways: Mapping[str, Between]
) -> Iterator[tuple[tuple[str, str, str], dict[str, float]]]:
    before = prepare_views(pair)
    for name, (way, between) in product(get_args(LayoutName), ways.items()):
        returned = round_trip(pair, Layout(name, size), between)
        after = before if _same(pair, returned) else prepare_views(returned)
        for view, figures in fidelity(pair, before, returned, after).items():
            texture_after = {f"texture.{key}": value for key, value in asdict(texture(getattr(after, view))).items()}
            yield (name, way, view), asdict(figures) | texture_after


def _same(pair: Pair, other: Pair) -> bool:
    return np.array_equal(pair.cf, other.cf) and np.array_equal(pair.fa, other.fa)


def _means(figures: Sequence[Mapping[str, float]]) -> dict[str, float | None]:
    """Of each figure over the pairs that have it; None where none has: nothing was lost (infinite dB), or seen."""
    numbers = {name: [one[name] for one in figures if np.isfinite(one[name])] for name in figures[0]}
    return {name: float(np.mean(values)) if values else None for name, values in numbers.items()}
