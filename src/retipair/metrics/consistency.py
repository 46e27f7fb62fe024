"""Do both views of a pair show the same vessels in the same place?"""

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np

from retipair.metrics.measured import Measured
from retipair.vision.ridges import correlation, segment


@dataclass(frozen=True)
class Consistency:
    """How well the vessels of a CF and an FA agree, measured 512 px wide.

    correlation: of their vesselness, in [-1, 1]; real pairs .40 to .68, mispaired about 0.
    dice: of their vessels, in [0, 1]; real pairs .41 to .63, mispaired about .12.
    """

    correlation: float
    dice: float


@dataclass(frozen=True)
class SetConsistency:
    """Of every pair, and of every CF with the FA of the next pair: what the same views score by chance."""

    matched: tuple[Consistency, ...]
    mispaired: tuple[Consistency, ...]


def consistency(seen: Measured) -> Consistency:
    """Of one pair. A shift of the FA by 2, 4, 8 px takes real pairs from .55 to .50, .38, .16 (correlation).

    Views that were 256 px wide score about .04 higher than the same eyes at 512: they show fewer of the finest vessels.
    """
    return _agreement(seen.cf_vesselness, seen.fa_vesselness, seen.inside)


def set_consistency(pairs: Iterable[Measured]) -> SetConsistency:
    """Of two pairs or more; the last CF is mispaired with the first FA. Holds three pairs at a time."""
    pairs = iter(pairs)
    first = previous = next(pairs)
    matched, mispaired = [consistency(first)], []
    for seen in pairs:
        matched.append(consistency(seen))
        mispaired.append(_mispaired(previous, seen))
        previous = seen
    assert mispaired, "a single pair has no other to be mispaired with"
    mispaired.append(_mispaired(previous, first))
    return SetConsistency(tuple(matched), tuple(mispaired))


def mean(values: Iterable[Consistency]) -> Consistency:
    """The mean of each figure."""
    rows = np.array([(one.correlation, one.dice) for one in values])
    return Consistency(*(float(value) for value in rows.mean(axis=0)))


def dice(a: np.ndarray, b: np.ndarray) -> float:
    """2 |a and b| / (|a| + |b|) of two masks of equal shape, in [0, 1]; 0 where both are empty."""
    total = int(a.sum()) + int(b.sum())
    return 2 * int((a & b).sum()) / total if total else 0.0


def _mispaired(cf: Measured, fa: Measured) -> Consistency:
    """The CF of one pair with the FA of another, where both are valid."""
    return _agreement(cf.cf_vesselness, fa.fa_vesselness, cf.inside & fa.inside)


def _agreement(cf: np.ndarray, fa: np.ndarray, inside: np.ndarray) -> Consistency:
    if not inside.any():
        return Consistency(0.0, 0.0)
    return Consistency(correlation(cf[inside], fa[inside]), dice(segment(cf, inside), segment(fa, inside)))
