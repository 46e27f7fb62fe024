"""What became of raw pairs, kept beside what is prepared, so that the next call redoes only what changed."""

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

from retipair.config import canonical_json
from retipair.data.manifest import mistyped
from retipair.disk import changed, read_json, write_text
from retipair.errors import UserError

STATE_NAME = ".prepare.json"
STAGING = ".partial"
"""The folder in which views wait until all are there."""
VIEWS = ("cf", "fa", "mask")
_SCHEMA = "retipair.prepare-state/1"


@dataclass(frozen=True)
class Outcome:
    """What became of one pair, as kept in the state file; `files_sha256` by view, empty if refused."""

    id: str
    key: str
    source_sha256: str
    refused: str | None
    fa_to_cf: list[list[float]]
    points: list[list[float]]
    inliers: int | None
    residual_px: float | None
    consistency_before: float
    consistency: float
    files_sha256: dict[str, str]


def view_file(view: str, name: str) -> str:
    return f"{view}/{name}.png"


def earlier_outcomes(out: Path) -> dict[str, Outcome]:
    """Outcomes of the run before, by id; none where the state file is missing or not one of this version."""
    try:
        state = json.loads((out / STATE_NAME).read_text(encoding="utf-8"))
    except (FileNotFoundError, ValueError, RecursionError):
        return {}
    if not isinstance(state, dict) or state.get("schema") != _SCHEMA:
        return {}
    pairs = state.get("pairs")
    if not isinstance(pairs, list) or not all(map(_is_outcome, pairs)):
        return {}
    return {values["id"]: Outcome(**values) for values in pairs}


def _is_outcome(values: Any) -> bool:
    names = {field.name for field in fields(Outcome)}
    return isinstance(values, dict) and set(values) == names and not mistyped(Outcome, values)


def staged_outcomes(out: Path) -> dict[str, Outcome]:
    """What a run that was cut off had aligned, by id, and where it still is."""
    found: dict[str, Outcome] = {}
    for path in (out / STAGING).glob("*.json"):
        try:
            values = read_json(path)
        except UserError:
            continue
        if _is_outcome(values):
            found[values["id"]] = Outcome(**values)
    return found


def still_valid(id: str, key: str, known: Sequence[tuple[dict[str, Outcome], Path]]) -> Outcome | None:
    """What became of the pair, if all it depends on and the files it was written to are unchanged; else None."""
    for outcomes, folder in known:
        before = outcomes.get(id)
        if before is None or before.key != key:
            continue
        files = {view_file(view, before.id): sha256 for view, sha256 in before.files_sha256.items()}
        if changed(folder, files) is None:
            return before
    return None


def write_state(out: Path, outcomes: Sequence[Outcome]) -> None:
    state = {"schema": _SCHEMA, "pairs": [asdict(outcome) for outcome in outcomes]}
    write_text(out / STATE_NAME, canonical_json(state))
