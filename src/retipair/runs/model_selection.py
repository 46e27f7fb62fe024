"""Which step of a training is the best: by loss on unseen eyes, by how well its samples' halves match, or both."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any

from retipair.config import BestBy

LOSS_AT_LEAST, CONSISTENCY_AT_LEAST = 1e-4, 0.005
"""A difference below these is none: the original's, and a tenth of what ten samples scatter by."""


@dataclass(frozen=True)
class Validation:
    """The result of one validation: mean squared error on unseen pairs, mean vessel correlation of the samples.

    step: number of optimiser steps before it. consistency is None where there are no samples.
    """

    step: int
    loss: float
    consistency: float | None


def better(now: Validation, best: Validation | None, by: BestBy) -> bool:
    """Is this validation better than the best so far (None: there is none)?

    both: one of the two improves and the other gets no worse.
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
    """Return what `best_checkpoint/reason.json` says, and `state.json` beside each checkpoint."""
    return {"by": by, **asdict(now), "before": asdict(before) if before else None}


def validation_of(reason: Mapping[str, Any]) -> Validation:
    """Return the validation that made a step the best. Raises KeyError or TypeError if `reason` is not a reason."""
    return Validation(**{field.name: reason[field.name] for field in fields(Validation)})
