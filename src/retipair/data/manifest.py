"""Read and write manifests. A manifest is the list of the pairs of a prepared or generated folder.

A manifest has one JSON object per line. Paths are relative to the folder of the manifest and must not lead out
of this folder. A manifest has no timestamps, so that the manifests of two runs can be compared byte by byte.
"""

from collections.abc import Iterable, Iterator
from dataclasses import MISSING, dataclass, fields
from pathlib import Path
from typing import Annotated, Any, Literal, get_type_hints

import msgspec

from retipair.runtime.atomic_io import atomic_write
from retipair.runtime.errors import FileError, MissingError, UserError
from retipair.runtime.jsonl import parse_json_line, to_json_line
from retipair.runtime.schema import from_values
from retipair.vision.modality import Modalities, find_modalities

_ADVICE = "`retipair prepare RAW NEW_FOLDER` makes a folder with a manifest from raw views"
MANIFEST_NAME = "manifest.jsonl"
PREPARED_SCHEMA = "retipair.prepared/1"
GENERATED_SCHEMA = "retipair.generated/1"
STATE_NAMES = {"prepare": ".prepare.json", "phantom": ".phantom.json"}
"""The name of the state file that a command writes into its output folder before the manifest, by command."""

Split = Literal["train", "val", "test"]
SPLITS: tuple[Split, ...] = ("train", "val", "test")

GeneratedMode = Literal["noise", "from_data", "cf2fa", "fa2cf"]
GIVEN_VIEWS: dict[str, Literal["cf", "fa"]] = {"cf2fa": "cf", "fa2cf": "fa"}
"""For each mode that generates one view from the other: the view that is given."""


_TWO, _THREE, _FOUR = (msgspec.Meta(min_length=length, max_length=length) for length in (2, 3, 4))
_Int = Annotated[int, msgspec.Meta(ge=1 - 2**63, le=2**63 - 1)]
"""An integer of at most 63 bits, as `from_values` requires."""
_Matrix = Annotated[list[Annotated[list[float], _THREE]], _THREE]
"""A 3x3 matrix, as a list of rows."""
_Points = list[Annotated[list[float], _FOUR]]
_Sizes = Annotated[list[Annotated[list[_Int], _TWO]], _TWO]


@dataclass(frozen=True, kw_only=True, slots=True)
class PreparedPair:
    """Manifest line of one aligned pair, written by `prepare` or `phantom`.

    fa_to_cf: the 3x3 homography that maps pixel centres of the raw FA to pixel centres of the prepared CF.
    points: the landmarks of both views, one row (cf_x, cf_y, fa_x, fa_y) each, in px of the prepared views.
    inliers: the number of landmarks that agree with the homography before refinement, or of matched features that agree
    after it; None if neither were used.
    residual_px: the median distance between corresponding landmarks of CF and FA, in px of the prepared views. For a
    pair without landmarks, it is the median shift between vessel patches of CF and FA with `--register features` or
    `auto`, and None otherwise.
    consistency: the correlation of the vesselness of CF and FA, in [-1, 1].
    consistency_before: the consistency before the registration was refined.
    native_size: the side of the square to which both views are cropped, in px of the raw CF and in px of the raw FA.
    A view whose native size is below `size` was enlarged. None if the raw views are not known: for rendered pairs, for
    generated pairs imported from an export, and in manifests of earlier versions.
    raw_sizes: the [width, height] of the raw CF and of the raw FA, px; None as for `native_size`.
    raw_cf_to_cf: the 3x3 transform from pixel centres of the raw CF to pixel centres of the prepared CF, which crops
    and scales. Together with `fa_to_cf`, it gives the transform between the raw views. None as for `native_size`.
    mode, source_id: as in `GeneratedPair`, if the pair was generated and then imported from an export; else None.
    modalities: the keys of the modalities of the first view (`cf`) and of the second (`fa`); None for CF and FA.
    vessels: whether vessels are "dark" or "bright" in the first and in the second view; None for CF and FA.
    """

    id: str
    eye: str
    patient: str | None
    split: Split
    cf: str
    fa: str
    mask: str
    size: _Int
    caption: str | None
    source_sha256: str
    fa_to_cf: _Matrix
    points: _Points
    inliers: _Int | None
    residual_px: float | None
    consistency_before: float
    consistency: float
    native_size: list[_Int] | None = None
    raw_sizes: _Sizes | None = None
    raw_cf_to_cf: _Matrix | None = None
    mode: GeneratedMode | None = None
    source_id: str | None = None
    modalities: list[str] | None = None
    vessels: list[str] | None = None
    schema: str = PREPARED_SCHEMA


