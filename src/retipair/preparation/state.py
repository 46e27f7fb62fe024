"""Read and write the state file of `prepare`: the result of each alignment, so that the next run can reuse it."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from retipair.data.manifest import STATE_NAMES
from retipair.data.pair import px_at_512
from retipair.runtime.atomic_io import find_checksum_mismatch, read_json, write_text
from retipair.runtime.errors import UserError
from retipair.runtime.schema import canonical_json, from_values

STATE_NAME = STATE_NAMES["prepare"]
STAGING = ".partial"
"""Name of the staging folder in OUT, which contains the aligned views until all pairs are aligned."""
VIEWS = ("cf", "fa", "mask")
_MIN_PAIRS_TO_COMPARE = 5
_OUTLIER_MADS = 3 * 1.4826  # in median absolute deviations; 3 sigma of a normal distribution
_CONSISTENCY_FLOOR = 0.15  # an outlier is below the median by more than this
_RESIDUAL_FLOOR_PX = 2.0  # in a view 512 px wide: an outlier is above the median by more than this
_SCHEMA = "retipair.prepare-state/1"


@dataclass(frozen=True)
class AlignmentResult:
    """The result of the alignment of one pair, as stored in the state file.

    key: the hash of all that the aligned views depend on (`alignment.alignment_key`).
    refused: the reason why the pair was refused, or None if it was kept.
    doubt: the reason why the user should inspect a pair that was kept, or None.
    files_sha256: the hashes of the aligned views, by name of the view; empty if the pair was refused.
    chosen: which of several photographs and frames were aligned, as text; None if there was no choice.

    The other fields have the same meaning as in the manifest (`PreparedPair`).
    """

    id: str
    key: str
    source_sha256: str
    refused: str | None
    doubt: str | None
    native_size: list[int]
    raw_sizes: list[list[int]]
    raw_cf_to_cf: list[list[float]]
    fa_to_cf: list[list[float]]
    points: list[list[float]]
    inliers: int | None
    residual_px: float | None
    consistency_before: float
    consistency: float
    files_sha256: dict[str, str]
    chosen: str | None = None


def view_file(view: str, name: str) -> str:
    return f"{view}/{name}.png"


def load_previous_results(out: Path) -> dict[str, AlignmentResult]:
    """Return the results of the last run, by id. Empty if the state file is missing, invalid or of another version."""
    path = out / STATE_NAME
    try:
        state = read_json(path)
        results = [_result(values, path) for values in state["pairs"]] if state.get("schema") == _SCHEMA else []
    except (UserError, KeyError, TypeError):
        return {}
    return {result.id: result for result in results}


def _result(values: Any, path: Path) -> AlignmentResult:
    return from_values(AlignmentResult, values, str(path), "delete the file, and the pairs are aligned again")


def load_staged_results(out: Path) -> dict[str, AlignmentResult]:
    """Return the results that an interrupted run left in the staging folder, by id."""
    results: dict[str, AlignmentResult] = {}
    for path in (out / STAGING).glob("*.json"):
        try:
            result = _result(read_json(path), path)
        except UserError:
            continue
        results[result.id] = result
    return results


def reusable_result(
    id: str, key: str, earlier: Sequence[tuple[dict[str, AlignmentResult], Path]]
) -> AlignmentResult | None:
    """Return an earlier result of a pair if its inputs and its aligned views have not changed since, else None.

    id: the id of the pair.
    key: the current `alignment_key` of the pair.
    earlier: the results of earlier runs by id, each with the folder that contains the aligned views.
    """
    for results, folder in earlier:
        result = results.get(id)
        if result is None or result.key != key:
            continue
        files = {view_file(view, result.id): sha256 for view, sha256 in result.files_sha256.items()}
        if find_checksum_mismatch(folder, files) is None:
            return result
    return None


def write_state(out: Path, results: Sequence[AlignmentResult]) -> None:
    state = {"schema": _SCHEMA, "pairs": [asdict(result) for result in results]}
    write_text(out / STATE_NAME, canonical_json(state))


def doubtful(results: Sequence[AlignmentResult], size: int) -> dict[str, str]:
    """Return, by id, the reasons why the user should inspect pairs that were kept.

    A reason is the `doubt` of the alignment, a consistency far below the median, or a residual far above the median.
    Residuals that were measured at landmarks are compared only with one another, and so are residuals of vessel
    patches.
    """
    kept = [result for result in results if not result.refused]
    metrics = [("consistency", "{:.2f}", _CONSISTENCY_FLOOR, {result.id: -result.consistency for result in kept})]
    for by_points in (True, False):
        residuals = {
            result.id: px_at_512(result.residual_px, size)
            for result in kept
            if result.residual_px is not None and bool(result.points) == by_points
        }
        metrics.append(("residual", "{:.1f} px", _RESIDUAL_FLOOR_PX, residuals))
    reasons: dict[str, list[str]] = {result.id: [result.doubt] if result.doubt else [] for result in kept}
    for name, number, floor, values in metrics:
        for id, median in _outliers(values, floor).items():
            value, others = (number.format(abs(one)) for one in (values[id], median))
            reasons[id].append(f"{name} {value}, the median of the others is {others}")
    return {id: "; ".join(texts) for id, texts in reasons.items() if texts}


def _outliers(values: dict[str, float], floor: float) -> dict[str, float]:
    """Return, for each id whose value is an outlier, the median of the values of all other ids.

    A value is an outlier if it exceeds the median of all values by more than `floor` and by more than three standard
    deviations, which are estimated from the median absolute deviation. Fewer than five values have no outliers.
    """
    if len(values) < _MIN_PAIRS_TO_COMPARE:
        return {}
    array = np.array(list(values.values()))
    deviation = float(np.median(abs(array - np.median(array))))
    limit = float(np.median(array)) + max(_OUTLIER_MADS * deviation, floor)
    others = {id: float(np.median([v for other, v in values.items() if other != id])) for id in values}
    return {id: others[id] for id, value in values.items() if value > limit}
