"""Do both views of a pair show the same vessels in the same place?"""

from collections.abc import Iterable
from dataclasses import astuple, dataclass

import numpy as np
from skimage.morphology import skeletonize
from skimage.registration import phase_cross_correlation

from retipair.metrics.views import PairViews, PreparedView
from retipair.vision.ridges import correlation

_SHIFT_STEPS = 20  # a pixel


@dataclass(frozen=True)
class Consistency:
    """How well a CF and an FA agree, measured 512 px wide.

    correlation: of their vesselness, in [-1, 1]; real pairs .40 to .71, mispaired about 0.
    dice: of their vessels, in [0, 1]; real pairs .41 to .65, mispaired about .12.
    cl_dice: how much of each view's vessels' centre lines lies in the other's vessels (clDice), in [0, 1].
    shift_px: how far the FA would have to be moved for the best correlation, px at 512, >= 0.
    field: Dice of the fields of view, in [0, 1]; that of one view is all it shows, whatever the pair's mask says.
    """

    correlation: float
    dice: float
    cl_dice: float
    shift_px: float
    field: float


@dataclass(frozen=True)
class SetConsistency:
    """Of every pair, and of every CF with the FA of the next pair: what the same views score by chance."""

    matched: tuple[Consistency, ...]
    mispaired: tuple[Consistency, ...]


def consistency(seen: PairViews) -> Consistency:
    """Of one pair. A shift of the FA by 2, 4, 8 px takes real pairs from .62 to .48, .37, .01 (correlation).

    Views that were 256 px wide score about .04 higher than the same eyes at 512: they show fewer of the finest vessels.
    """
    return _agreement(seen.cf, seen.fa, seen.inside)


def set_consistency(pairs: Iterable[PairViews]) -> SetConsistency:
    """Of two pairs or more; the last CF is mispaired with the first FA. Holds three pairs at a time."""
    pairs = iter(pairs)
    first = previous = next(pairs)
    matched, chance = [consistency(first)], []
    for seen in pairs:
        matched.append(consistency(seen))
        chance.append(mispaired(previous, seen))
        previous = seen
    assert chance, "a single pair has no other to be mispaired with"
    chance.append(mispaired(previous, first))
    return SetConsistency(tuple(matched), tuple(chance))


def mispaired(cf: PairViews, fa: PairViews) -> Consistency:
    """The CF of one pair with the FA of another, where both pairs are valid."""
    return _agreement(cf.cf, fa.fa, cf.inside & fa.inside)


def mean(values: Iterable[Consistency]) -> Consistency:
    """The mean of each figure."""
    return Consistency(*(float(value) for value in np.mean([astuple(one) for one in values], axis=0)))


def dice(a: np.ndarray, b: np.ndarray) -> float:
    """2 |a and b| / (|a| + |b|) of two masks of equal shape, in [0, 1]; 0 where both are empty."""
    total = int(a.sum()) + int(b.sum())
    return 2 * int((a & b).sum()) / total if total else 0.0


def cl_dice(a: np.ndarray, b: np.ndarray) -> float:
    """Centre-line Dice of two masks of vessels (H, W) bool, in [0, 1]: 0 where either is empty.

    The harmonic mean of how much of each one's skeleton the other covers: a thick vessel counts no more than a thin
    one, and what lies beside its partner counts nothing (Shit et al. 2021, arXiv 2003.07311, equation 2).
    """
    shares = [(skeleton & other).sum() / skeleton.sum() for skeleton, other in _skeletons(a, b)]
    return 2 * float(np.prod(shares)) / float(sum(shares)) if any(shares) else 0.0


def _skeletons(a: np.ndarray, b: np.ndarray) -> list[tuple[np.ndarray, np.ndarray]]:
    """The skeleton of each, with the other mask; none where either is empty."""
    return [(skeletonize(a), b), (skeletonize(b), a)] if a.any() and b.any() else []


def shift_of(cf: np.ndarray, fa: np.ndarray, inside: np.ndarray) -> tuple[float, float]:
    """How far (down, right), px, the second of two vesselness maps (H, W) lies from the first.

    Where their cross-correlation peaks, to a twentieth of a pixel (Guizar-Sicairos et al. 2008, doi
    10.1364/OL.33.000156). Not whitened: phase correlation is led astray by frequencies that only one view has.
    """
    flat = [np.where(inside, view - view[inside].mean(), 0.0) for view in (cf, fa)]
    if not all(view.any() for view in flat):
        return 0.0, 0.0
    back, _, _ = phase_cross_correlation(*flat, upsample_factor=_SHIFT_STEPS, normalization=None)
    return -float(back[0]), -float(back[1])


def _agreement(cf: PreparedView, fa: PreparedView, inside: np.ndarray) -> Consistency:
    if not inside.any():
        return Consistency(0.0, 0.0, 0.0, 0.0, 0.0)
    a, b = (view.vessels & inside for view in (cf, fa))
    return Consistency(
        correlation=correlation(cf.vesselness[inside], fa.vesselness[inside]),
        dice=dice(a, b),
        cl_dice=cl_dice(a, b),
        shift_px=float(np.hypot(*shift_of(cf.vesselness, fa.vesselness, inside))),
        field=dice(cf.field, fa.field),
    )