@dataclass(frozen=True, kw_only=True, slots=True)
class GeneratedPair:
    """Manifest line of one synthetic pair, written by `generate`.

    index: the number of the pair, from 1, which is also the name of the pair's subfolder.
    source_id: the id of the pair that was varied (mode "from_data") or of the given view (modes "cf2fa" and "fa2cf");
    None in the mode "noise".
    source_eye: the patient of that source, or its eye if the patient is unknown, or its id if both are unknown. All
    pairs with the same source_eye are in one split.
    adapter_sha256: None if the base generated the pair without an adapter.
    fa_chroma: the mean chroma of the FA before it was converted to grey, in [0, 255].
    source_to_pair: the 3x3 transform from pixel centres of the given view's file to pixel centres of the pair; only in
    the modes "cf2fa" and "fa2cf".
    source_size: the [width, height] of the given view's file, in px; only in these modes.
    modalities, vessels: as in `PreparedPair`.
    """

    id: str
    index: _Int
    seed: _Int
    attempt: _Int
    mode: GeneratedMode
    source_id: str | None
    source_eye: str | None
    strength: float | None
    prompt: str
    cf: str
    fa: str
    size: _Int
    base: str
    adapter_sha256: str | None
    settings_sha256: str
    fa_chroma: float
    consistency: float
    source_to_pair: _Matrix | None = None
    source_size: list[_Int] | None = None
    modalities: list[str] | None = None
    vessels: list[str] | None = None
    schema: str = GENERATED_SCHEMA


Record = PreparedPair | GeneratedPair
_PRINTABLE = ("id", "eye", "patient", "source_id", "source_eye", "cf", "fa", "mask", "base")
_KINDS: dict[str, type[Record]] = {PREPARED_SCHEMA: PreparedPair, GENERATED_SCHEMA: GeneratedPair}
_START = '{"schema": "'
"""The beginning of each line that `to_line` returns."""


def _decoder(schema: str, kind: type[Record]) -> msgspec.json.Decoder[msgspec.Struct]:
    """Return a decoder of lines of this kind. Unlike a decoder of the dataclass, it accepts no unknown keys."""
    hints = get_type_hints(kind, include_extras=True) | {"schema": Literal[schema]}
    members: list[Any] = [
        (field.name, hints[field.name], *([] if field.default is MISSING else [field.default]))
        for field in fields(kind)
    ]
    struct = msgspec.defstruct(kind.__name__, members, forbid_unknown_fields=True, kw_only=True, gc=False)
    return msgspec.json.Decoder(struct)


_DECODERS = {kind: _decoder(schema, kind) for schema, kind in _KINDS.items()}
_SHAPES = {
    **{"fa_to_cf": (3, 3), "raw_cf_to_cf": (3, 3), "source_to_pair": (3, 3)},
    **{"raw_sizes": (2, 2), "points": (None, 4)},
}
"""The number of rows and of columns of each matrix, as in the types above; None for any number of rows."""
_OPTIONAL = {schema: [field.name for field in fields(kind) if field.default is None] for schema, kind in _KINDS.items()}


def to_line(record: Record) -> str:
    """Return the manifest line of a record, with a newline; `schema` is the first key, then the fields in order.

    Optional fields that are None are left out, as in lines of earlier versions.
    """
    return to_json_line(record, _OPTIONAL[record.schema])


def write_manifest(folder: Path, records: Iterable[Record]) -> None:
    """Write `folder/manifest.jsonl` atomically."""
    with atomic_write(folder / MANIFEST_NAME) as stream:
        stream.writelines(to_line(record).encode() for record in records)


def read_manifest(folder: Path) -> Iterator[Record]:
    """Yield the records of `folder/manifest.jsonl` in order.

    Raises MissingError if there is no manifest, and UserError, naming file and line, for invalid JSON, an unknown
    schema, unknown or missing keys, a value of the wrong type or shape, a duplicate id, or a path outside the folder,
    and if pairs have different modalities.
    """
    ids: set[tuple[str, str]] = set()
    first: Record | None = None
    for number, record in enumerate(stream_manifest(folder), start=1):
        first = first or record
        if (record.modalities, record.vessels) != (first.modalities, first.vessels):
            check_one_kind(folder, modalities_of(first), modalities_of(record), record.id)
        if (record.schema, record.id) in ids:
            raise FileError(folder / MANIFEST_NAME, f"duplicate id {record.id!r}; remove one line", number)
        ids.add((record.schema, record.id))
        yield record


def stream_manifest(folder: Path) -> Iterator[Record]:
    """Yield the records as `read_manifest` does, in constant memory.

    It detects neither duplicate ids nor mixed modalities.
    """
    path = folder / MANIFEST_NAME
    if not path.is_file():
        check_finished(folder)
        subfolders = sorted(path.parent.name for path in folder.glob(f"*/{MANIFEST_NAME}"))
        advice = f"use one of its subfolders: {', '.join(subfolders[:5])}" if subfolders else _ADVICE
        raise MissingError(folder, f"no {MANIFEST_NAME} here; {advice}")
    with path.open(encoding="utf-8", errors="surrogateescape") as stream:  # `parse_line` refuses the surrogates
        for number, line in enumerate(stream, start=1):
            yield parse_line(line, where=f"{path}, line {number}")


