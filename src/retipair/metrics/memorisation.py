"""Is a generated pair a copy of a training pair, perhaps rotated, mirrored, scaled, shifted, brighter or noisier?

The vessels identify an eye; shading and colour depend on the camera. So pairs are compared as small maps of vessels, by
their correlation in the pose that fits best.
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
"""Raise it whenever the same two pairs would have another likeness: earlier results are then not taken for these."""
COPY = 0.55
"""Likeness from which a pair is called a copy.

Halfway between what 25 rendered eyes have at most with each other in any pose, .45, and what copies of them have at
least in any pose, brighter and noisier, .67. docs/metrics.md has what other eyes have.
"""
AT_ONCE = 128
"""Prints that others are compared with at once: 6 MB of spectra, and some 30 MB more during a comparison."""


class DescriptorStore(Protocol):
    """Any number of prints (SIDE, SIDE), of which one after another is asked for."""

    def __len__(self) -> int: ...
    def __getitem__(self, at: int, /) -> np.ndarray: ...


@dataclass(frozen=True)
class Nearest:
    """The print (its place in the list) that is most like another, and how much: correlation, in [-1, 1]."""

    index: int
    likeness: float


def vessel_prints(seen: PairViews) -> np.ndarray:
    """The prints of CF and FA, (2, SIDE, SIDE) float32, within what both show of the eye.

    Where that is less than half of what one of them shows, the other has failed (black, flat) and its print is 0: the
    one that is left may still be a copy.
    """
    views = seen.cf, seen.fa
    shown = [int(view.field.sum()) for view in views]
    if 2 * int(seen.mask.sum()) >= max(shown):
        return np.stack([vessel_descriptor(view) for view in views])
    nothing = np.zeros((SIDE, SIDE), np.float32)
    prints = zip(views, shown, strict=True)
    return np.stack([vessel_descriptor(view.alone) if 2 * area >= max(shown) else nothing for view, area in prints])


def vessel_descriptor(view: PreparedView) -> np.ndarray:
    """Where a view's vessels lie, (SIDE, SIDE) float32: blurred; mean 0, sum of squares 1, all 0 without vessels.

    Brightness and noise are gone with the view's own grey levels.
    """
    small = resize(np.minimum(view.vesselness, 1.0), (SIDE, SIDE), anti_aliasing=True)
    inside = resize(view.inside.astype(np.float32), (SIDE, SIDE), anti_aliasing=True) > 0.5
    return unit(_flat(small, inside))


def pair_descriptor(prints: np.ndarray) -> np.ndarray:
    """What tells an eye from others: the prints (2, SIDE, SIDE) of both its views in one, (SIDE, SIDE)."""
    return unit(prints.mean(axis=0))


def nearest(
    prints: DescriptorStore,
    among: DescriptorStore,
    eyes: tuple[np.ndarray, np.ndarray] | None = None,
    advance: Callable[[], None] = lambda: None,
) -> list[Nearest]:
    """The most alike of `among`, m >= 1 of them, for each of `prints`; both are read as they are needed.

    eyes: whose the prints (n,) and those among them (m,) are: none is compared with its own eye, and where that leaves
    none, likeness is -1. advance: called after each print of a stretch of `among`, n * ceil(m / AT_ONCE) times.
    """
    index, likeness = np.zeros(len(prints), int), np.full(len(prints), -1.0)
    for stretch, others in spectra_of(among):
        for row in range(len(prints)):
            found = best_over_poses(prints[row], others)
            if eyes is not None:
                found = np.where(eyes[1][stretch] == eyes[0][row], -1.0, found)
            if found.max() > likeness[row]:
                index[row], likeness[row] = stretch[found.argmax()], found.max()
            advance()
    return [Nearest(int(at), float(most)) for at, most in zip(index, likeness, strict=True)]


def spectra_of(prints: DescriptorStore) -> Iterator[tuple[range, Spectra]]:
    """Transform AT_ONCE prints after another: their places, and what `best_over_poses` compares with."""
    for begin in range(0, len(prints), AT_ONCE):
        stretch = range(begin, min(begin + AT_ONCE, len(prints)))
        yield stretch, spectra(np.stack([prints[at] for at in stretch]))


def best_over_shifts(one: np.ndarray, other: np.ndarray) -> float:
    """Return the highest correlation of two prints (SIDE, SIDE) over all shifts, in [-1, 1]; one pose only."""
    return float(fourier_mellin.best_over_shifts(one, spectra(other[None]).of_maps)[0])


def authenticity(generated: Sequence[Nearest], train: Sequence[Nearest]) -> float:
    """Share of generated pairs that are less like their nearest training pair than that is like its own nearest.

    1 where nothing was copied from a set of very different eyes, about .5 for more pairs of the same kind (Alaa et al.
    2022, arXiv 2102.08921, section 3.3, with likeness for distance).
    """
    return float(np.mean([one.likeness < train[one.index].likeness for one in generated]))


def _flat(image: np.ndarray, inside: np.ndarray) -> np.ndarray:
    """Without what is larger than vessels' distances, or every field would be like every other."""
    weight = ndimage.gaussian_filter(inside.astype(np.float32), 4) + 1e-6
    return (image - ndimage.gaussian_filter(image * inside, 4) / weight) * inside
