"""What became of raw pairs, kept beside what is prepared, so that the next call redoes only what changed."""

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np

from retipair.data.manifest import find_type_error
from retipair.data.pair import px_at_512
from retipair.runtime.atomic_io import find_checksum_mismatch, read_json, write_text
from retipair.runtime.errors import UserError
from retipair.runtime.schema import canonical_json

STATE_NAME = ".prepare.json"
STAGING = ".partial"
"""The folder in which views wait until all are there."""
VIEWS = ("cf", "fa", "mask")
_FEWEST_TO_COMPARE = 5  # pairs
_FAR = 3 * 1.4826  # median absolute deviations: three standard deviations, were they normally distributed
_CONSISTENCY_FLOOR = 0.15  # closer to the median is no outlier
_RESIDUAL_FLOOR_PX = 2.0  # at 512
_SCHEMA = "retipair.preparation.prepare-state/1"


@dataclass(frozen=True)
class AlignmentResult:
    """What became of one pair, as kept in the state file; `files_sha256` by view, empty if refused.

    `doubt` says why to look at a pair that was kept; all else as in the manifest.
    """

    id: str
    key: str
    source_sha256: str
    refused: str | None
    doubt: str | None
    fa_to_cf: list[list[float]]
    points: list[list[float]]
    inliers: int | None
    residual_px: float | None
    consistency_before: float
    consistency: float
    files_sha256: dict[str, str]


def view_file(view: str, name: str) -> str:
    return f"{view}/{name}.png"


def load_previous_results(out: Path) -> dict[str, AlignmentResult]:
    """Outcomes of the run before, by id; none where the state file is missing or not one of this version."""
    try:
        state = json.loads((out / STATE_NAME).read_text(encoding="utf-8"))
    except (FileNotFoundError, ValueError, RecursionError):
        return {}
    if not isinstance(state, dict) or state.get("schema") != _SCHEMA:
        return {}
    pairs = state.get("pairs")
    if not isinstance(pairs, list) or not all(map(_is_result, pairs)):
        return {}
    return {values["id"]: AlignmentResult(**values) for values in pairs}


def _is_result(values: Any) -> bool:
    names = {field.name for field in fields(AlignmentResult)}
    return isinstance(values, dict) and set(values) == names and not find_type_error(AlignmentResult, values)


def load_staged_results(out: Path) -> dict[str, AlignmentResult]:
    """What a run that was cut off had aligned, by id, and where it still is."""
    found: dict[str, AlignmentResult] = {}
    for path in (out / STAGING).glob("*.json"):
        try:
            values = read_json(path)
        except UserError:
            continue
        if _is_result(values):
            found[values["id"]] = AlignmentResult(**values)
    return found


def reusable_result(
    id: str, key: str, known: Sequence[tuple[dict[str, AlignmentResult], Path]]
) -> AlignmentResult | None:
    """What became of the pair, if all it depends on and the files it was written to are unchanged; else None."""
    for outcomes, folder in known:
        before = outcomes.get(id)
        if before is None or before.key != key:
            continue
        files = {view_file(view, before.id): sha256 for view, sha256 in before.files_sha256.items()}
        if find_checksum_mismatch(folder, files) is None:
            return before
    return None


def write_state(out: Path, outcomes: Sequence[AlignmentResult]) -> None:
    state = {"schema": _SCHEMA, "pairs": [asdict(outcome) for outcome in outcomes]}
    write_text(out / STATE_NAME, canonical_json(state))


def doubtful(outcomes: Sequence[AlignmentResult], size: int) -> dict[str, str]:
    """Why to look at pairs that were kept, by id: doubts of their own, or figures that are outliers in the set.

    Residuals at landmarks are compared with one another, and so are those over patches of vessels.
    """
    kept = [outcome for outcome in outcomes if not outcome.refused]
    figures = [("consistency {:.2f}", _CONSISTENCY_FLOOR, {one.id: -one.consistency for one in kept})]
    for by_points in (True, False):
        reprojection_errors = {
            one.id: px_at_512(one.residual_px, size)
            for one in kept
            if one.residual_px is not None and bool(one.points) == by_points
        }
        figures.append(("residual {:.1f} px", _RESIDUAL_FLOOR_PX, reprojection_errors))
    found: dict[str, list[str]] = {one.id: [one.doubt] if one.doubt else [] for one in kept}
    for text, floor, values in figures:
        for id, median in _outliers(values, floor).items():
            found[id].append(f"{text.format(abs(values[id]))}, the median of the others is {abs(median):.2f}")
    return {id: "; ".join(texts) for id, texts in found.items() if texts}


def _outliers(values: dict[str, float], floor: float) -> dict[str, float]:
    """Those values that lie above the median by three robust deviations and by `null_mmd2`, with the others' median."""
    if len(values) < _FEWEST_TO_COMPARE:
        return {}
    every = np.array(list(values.values()))
    deviation = float(np.median(abs(every - np.median(every))))
    limit = float(np.median(every)) + max(_FAR * deviation, floor)
    others = {id: float(np.median([v for other, v in values.items() if other != id])) for id in values}
    return {id: others[id] for id, value in values.items() if value > limit}
