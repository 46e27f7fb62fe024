"""Define a finding, one conclusion from the scores of an evaluation."""

from dataclasses import dataclass

from retipair.evaluation.advice import FEW, Advice
from retipair.evaluation.means import Mean
from retipair.evaluation.scores import Level


@dataclass(frozen=True)
class Finding:
    """One conclusion from the scores of an evaluation.

    level: the severity: "good", "look" (the user should check this point) or "bad".
    about: the subject, such as "diversity of the CF".
    text: one or more sentences with the numbers that support the conclusion.
    advice: what the user can change; may be empty.
    """

    level: Level
    about: str
    text: str
    advice: tuple[Advice, ...] = ()


def has_enough_pairs(*means: Mean | None) -> bool:
    """Return whether each mean was computed from at least FEW pairs. A missing mean (None) has too few."""
    return all(mean is not None and mean.n >= FEW for mean in means)


def count(number: int, singular: str, plural: str = "") -> str:
    """Return a number and its noun in the singular or plural: "1 pair", "2 pairs"."""
    return f"{number} {singular if number == 1 else plural or f'{singular}s'}"
