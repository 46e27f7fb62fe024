"""Summarise the scores of `retipair utility` by eye, with bootstrap intervals over eyes."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from retipair.matching.utility.scores import SUCCESS_PX, ImageScore

_RESAMPLES = 10_000
_COVERAGE = (2.5, 97.5)  # percentiles: 95 % intervals

Measure = Callable[[Sequence[ImageScore]], float]
"""A function of the scores of all warps of one pair."""


def recall(scores: Sequence[ImageScore]) -> float:
    """Return the fraction of the landmarks whose partner was found."""
    return sum(score.found for score in scores) / max(sum(score.landmarks for score in scores), 1)


def auc(scores: Sequence[ImageScore]) -> float:
    """Return the area under the stepped cumulative distribution of the errors up to 20 px, divided by 20 px.

    It is lower than `pose_auc`, which interpolates the distribution.
    """
    return float(np.mean([max(0.0, 1 - score.error_px / SUCCESS_PX) for score in scores]))


def success(scores: Sequence[ImageScore]) -> float:
    """Return the fraction of the warps with an error below 20 px."""
    return float(np.mean([score.error_px < SUCCESS_PX for score in scores]))


MEASURES: dict[str, Measure] = {"recall@1": recall, "AUC@20": auc, "success": success}


@dataclass(frozen=True)
class Interval:
    """A mean over eyes and its 95 % bootstrap interval."""

    mean: float
    low: float
    high: float


@dataclass(frozen=True)
class ArmScore:
    """One measure of one arm at one level.

    by_eye: for each eye, the mean over seeds and pairs.
    seed_sd: the standard deviation over seeds of the mean over eyes; None with one seed.
    """

    interval: Interval
    by_eye: dict[str, float]
    seed_sd: float | None


def summarise(seeds: Sequence[Sequence[ImageScore]], level: str, measure: Measure) -> ArmScore:
    """Summarise the scores of one arm at one level: the warps of each pair, then the pairs of each eye, then the eyes.

    seeds: the scores of each seed.
    """
    by_seed = [_by_eye([score for score in scores if score.level == level], measure) for scores in seeds]
    by_eye = {eye: float(np.mean([values[eye] for values in by_seed])) for eye in by_seed[0]}
    means = [np.mean(list(values.values())) for values in by_seed]
    return ArmScore(bootstrap(list(by_eye.values())), by_eye, float(np.std(means, ddof=1)) if len(means) > 1 else None)


def _by_eye(scores: Sequence[ImageScore], measure: Measure) -> dict[str, float]:
    eyes: dict[str, dict[str, list[ImageScore]]] = {}
    for score in scores:
        eyes.setdefault(score.eye, {}).setdefault(score.id, []).append(score)
    return {eye: float(np.mean([measure(warps) for warps in pairs.values()])) for eye, pairs in eyes.items()}


def difference(arm: ArmScore, other: ArmScore) -> Interval:
    """Return the mean difference of two arms, whose eyes are the same, and its interval over eyes."""
    return bootstrap([value - other.by_eye[eye] for eye, value in arm.by_eye.items()])


def bootstrap(values: Sequence[float]) -> Interval:
    """Return the mean of one value per eye, and the percentile interval of 10,000 resamplings of the eyes."""
    array = np.array(values)
    resampled = np.random.default_rng(0).integers(len(array), size=(_RESAMPLES, len(array)))
    low, high = np.percentile(array[resampled].mean(axis=1), _COVERAGE)
    return Interval(float(array.mean()), float(low), float(high))
