"""The scores of one or several sets of generated pairs beside the same real pairs, and their form in scores.json."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from retipair.evaluation.ranking import ComparedRow, compare
from retipair.evaluation.scores import SCORES_NAME, Scores
from retipair.evaluation.sets import GENERATED
from retipair.runtime.atomic_io import read_json
from retipair.runtime.errors import UserError
from retipair.runtime.schema import from_values, json_sha256, to_values

SETS_SCHEMA = "retipair.compared_scores/1"


@dataclass(frozen=True)
class ComparedScores:
    """The scores of sets of generated pairs, each compared with the same real pairs.

    names, scores: the name and the scores of each set, in the order of --generated. The scores of a set are those that
    an evaluation of this set alone gives. A set that was evaluated alone, and real pairs alone, are named "generated".
    settings: the settings of `generate` in which the sets differ -> the value of each set; None if it is unknown.
    comparison: the rows of the table that compares the sets; empty for one set.
    """

    names: tuple[str, ...]
    scores: tuple[Scores, ...]
    settings: dict[str, tuple[str | None, ...]]
    comparison: tuple[ComparedRow, ...]

    @classmethod
    def of(cls, sets: Mapping[str, Scores], settings: Sequence[Mapping[str, str]]) -> "ComparedScores":
        """Compare sets. settings: how each set was generated, see `set_settings`."""
        differing = differing_names(dict.fromkeys(name for one in settings for name in one), settings)
        values = {name: tuple(one.get(name) for one in settings) for name in differing}
        return cls(tuple(sets), tuple(sets.values()), values, compare(sets) if len(sets) > 1 else ())

    @property
    def sets(self) -> dict[str, Scores]:
        """Name of a set -> its scores."""
        return dict(zip(self.names, self.scores, strict=True))

    @property
    def several(self) -> bool:
        return len(self.names) > 1

    @property
    def best(self) -> dict[str, str]:
        """Name of a row of `comparison` -> the best set; without rows in which the difference may be chance."""
        return {row.name: row.best for row in self.comparison if row.best}

    def to_json(self) -> dict[str, Any]:
        """Return the content of scores.json. One set alone has the form of `Scores.to_json`."""
        if not self.several:
            return self.scores[0].to_json()
        values = {"schema": SETS_SCHEMA, **to_values(self)}
        return {**values, "sha256": json_sha256(values)}

    @classmethod
    def from_json(cls, values: dict[str, Any], where: str = SCORES_NAME) -> "ComparedScores":
        """Convert the content of scores.json. Raises UserError, naming `where`, if edited or of another schema."""
        if not isinstance(values, dict) or values.get("schema") != SETS_SCHEMA:
            return cls((GENERATED,), (Scores.from_json(values, where),), {}, ())
        content = {key: value for key, value in values.items() if key != "sha256"}
        if json_sha256(content) != values.get("sha256"):
            raise UserError(f"{where}: edited or damaged; delete it and evaluate again")
        return from_values(cls, {key: value for key, value in content.items() if key != "schema"}, where)


def read_compared_scores(folder: Path) -> ComparedScores:
    """Read scores.json in a folder. Raises UserError if it cannot be read, was edited or has another schema."""
    path = folder / SCORES_NAME
    return ComparedScores.from_json(read_json(path), str(path))


def differing_names(names: Sequence[str] | Mapping[str, Any], settings: Sequence[Mapping[str, Any]]) -> list[str]:
    """Return those of `names` whose values differ between settings; a missing value counts as None."""
    return [name for name in names if len({repr(one.get(name)) for one in settings}) > 1]
