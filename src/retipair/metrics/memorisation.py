"""Is a generated pair a copy of a training pair, perhaps turned, mirrored, moved, brighter or noisier?

Two eyes are told apart by their vessels: what they look like otherwise, a camera has in common. So pairs are compared
as small maps of vessels, by their best correlation over all shifts, small turns and the mirror.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from scipy import fft, ndimage
from skimage.transform import resize

from retipair.metrics.measured import MeasuredView

SIDE = 64
"""px of a print; one of them is 8 px of a view."""
TURNS = (-8.0, -6.0, -4.0, -2.0, 0.0, 2.0, 4.0, 6.0, 8.0)
"""Degrees."""
COPY = 0.6
"""Likeness from which a pair is called a copy.

Rendered eyes have .50 at most with the nearest of 50 others, copies that were mirrored, turned by 3 degrees, shifted by
6 px, made brighter and noisier all at once .81 at least; real pairs of two eyes .21, of one eye at two visits .25 to
.89.
"""
AT_ONCE = 256
"""Prints that others are compared with at once: 6 MB of spectra."""
_MOST_SHIFT = 10  # px of a print: 80 px of a view
_PADDED = fft.next_fast_len(SIDE + _MOST_SHIFT, real=True)


class Prints(Protocol):
    """Any number of prints (SIDE, SIDE), of which one after another is asked for."""

    def __len__(self) -> int: ...
    def __getitem__(self, at: int, /) -> np.ndarray: ...


@dataclass(frozen=True)
class Nearest:
    """The print (its place in the list) that is most like another, and how much: correlation, in [-1, 1]."""

    index: int
    likeness: float


def vessel_print(view: MeasuredView) -> np.ndarray:
    """Where a view's vessels lie, (SIDE, SIDE) float32: blurred; mean 0, sum of squares 1, all 0 without vessels.

    Brightness and noise are gone with the view's own grey levels.
    """
    small = resize(np.minimum(view.vesselness, 1.0), (SIDE, SIDE), anti_aliasing=True)
    inside = resize(view.inside.astype(np.float32), (SIDE, SIDE), anti_aliasing=True) > 0.5
    return _unit(_flat(small, inside))


def pair_print(prints: np.ndarray) -> np.ndarray:
    """What tells an eye from others: the prints (2, SIDE, SIDE) of both its views in one, (SIDE, SIDE)."""
    return _unit(prints.mean(axis=0))


def nearest(
    prints: Prints,
    among: Prints,
    eyes: tuple[np.ndarray, np.ndarray] | None = None,
    advance: Callable[[], None] = lambda: None,
) -> list[Nearest]:
    """The most alike of `among`, m >= 1 of them, for each of `prints`; both are read as they are needed.

    eyes: whose the prints (n,) and those among them (m,) are: none is compared with its own eye, and where that leaves
    none, likeness is -1. advance: called after each print of a stretch of `among`, n * ceil(m / AT_ONCE) times.
    """
    index, likeness = np.zeros(len(prints), int), np.full(len(prints), -1.0)
    for begin in range(0, len(among), AT_ONCE):
        stretch = range(begin, min(begin + AT_ONCE, len(among)))
        spectra = _spectra([among[at] for at in stretch])
        for row in range(len(prints)):
            found = _likenesses(prints[row], spectra)
            if eyes is not None:
                found = np.where(eyes[1][stretch] == eyes[0][row], -1.0, found)
            if found.max() > likeness[row]:
                index[row], likeness[row] = begin + found.argmax(), found.max()
            advance()
    return [Nearest(int(at), float(most)) for at, most in zip(index, likeness, strict=True)]


def best_over_shifts(one: np.ndarray, other: np.ndarray) -> float:
    """The highest correlation of two prints (SIDE, SIDE) over all shifts, in [-1, 1]; neither turned nor mirrored."""
    return float(_best_over_shifts(one, fft.rfft2(_padded(other))[None])[0])


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


def _unit(image: np.ndarray) -> np.ndarray:
    centred = image - image.mean()
    length = float(np.sqrt((centred**2).sum()))
    return (centred / length if length > 1e-6 else np.zeros_like(centred)).astype(np.float32)


def _turned(one: np.ndarray) -> Iterator[np.ndarray]:
    """A print in every way that a copy may lie."""
    for mirrored in (one, one[:, ::-1]):
        for degrees in TURNS:
            yield _unit(ndimage.rotate(mirrored, degrees, reshape=False, order=1))


def _spectra(prints: Sequence[np.ndarray]) -> np.ndarray:
    return np.asarray(fft.rfft2(np.stack([_padded(one) for one in prints]), workers=-1))


def _likenesses(one: np.ndarray, spectra: np.ndarray) -> np.ndarray:
    return np.asarray(np.max([_best_over_shifts(turned, spectra) for turned in _turned(one)], axis=0))


def _padded(one: np.ndarray) -> np.ndarray:
    """So that what is shifted out does not come in on the other side."""
    return np.pad(one, (0, _PADDED - SIDE))


def _best_over_shifts(one: np.ndarray, spectra: np.ndarray) -> np.ndarray:
    """The highest correlation of a print with each of those whose spectra these are, over all shifts, (m,)."""
    products = np.conj(fft.rfft2(_padded(one))) * spectra
    correlations = fft.irfft2(products, s=(_PADDED, _PADDED), workers=-1)
    near = np.r_[0 : _MOST_SHIFT + 1, _PADDED - _MOST_SHIFT : _PADDED]
    return np.asarray(correlations[:, near][:, :, near].max(axis=(1, 2)))
