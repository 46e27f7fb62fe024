"""Detect copies of training pairs, even if they are rotated, mirrored, scaled, shifted, brighter or noisier.

The vessels identify an eye; shading and colour depend on the camera. A pair is therefore described by a small vessel
map, its descriptor; the similarity of two pairs is the correlation of their descriptors in the pose that fits best.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from scipy import ndimage
from skimage.transform import resize

from retipair.metrics import fourier_mellin
from retipair.metrics.fourier_mellin import SIDE, Spectra, best_over_poses, spectra, unit
from retipair.metrics.views import PairViews, PreparedView

VERSION = 3
"""Increment whenever the similarity of the same two pairs changes: this invalidates cached results."""
COPY = 0.55
"""Minimum similarity of a copy.

It lies between .45, the highest similarity of a copy to another eye, and .67, the lowest similarity of a copy to its
own eye. Both were measured with 25 rendered eyes and brighter, noisier copies of them in any pose. docs/metrics.md
lists values for other eyes.
"""
AT_ONCE = 128
"""Reference descriptors per chunk: 6 MB of spectra, and about 30 MB more during a comparison."""


class DescriptorStore(Protocol):
    """A sequence of descriptors (SIDE, SIDE), which are read one at a time."""

    def __len__(self) -> int: ...
    def __getitem__(self, index: int, /) -> np.ndarray: ...


@dataclass(frozen=True)
class Nearest:
    """The index of the most similar descriptor, and the similarity: a correlation, in [-1, 1]."""

    index: int
    similarity: float


def view_descriptors(pair: PairViews) -> np.ndarray:
    """Return the descriptors of CF and FA, (2, SIDE, SIDE) float32, within the field of view that both share.

    If the shared field is less than half of one view's field, one view may be unusable (black, flat), but the other may
    still be a copy. Each view is then described within its own field; the descriptor of a view whose field is less than
    half of the other's is 0.
    """
    views = pair.cf, pair.fa
    areas = [int(view.field.sum()) for view in views]
    if 2 * int(pair.mask.sum()) >= max(areas):
        return np.stack([vessel_descriptor(view) for view in views])
    empty = np.zeros((SIDE, SIDE), np.float32)
    sized = zip(views, areas, strict=True)
    return np.stack([vessel_descriptor(view.alone) if 2 * area >= max(areas) else empty for view, area in sized])


def vessel_descriptor(view: PreparedView) -> np.ndarray:
    """Return a view's small, blurred vessel map, (SIDE, SIDE) float32: mean 0, sum of squares 1; all 0 without vessels.

    It is computed from vesselness, so brightness and noise hardly affect it.
    """
    small = resize(np.minimum(view.vesselness, 1.0), (SIDE, SIDE), anti_aliasing=True)
    inside = resize(view.inside.astype(np.float32), (SIDE, SIDE), anti_aliasing=True) > 0.5
    return unit(_flat(small, inside))


def pair_descriptor(descriptors: np.ndarray) -> np.ndarray:
    """Combine the descriptors (2, SIDE, SIDE) of both views into one for the eye, (SIDE, SIDE)."""
    return unit(descriptors.mean(axis=0))


def nearest(
    queries: DescriptorStore,
    references: DescriptorStore,
    eyes: tuple[np.ndarray, np.ndarray] | None = None,
    advance: Callable[[], None] = lambda: None,
) -> list[Nearest]:
    """Return the most similar of m >= 1 reference descriptors for each of n queries; both are read on demand.

    eyes: the eye ids of the queries (n,) and of the references (m,). Descriptors of the same eye are not compared; a
    query without a reference of another eye has similarity -1. advance: called once per query and chunk of references,
    n * ceil(m / AT_ONCE) times.
    """
    index, similarity = np.zeros(len(queries), int), np.full(len(queries), -1.0)
    for chunk, others in chunked_spectra(references):
        for row in range(len(queries)):
            correlations = best_over_poses(queries[row], others)
            if eyes is not None:
                correlations = np.where(eyes[1][chunk] == eyes[0][row], -1.0, correlations)
            if correlations.max() > similarity[row]:
                index[row], similarity[row] = chunk[correlations.argmax()], correlations.max()
            advance()
    return [Nearest(int(i), float(value)) for i, value in zip(index, similarity, strict=True)]


def chunked_spectra(descriptors: DescriptorStore) -> Iterator[tuple[range, Spectra]]:
    """Yield chunks of up to AT_ONCE descriptors: their indices, and their spectra for `best_over_poses`."""
    for begin in range(0, len(descriptors), AT_ONCE):
        chunk = range(begin, min(begin + AT_ONCE, len(descriptors)))
        yield chunk, spectra(np.stack([descriptors[i] for i in chunk]))


def best_over_shifts(a: np.ndarray, b: np.ndarray) -> float:
    """Return the highest correlation of two descriptors (SIDE, SIDE) over shifts alone, in [-1, 1]."""
    return float(fourier_mellin.best_over_shifts(a, spectra(b[None]).of_maps)[0])


def authenticity(generated: Sequence[Nearest], train: Sequence[Nearest]) -> float:
    """Return the fraction of generated pairs less similar to training pairs than training pairs are to each other.

    A generated pair counts if its similarity to its nearest training pair is lower than the similarity of that training
    pair to its nearest training pair of another eye. The fraction is about .5 for new pairs of the same distribution as
    the training pairs, and near 0 if all are copies (Alaa et al. 2022, arXiv 2102.08921, section 3.3, with similarity
    in place of distance).
    """
    return float(np.mean([pair.similarity < train[pair.index].similarity for pair in generated]))


def _flat(image: np.ndarray, inside: np.ndarray) -> np.ndarray:
    """Remove structures larger than the distances between vessels: they are similar in all fields of view."""
    weight = ndimage.gaussian_filter(inside.astype(np.float32), 4) + 1e-6
    return (image - ndimage.gaussian_filter(image * inside, 4) / weight) * inside
