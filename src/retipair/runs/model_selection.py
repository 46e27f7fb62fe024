"""Select the best step of a training: by validation loss, by the consistency of its samples, or by both."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any

from retipair.config import BestBy

LOSS_AT_LEAST, CONSISTENCY_AT_LEAST = 1e-4, 0.005
"""Smaller differences are ignored. The value for the loss is that of the original system; the value for the consistency
is a tenth of its spread among ten samples."""


@dataclass(frozen=True)
class Validation:
    """The result of one validation: mean squared error on validation pairs, mean vessel correlation of the samples.

    step: number of optimiser steps so far. consistency: None if there are no samples.
    """

    step: int
    loss: float
    consistency: float | None


def better(now: Validation, best: Validation | None, by: BestBy) -> bool:
    """Return True if this validation is better than the best so far, or if there is no best yet (None).

    both: one of the two criteria improves and the other does not get worse.
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
    """Return the content of `best_checkpoint/reason.json`, also stored in the `state.json` of each checkpoint."""
    return {"by": by, **asdict(now), "before": asdict(before) if before else None}


def validation_of(reason: Mapping[str, Any]) -> Validation:
    """Return the validation that made a step the best. Raises KeyError or TypeError if `reason` is malformed."""
    return Validation(**{field.name: reason[field.name] for field in fields(Validation)})