def check_finished(folder: Path) -> None:
    """Raise MissingError if `prepare` or `phantom` wrote into a folder that has no manifest.

    The views in such a folder are aligned, and may be incomplete, so they must not be read as raw pairs. After
    `phantom --unregistered`, the raw pairs are in its subfolder `raw`.
    """
    if (folder / MANIFEST_NAME).is_file():
        return
    for command, name in STATE_NAMES.items():
        if (folder / name).is_file():
            advice = f"repeat the `retipair {command}` command that wrote the folder"
            if command == "phantom" and (folder / "raw").is_dir():  # --unregistered writes no manifest
                advice = f"its raw pairs are in {folder / 'raw'}; give that folder to `retipair prepare`"
            raise MissingError(folder, f"no {MANIFEST_NAME} here; {advice}")


def parse_line(line: str, where: str) -> Record:
    """Return the record in one manifest line. Raises UserError, which begins with `where`, if the line is invalid."""
    return decode_plain(line) or parse_checked(line, where)


def decode_plain(line: str) -> Record | None:
    """Return the record in a line whose texts need no check, in about a third of the time of `parse_checked`.

    Integers in fields of floats become floats.
    Returns None if the line is invalid, or if a text in it may be unprintable or a path that leaves the folder.
    """
    if not line.removesuffix("\n").isprintable() or "\\" in line or ".." in line or '"/' in line:
        return None
    kind = _KINDS.get(line[len(_START) : line.find('"', len(_START))]) if line.startswith(_START) else None
    if kind is None:
        return None
    try:
        record = kind(**msgspec.structs.asdict(_DECODERS[kind].decode(line)))
        modalities_of(record)
    except ValueError:
        return None
    return record


def parse_checked(line: str, where: str) -> Record:
    """Return the record in one manifest line, as `parse_line` does. The errors name the key and its value."""
    values = parse_json_line(line, where, "make the folder again")
    kind = _KINDS.get(str(values.get("schema"))) if isinstance(values, dict) else None
    if kind is None:
        raise UserError(f"{where}: unknown schema; this version reads {', '.join(_KINDS)}")
    record = from_values(kind, values, where, "make the folder again")
    if key := next((key for key in _PRINTABLE if not str(values.get(key, "")).isprintable()), None):
        raise UserError(f"{where}: {key} has unprintable characters; make the folder again")
    try:
        modalities_of(record)
    except ValueError as error:
        raise UserError(f"{where}: modalities and vessels: {error}; make the folder again") from None
    _check_shapes(values, where)
    for relative in (record.cf, record.fa, *([record.mask] if isinstance(record, PreparedPair) else [])):
        _check_inside(relative, where)
    return record


def modalities_of(record: Record) -> Modalities:
    """Return the modalities of the two views of a pair."""
    return find_modalities(record.modalities, record.vessels)


def check_one_kind(where: Path, expected: Modalities, found: Modalities, id: str) -> None:
    """Raise FileError, naming the folder `where`, if its pair `id` has other modalities or vessels than expected."""
    if found != expected:
        problem = f"pair {id} is {found}, not {expected}"
        raise FileError(where, f"{problem}; use a folder of its own for each kind of pair, with an adapter of its own")


def check_split(where: Path, record: PreparedPair, first_records: dict[str, PreparedPair]) -> None:
    """Raise FileError, naming the file `where`, if it puts pairs of one patient, or of one eye, into different splits.

    This can happen if a user edits the file. The eye is compared only if the record has no patient.

    record: the record to check against the earlier records of the file.
    first_records: the first record of each patient or eye. `record` is added if it is the first.
    """
    group = f"patient {record.patient}" if record.patient else f"eye {record.eye}"
    other = first_records.setdefault(group, record)
    if record.split != other.split:
        problem = f"{group} is both in {other.split} ({other.id}) and in {record.split} ({record.id})"
        raise FileError(where, f"{problem}; put all its pairs in one split")


def _check_shapes(values: dict[str, Any], where: str) -> None:
    """Raise UserError, which begins with `where`, if a matrix in a line has another number of rows or columns."""
    for key, (rows, columns) in _SHAPES.items():
        if key not in values or values[key] is None:
            continue
        matrix = values[key]
        if (rows and len(matrix) != rows) or not set(map(len, matrix)) <= {columns}:
            size = f"{rows} x {columns} numbers" if rows else f"rows of {columns} numbers"
            raise UserError(f"{where}: {key} must be {size}; make the folder again")


def _check_inside(relative: str, where: str) -> None:
    if relative.startswith("/") or ".." in relative.split("/") or "\\" in relative:
        raise UserError(f"{where}: path {relative!r} is outside the manifest's folder")
