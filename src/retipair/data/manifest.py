"""The manifest lists the pairs of a folder; `prepare` and `generate` write it, other commands read it.

One JSON object per line. Paths are relative to the manifest and stay inside its folder. Unknown keys are refused.
There are no timestamps, so that two runs can be compared.
"""

import json
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal

from retipair.runtime.atomic_io import atomic_write
from retipair.runtime.errors import FileError, MissingError, UserError
from retipair.runtime.schema import from_values

_ADVICE = "`retipair prepare RAW NEW_FOLDER` makes a folder with a manifest from raw views"
MANIFEST_NAME = "manifest.jsonl"
PREPARED_SCHEMA = "retipair.prepared/1"
GENERATED_SCHEMA = "retipair.generated/1"

Split = Literal["train", "val", "test"]
SPLITS: tuple[Split, ...] = ("train", "val", "test")


@dataclass(frozen=True, kw_only=True, slots=True)
class PreparedPair:
    """Manifest line of one aligned pair, written by `prepare`.

    `points` are the landmarks of both views in the prepared frame, rows of (cf_x, cf_y, fa_x, fa_y) px.
    `fa_to_cf` (3x3) maps pixel centres of the raw FA to pixel centres of the prepared CF.
    `residual_px` is the median distance of CF and FA landmarks, or without landmarks the median shift of vessel patches
    (method "features"), in px of the prepared frame; None if neither was measured.
    `consistency` is the vesselness correlation in [-1, 1]; `consistency_before` is its value before refinement.
    """

    id: str
    eye: str
    patient: str | None
    split: Split
    cf: str
    fa: str
    mask: str
    size: int
    caption: str | None
    source_sha256: str
    fa_to_cf: list[list[float]]
    points: list[list[float]]
    inliers: int | None
    residual_px: float | None
    consistency_before: float
    consistency: float
    schema: str = PREPARED_SCHEMA


@dataclass(frozen=True, kw_only=True, slots=True)
class GeneratedPair:
    """Manifest line of one synthetic pair, written by `generate`.

    `source_eye` is the patient, or else the eye, of the source pair; all its variations stay in one split.
    `index` counts from 1 and names the pair's folder. `fa_chroma` is the mean chroma removed from FA, in [0, 255].
    """

    id: str
    index: int
    seed: int
    attempt: int
    mode: Literal["noise", "from_data"]
    source_id: str | None
    source_eye: str | None
    strength: float | None
    prompt: str
    cf: str
    fa: str
    size: int
    base: str
    adapter_sha256: str
    settings_sha256: str
    fa_chroma: float
    consistency: float
    schema: str = GENERATED_SCHEMA


Record = PreparedPair | GeneratedPair
_PRINTABLE = ("id", "eye", "patient", "source_id", "source_eye", "cf", "fa", "mask", "base")
_KINDS: dict[str, type[Record]] = {PREPARED_SCHEMA: PreparedPair, GENERATED_SCHEMA: GeneratedPair}


def to_line(record: Record) -> str:
    """Format one manifest line, newline included; keys in schema order, `schema` first."""
    values = asdict(record)
    return json.dumps({"schema": values.pop("schema"), **values}, ensure_ascii=False, allow_nan=False) + "\n"


def write_manifest(folder: Path, records: Iterable[Record]) -> None:
    """Write `folder/manifest.jsonl` atomically."""
    with atomic_write(folder / MANIFEST_NAME) as stream:
        stream.writelines(to_line(record).encode() for record in records)


def read_manifest(folder: Path) -> Iterator[Record]:
    """Yield the records of `folder/manifest.jsonl` in order.

    Raises UserError, naming file and line, for a missing manifest, invalid JSON, an unknown schema, unknown or missing
    keys, a value of the wrong type, a duplicate id, or a path outside the folder.
    """
    path = folder / MANIFEST_NAME
    if not path.is_file():
        subfolders = sorted(path.parent.name for path in folder.glob(f"*/{MANIFEST_NAME}"))
        advice = f"use one of its subfolders: {', '.join(subfolders[:5])}" if subfolders else _ADVICE
        raise MissingError(folder, f"no {MANIFEST_NAME} here; {advice}")
    ids: set[tuple[str, str]] = set()
    with path.open(encoding="utf-8", errors="surrogateescape") as stream:  # surrogates are refused by `parse_line`
        for number, line in enumerate(stream, start=1):
            record = parse_line(line, where=f"{path}, line {number}")
            if (record.schema, record.id) in ids:
                raise FileError(path, f"duplicate id {record.id!r}; remove one line", number)
            ids.add((record.schema, record.id))
            yield record


def parse_line(line: str, where: str) -> Record:
    """Parse one manifest line; `where` names its place in errors."""
    try:
        values = json.loads(line)
    except (ValueError, RecursionError) as error:
        advice = "make the folder again"
        if not line.endswith("\n"):  # the incomplete last line of a killed command
            advice = "repeat the command that wrote it, which repairs it"
        raise UserError(f"{where}: not JSON ({error}); {advice}") from None
    kind = _KINDS.get(str(values.get("schema"))) if isinstance(values, dict) else None
    if kind is None:
        raise UserError(f"{where}: unknown schema; this version reads {', '.join(_KINDS)}")
    record = from_values(kind, values, where, "make the folder again")
    if key := next((key for key in _PRINTABLE if not str(values.get(key, "")).isprintable()), None):
        raise UserError(f"{where}: {key} has unprintable characters; make the folder again")
    for relative in (record.cf, record.fa, *([record.mask] if isinstance(record, PreparedPair) else [])):
        _check_inside(relative, where)
    return record


def _check_inside(relative: str, where: str) -> None:
    if relative.startswith("/") or ".." in relative.split("/") or "\\" in relative:
        raise UserError(f"{where}: path {relative!r} is outside the manifest's folder")
