"""Compute the distances between the set of generated pairs and the set of real pairs."""

from dataclasses import asdict

import numpy as np

from retipair.data.selection import evenly_spaced_indices
from retipair.evaluation.scores import DeepDistance, DeepDistances, Distribution, FeatureDifference
from retipair.evaluation.sets import Sets
from retipair.metrics import distribution

_FURTHEST = 10
"""Number of features that the scores list: those with the largest differences."""
_MAX_PAIRS = 20_000
"""Maximum number of pairs per set that are compared; limits the time for large sets."""
_MIN_FOR_FLOOR = 4


def feature_distances(sets: Sets) -> Distribution | None:
    """Return the distances on the features of `distribution.features`, or None if either set has too few pairs."""
    real = _subset(sets.real.features)
    if sets.generated is None or min(len(real), len(sets.generated.entries)) <= distribution.NEIGHBOURS:
        return None
    generated = _subset(sets.generated.features)
    return Distribution(
        mmd2=distribution.mmd2(generated, real, real),
        floor=sets.once("floor", lambda: distribution.null_mmd2(real)),
        **asdict(distribution.prdc(real, generated)),
        furthest=_largest_differences(generated, real),
    )


def _subset(features: np.ndarray) -> np.ndarray:
    return features[evenly_spaced_indices(len(features), _MAX_PAIRS)].astype(np.float64)


def _largest_differences(generated: np.ndarray, real: np.ndarray) -> tuple[FeatureDifference, ...]:
    differences = distribution.robust_standardize(generated, real).mean(axis=0).tolist()
    named = zip(distribution.plain_names().items(), differences, strict=True)
    features = [FeatureDifference(key, name, difference) for (key, name), difference in named]
    return tuple(sorted(features, key=lambda feature: -abs(feature.deviations))[:_FURTHEST])


def deep_distances(generated: np.ndarray, real: np.ndarray) -> DeepDistances | None:
    """Return the squared MMD and the FID of each view on the features of an image model.

    Returns None if either set has fewer than four pairs.

    generated, real: the features of CF and FA of each pair, (n, 2, D) and (m, 2, D).
    """
    amount = min(len(real), len(generated))
    if amount < _MIN_FOR_FLOOR:
        return None
    cf, fa = (_deep_distance(generated[:, index], real[:, index]) for index in range(2))
    return DeepDistances(n=amount, features=real.shape[-1], cf=cf, fa=fa)


def _deep_distance(generated: np.ndarray, real: np.ndarray) -> DeepDistance:
    return DeepDistance(
        mmd2=distribution.mmd2(generated, real, real),
        floor=distribution.null_mmd2(real),
        fid=distribution.frechet(generated, real),
    )
