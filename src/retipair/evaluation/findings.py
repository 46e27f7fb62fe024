"""Findings: single conclusions from the scores, with advice."""

from dataclasses import dataclass

from retipair.evaluation.advice import FEW, Advice
from retipair.evaluation.means import Mean
from retipair.evaluation.scores import Level


@dataclass(frozen=True)
class Finding:
    """One conclusion: its level, its subject, a sentence with the numbers, and advice (may be empty)."""

    level: Level
    about: str
    text: str
    advice: tuple[Advice, ...] = ()


def has_enough_pairs(*means: Mean | None) -> bool:
    """Return whether each mean is over enough pairs for a decision."""
    return all(mean is not None and mean.n >= FEW for mean in means)


def count(number: int, singular: str, plural: str = "") -> str:
    """Return a number with its noun: "1 pair", "2 pairs"."""
    return f"{number} {singular if number == 1 else plural or f'{singular}s'}"
