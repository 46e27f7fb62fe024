"""Compute the mean of a metric with its 95 % interval."""

from dataclasses import dataclass

import numpy as np
from scipy.stats import bootstrap

_MAX_RESAMPLED = 1000
"""Maximum number of values for a bootstrap interval. For more values, the interval assumes a normal distribution."""
_RESAMPLES = 2000


@dataclass(frozen=True)
class Mean:
    """Mean of a metric over n pairs, with its 95 % interval.

    low, high: the ends of the interval; None if n is less than three, or if no interval was computed.
    """

    mean: float
    low: float | None
    high: float | None
    n: int

    @property
    def lower(self) -> float:
        """Lower end of the 95 % interval, or the mean if there is no interval."""
        return self.mean if self.low is None else self.low

    @property
    def upper(self) -> float:
        """Upper end of the 95 % interval, or the mean if there is no interval."""
        return self.mean if self.high is None else self.high


def mean_with_interval(values: np.ndarray) -> Mean | None:
    """Return the mean of values (n,) with its 95 % interval, or None if n is 0.

    The interval is a percentile bootstrap interval for up to _MAX_RESAMPLED values, a normal approximation for more.
    Fewer than three values have no interval.
    """
    if not len(values):
        return None
    low, high = _bounds(values) if len(values) > 2 else (None, None)
    return Mean(float(np.mean(values)), low, high, len(values))


def _bounds(values: np.ndarray) -> tuple[float, float]:
    if len(values) > _MAX_RESAMPLED:
        mean, margin = float(values.mean()), 1.96 * float(values.std(ddof=1)) / len(values) ** 0.5
        return mean - margin, mean + margin
    sampled = bootstrap((values,), np.mean, n_resamples=_RESAMPLES, method="percentile", rng=0).confidence_interval
    return float(sampled.low), float(sampled.high)
