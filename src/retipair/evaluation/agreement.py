"""Judge whether the CF and the FA of generated pairs show the same vessels.

The agreement metrics of `Consistency` are judged on a relative scale: 0 is their mean over mispaired pairs (the CF of
one eye with the FA of another), 1 is their mean over training pairs.
"""

from collections.abc import Iterator
from dataclasses import dataclass

from retipair.evaluation import advice
from retipair.evaluation.findings import Finding, has_enough_pairs
from retipair.evaluation.means import Mean
from retipair.evaluation.scores import Level, Means, Scores

GOOD_FRACTION = 0.8
"""Minimum value of good agreement on the relative scale from mispaired (0) to training pairs (1)."""
BAD_FRACTION = 0.5
"""Value on the same scale below which CF and FA do not match."""
_METRICS = {"correlation": "consistency (vesselness correlation)", "dice": "vessel Dice", "cl_dice": "clDice"}
"""The agreement metrics, and the name of each in the text of a finding."""


@dataclass(frozen=True)
class _RelativeAgreement:
    """An agreement metric of the generated pairs on the relative scale: 0 as in mispaired, 1 as in training pairs.

    name: the name of the metric in the text of a finding.
    text: the means over generated, training and mispaired pairs, in words.
    fraction: the mean over generated pairs, on this scale.
    upper: the upper end of the 95 % interval of that mean, on this scale.
    certain: whether the data suffice to conclude from a low value that CF and FA do not match (see `is_certain`).
    """

    name: str
    text: str
    fraction: float
    upper: float
    certain: bool

    @property
    def level(self) -> Level:
        if self.fraction >= GOOD_FRACTION:
            return "good"
        return "bad" if self.certain and self.upper < BAD_FRACTION else "look"


def check_agreement(scores: Scores) -> Iterator[Finding]:
    """Check whether the CF and the FA of generated pairs match.

    The finding is bad if any agreement metric is certainly low. Otherwise, the lowest metric decides; but there is no
    conclusion if any metric is no higher in training pairs than in mispaired pairs.
    """
    rows = {name: row for key, name in _METRICS.items() if (row := getattr(scores.consistency, key)).get("generated")}
    if not rows:
        return
    if not all(row.get("train") for row in rows.values()):
        generated = ", ".join(f"{name} {row['generated'].mean:.2f}" for name, row in rows.items())
        text = (
            f"Vessel agreement of CF and FA in generated pairs: {generated}. "
            "There are no training pairs to compare with."
        )
        yield Finding("look", "agreement", text, (advice.GIVE_REAL,))
        return
    metrics = [metric for name, row in rows.items() if (metric := _relative_agreement(name, row))]
    yield _judge(sorted(metrics, key=lambda metric: metric.fraction), all_informative=len(metrics) == len(rows))


def _relative_agreement(name: str, row: Means) -> _RelativeAgreement | None:
    """Rescale a metric of the generated pairs: 0 is its mean over mispaired pairs, 1 its mean over training pairs.

    Returns None if the metric is no higher in training pairs than in mispaired pairs.
    """
    generated, real, mispaired = row["generated"], row["train"], row.get("mispaired")
    assert generated is not None
    assert real is not None
    baseline = mispaired.mean if mispaired else 0.0  # no mispaired pairs exist if all real pairs show one eye
    if real.mean <= baseline:
        return None
    fraction, upper = ((value - baseline) / (real.mean - baseline) for value in (generated.mean, generated.upper))
    text = f"{name} {generated.mean:.2f} in generated, {real.mean:.2f} in training"
    if mispaired:
        text += f", {round(baseline, 2) + 0:.2f} in mispaired pairs"
    else:
        text += " pairs"
    text += f" ({100 * fraction:.0f} %)"
    return _RelativeAgreement(name, text, fraction, upper, is_certain(generated, real, mispaired))


def is_certain(generated: Mean, real: Mean, mispaired: Mean | None) -> bool:
    """Return whether the data suffice to judge a metric.

    They do if every set has enough pairs, and the 95 % interval of the mean over real pairs lies above that of the mean
    over mispaired pairs, or above 0 if there are no mispaired pairs.
    """
    means = (generated, real, mispaired) if mispaired else (generated, real)
    return has_enough_pairs(*means) and real.lower > (mispaired.upper if mispaired else 0.0)


def _judge(ranked: list[_RelativeAgreement], all_informative: bool) -> Finding:
    """Return the finding on the agreement of CF and FA.

    ranked: the agreement metrics, each scaled to 0 for mispaired and 1 for training pairs, lowest first.
    all_informative: whether every metric is higher in training pairs than in mispaired pairs.
    """
    text = "Vessel agreement of CF and FA (0 %: as in mispaired pairs, 100 %: as in training pairs): "
    text += f"{'; '.join(metric.text for metric in ranked)}."
    failed = next(
        (metric for metric in ranked if metric.level == "bad"), None
    )  # the lowest of the metrics that are certainly low
    if failed:
        text += f" The views do not match, according to {failed.name}."
        return Finding("bad", "agreement", text, (advice.MORE_STEPS, advice.MORE_TARGETS, advice.INSPECT_SAMPLES))
    if not all_informative:
        text = "No conclusion: at least one agreement metric is no higher in training pairs than in mispaired pairs."
        return Finding("look", "agreement", text, (advice.FIX_REAL,))
    return _judge_lowest(ranked[0], text)


def _judge_lowest(lowest: _RelativeAgreement, text: str) -> Finding:
    """Return the finding that the lowest metric gives. No metric is certainly low. `text` lists all metrics."""
    if lowest.level == "good":
        return Finding("good", "agreement", f"{text} The views match; the lowest metric is {lowest.name}.")
    if lowest.fraction >= BAD_FRACTION:
        text += f" Most vessels match, but not all; the lowest metric is {lowest.name}."
        return Finding("look", "agreement", text, (advice.FILTER, advice.MORE_STEPS, advice.MORE_TARGETS))
    reason = (
        "the upper end of its 95 % interval is 50 % or more"
        if lowest.certain
        else "there are too few pairs, or they vary too much"
    )
    text += f" According to {lowest.name} the views do not match, but this is not certain: {reason}."
    return Finding("look", "agreement", text, (advice.INSPECT_SAMPLES, advice.MORE_STEPS, advice.MORE_TARGETS))
