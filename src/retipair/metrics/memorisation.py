"""Detect copies of training pairs among generated pairs, even if rotated, mirrored, scaled, shifted, or noisier.

The vessels identify an eye; shading and colour depend on the camera. A pair is therefore represented by a small vessel
map, called its descriptor. The similarity of two pairs is the correlation of their descriptors after alignment of one
with the other by rotation, mirroring, scaling and shift.
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
"""Version of the similarity. Increment it when the definition changes: cached results are then computed again."""
COPY = 0.55
"""Minimum similarity at which two pairs count as the same eye, and a generated pair as a copy of a training pair.

It was chosen with 25 rendered eyes and brighter, noisier copies of them in other poses. The similarity of a copy to its
original was .67 or more; its similarity to any other eye was .45 or less. docs/metrics.md lists values for other eyes.
"""
AT_ONCE = 128
"""Maximum number of references compared at once. Their spectra take 6 MB, and the comparison about 30 MB."""


class DescriptorStore(Protocol):
    """Interface of a sequence of descriptors, (SIDE, SIDE) each, that may be read from disk on access."""

    def __len__(self) -> int: ...
    def __getitem__(self, index: int, /) -> np.ndarray: ...


@dataclass(frozen=True)
class Nearest:
    """The reference most similar to a descriptor. index: its index. similarity: the similarity, in [-1, 1]."""

    index: int
    similarity: float


def view_descriptors(pair: PairViews) -> np.ndarray:
    """Return the descriptors of CF and FA, (2, SIDE, SIDE) float32, normally within the mask of the pair.

    If the mask covers less than half the area of the larger field of view, one view may be unusable, such as black. The
    other view must still be recognised if it is a copy of a training view. The descriptor of each view is then computed
    within the field of view of that view. It is all 0 for a view whose field of view has less than half the area of the
    other field of view.
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

    Brightness and noise hardly affect it, because it is computed from the vesselness.
    """
    small = resize(np.minimum(view.vesselness, 1.0), (SIDE, SIDE), anti_aliasing=True)
    inside = resize(view.inside.astype(np.float32), (SIDE, SIDE), anti_aliasing=True) > 0.5
    return unit(_flat(small, inside))


def pair_descriptor(descriptors: np.ndarray) -> np.ndarray:
    """Average the descriptors of CF and FA (2, SIDE, SIDE) to the descriptor of the pair, (SIDE, SIDE)."""
    return unit(descriptors.mean(axis=0))


def nearest(
    queries: DescriptorStore,
    references: DescriptorStore,
    eyes: tuple[np.ndarray, np.ndarray] | None = None,
    advance: Callable[[], None] = lambda: None,
) -> list[Nearest]:
    """Return, for each of n query descriptors, the most similar of m >= 1 reference descriptors.

    queries, references: the descriptors. At most AT_ONCE references are read at a time.
    eyes: the eye ids of the queries (n,) and of the references (m,). If given, a query is compared only with references
    of other eyes; if there are none, its similarity is -1.
    advance: is called n * ceil(m / AT_ONCE) times, to show the progress.
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
    """Yield the indices and the spectra (for `best_over_poses`) of up to AT_ONCE descriptors at a time."""
    for begin in range(0, len(descriptors), AT_ONCE):
        chunk = range(begin, min(begin + AT_ONCE, len(descriptors)))
        yield chunk, spectra(np.stack([descriptors[i] for i in chunk]))


def best_over_shifts(a: np.ndarray, b: np.ndarray) -> float:
    """Return the highest correlation of two descriptors (SIDE, SIDE) over shifts of at most 10 px, in [-1, 1]."""
    return float(fourier_mellin.best_over_shifts(a, spectra(b[None]).of_maps)[0])


def authenticity(generated: Sequence[Nearest], train: Sequence[Nearest]) -> float:
    """Return the fraction of generated pairs that are authentic.

    Let T be the training pair most similar to a generated pair. The generated pair is authentic if T is more similar to
    some training pair of another eye than to the generated pair (Alaa et al. 2022, arXiv 2102.08921, section 3.3, with
    similarity in place of distance). The fraction is about .5 for new pairs of the same distribution as the training
    pairs, and near 0 if all generated pairs are copies.

    generated: for each generated pair, the most similar training pair.
    train: for each training pair, the most similar training pair of another eye.
    """
    return float(np.mean([pair.similarity < train[pair.index].similarity for pair in generated]))


def _flat(image: np.ndarray, inside: np.ndarray) -> np.ndarray:
    """Remove large structures, such as the outline of the field of view, by subtracting the local mean."""
    weight = ndimage.gaussian_filter(inside.astype(np.float32), 4) + 1e-6
    return (image - ndimage.gaussian_filter(image * inside, 4) / weight) * inside
