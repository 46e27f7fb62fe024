"""Select the best step of a training: by the validation loss, by the consistency of the samples, or by both."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any

from retipair.config import BestBy

LOSS_AT_LEAST, CONSISTENCY_AT_LEAST = 1e-4, 0.005
"""Smaller differences between two validations are ignored.

The threshold of the loss is that of the original scripts.
"""


@dataclass(frozen=True)
class Validation:
    """The result of one validation.

    step: the number of optimiser steps so far.
    loss: the mean squared error on the validation pairs.
    consistency: the mean vesselness correlation of the sample pairs; None if there are no samples.
    """

    step: int
    loss: float
    consistency: float | None


def better(now: Validation, best: Validation | None, by: BestBy) -> bool:
    """Return True if this validation is better than the best so far, or if there is no best yet (None).

    by: the criterion; "both" means that one of loss and consistency improves, and the other does not get worse.
    """
    if best is None:
        return True
    loss = best.loss - now.loss
    consistency = (now.consistency or 0.0) - (best.consistency or 0.0)
    if by == "loss":
        return loss > LOSS_AT_LEAST
    if by == "consistency":
        return consistency > CONSISTENCY_AT_LEAST
    one_improves = loss > LOSS_AT_LEAST or consistency > CONSISTENCY_AT_LEAST
    return one_improves and loss >= -LOSS_AT_LEAST and consistency >= -CONSISTENCY_AT_LEAST


def reason(now: Validation, before: Validation | None, by: BestBy) -> dict[str, Any]:
    """Return the record that says why the step of `now` is the best, and which validation was the best before.

    It is written to `best_checkpoint/reason.json` and to the `state.json` of each checkpoint.
    """
    return {"by": by, **asdict(now), "before": asdict(before) if before else None}


def validation_of(reason: Mapping[str, Any]) -> Validation:
    """Return the validation in the record of the best step. Raises KeyError or TypeError for a malformed record."""
    return Validation(**{field.name: reason[field.name] for field in fields(Validation)})
