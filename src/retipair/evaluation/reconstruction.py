"""Measure what real pairs lose when they are joined in a layout, optionally encoded and decoded, and split again.

A model that uses this layout and this autoencoder cannot be expected to generate better pairs than these.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, replace
from itertools import product
from typing import Any, get_args

import numpy as np

from retipair.data.dataset import PairRecord, load_pair, load_views
from retipair.data.layout import Layout, LayoutName, to_grey
from retipair.data.pair import Pair
from retipair.evaluation.scores import Reconstruction
from retipair.metrics.fidelity import Fidelity, fidelity
from retipair.metrics.texture import Texture, texture
from retipair.metrics.views import prepare_views
from retipair.models.base import Base
from retipair.models.device import one_thread
from retipair.models.vae import decode, encode_moments
from retipair.runtime.console import track
from retipair.runtime.parallel import parallel_map

Between = Callable[[np.ndarray], np.ndarray]
"""Transform of a joint image before it is split: (H, W, 3) uint8 -> (H, W, 3) uint8."""

_Row = tuple[str, str, str]
"""Layout, name of the transform ("nothing" or "autoencoder") and view."""
_Metrics = tuple[Fidelity, Texture]
"""Fidelity and texture of one view of one pair after the round trip."""

USUAL_SIZE = 512
"""px: view size if no base is given; that of SDXL and SD1.5."""
MOST = 12
"""Maximum number of pairs to measure. More pairs would take long and hardly change the means."""


def round_trip(pair: Pair, layout: Layout, between: Between) -> Pair:
    """Join the views of a pair in a layout, apply `between` to the joint image, and split it into views again."""
    cf, fa = layout.split(between(layout.join(pair.cf, pair.fa)))
    return replace(pair, cf=cf, fa=to_grey(fa)[0])


def nothing(joint: np.ndarray) -> np.ndarray:
    return joint


def autoencoder(base: Base, device: str = "cpu") -> Between:
    """Return the transform that encodes a joint image with the VAE of a base (posterior mean) and decodes it."""
    vae = base.vae(device=device)

    def reconstruct(joint: np.ndarray) -> np.ndarray:
        return np.asarray(decode(vae, encode_moments(vae, joint[None]).mean)[0])

    return reconstruct


def reconstruct(entries: Sequence[PairRecord], size: int, codecs: Mapping[str, Between]) -> tuple[Reconstruction, ...]:
    """Measure real pairs after a round trip through each layout and codec.

    Returns one row for each layout, codec and view. A row contains the mean of each metric over the measured pairs.

    entries: the real pairs. If there are more than MOST, only every second pair is measured, or every
    third, and so on.
    size: the size of a view within the joint image, px.
    codecs: name -> the transform of the joint image before it is split.
    """
    step = -(-len(entries) // MOST)
    chosen = entries[::step]
    rows: dict[_Row, list[_Metrics]] = {}
    with one_thread():
        results = parallel_map(lambda entry: list(_measure_pair(_load_at(entry, size), size, codecs)), chosen)
        for measured in track("Reconstructing real pairs", results, len(chosen)):
            for key, metrics in measured:
                rows.setdefault(key, []).append(metrics)
    return tuple(_reconstruction(*key, metrics) for key, metrics in rows.items())


def _reconstruction(layout: str, between: str, view: str, metrics: Sequence[_Metrics]) -> Reconstruction:
    """Average the metrics of all pairs for one layout, transform and view."""
    fidelities, textures = zip(*metrics, strict=True)
    means: dict[str, Any] = _means([asdict(one) for one in fidelities])
    return Reconstruction(
        layout, between, view, len(metrics), **means, texture=_means([asdict(one) for one in textures])
    )


def _load_at(entry: PairRecord, size: int) -> Pair:
    pair = load_pair(entry)
    cf, fa = load_views(entry, size)
    rows, columns = (np.arange(size) * side // size for side in pair.mask.shape)
    return replace(pair, cf=cf, fa=fa, mask=pair.mask[np.ix_(rows, columns)])


def _measure_pair(pair: Pair, size: int, codecs: Mapping[str, Between]) -> Iterator[tuple[_Row, _Metrics]]:
    before = prepare_views(pair)
    for layout, (codec, between) in product(get_args(LayoutName), codecs.items()):
        returned = round_trip(pair, Layout(layout, size), between)
        after = before if _same(pair, returned) else prepare_views(returned)
        for view, metrics in fidelity(pair, before, returned, after).items():
            yield (layout, codec, view), (metrics, texture(getattr(after, view)))


def _same(pair: Pair, other: Pair) -> bool:
    return np.array_equal(pair.cf, other.cf) and np.array_equal(pair.fa, other.fa)


def _means(metrics: Sequence[Mapping[str, float]]) -> dict[str, float | None]:
    """Return the mean of each metric over the pairs in which it is finite; None if there is no such pair.

    PSNR is infinite if a view is unchanged, and NaN if the mask is empty.
    """
    finite = {name: [row[name] for row in metrics if np.isfinite(row[name])] for name in metrics[0]}
    return {name: float(np.mean(values)) if values else None for name, values in finite.items()}
