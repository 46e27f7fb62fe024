"""Read and write manifests. A manifest is the list of the pairs of a prepared or generated folder.

A manifest has one JSON object per line. Paths are relative to the folder of the manifest and must not lead out
of this folder. A manifest has no timestamps, so that the manifests of two runs can be compared byte by byte.
"""

from collections.abc import Iterable, Iterator
from itertools import chain
from pathlib import Path
from typing import Annotated, Any, Literal

import msgspec

from retipair.runtime.atomic_io import atomic_write
from retipair.runtime.errors import FileError, MissingError, UserError
from retipair.runtime.jsonl import parse_json_line, to_json_line
from retipair.runtime.schema import from_values
from retipair.vision.modality import CF_FA, Modalities, find_modalities

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


class _Record(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, gc=False, tag_field="schema"):
    """Base of both kinds of manifest lines, which the key `schema` of the line tells apart; it is not a field.

    Records have no reference cycles, so the garbage collector need not look at each of a million records (`gc`).
    """


class PreparedPair(_Record, frozen=True, kw_only=True, tag=PREPARED_SCHEMA):
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


class GeneratedPair(_Record, frozen=True, kw_only=True, tag=GENERATED_SCHEMA):
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


Record = PreparedPair | GeneratedPair
FirstPairs = dict[tuple[str, str], tuple[Split, str]]
"""The split and the id of the first pair of each patient or eye, by ("patient", name) or ("eye", name)."""
_KINDS: dict[str, type[Record]] = {PREPARED_SCHEMA: PreparedPair, GENERATED_SCHEMA: GeneratedPair}
_OPTIONAL = {
    kind: [field.name for field in msgspec.structs.fields(kind) if field.default is None] for kind in _KINDS.values()
}
_PRINTABLE = ("id", "eye", "patient", "source_id", "source_eye", "cf", "fa", "mask", "base")
_SHAPES = {
    **dict.fromkeys(("fa_to_cf", "raw_cf_to_cf", "source_to_pair"), "3 x 3 numbers"),
    **{"raw_sizes": "2 x 2 numbers", "points": "rows of 4 numbers"},
}
"""The size of each matrix, for error messages; its type checks the size."""
_DECODER = msgspec.json.Decoder(Record)
_BLOCK = 2**13
"""How many characters of a manifest are decoded together. With more, collecting garbage takes longer than is gained."""


def values_of(record: Record) -> dict[str, Any]:
    """Return the values of a manifest line, by key: `schema`, then the fields in order."""
    return {"schema": record.__struct_config__.tag, **msgspec.structs.asdict(record)}


def to_line(record: Record) -> str:
    """Return the manifest line of a record, with a newline; `schema` is the first key, then the fields in order.

    Optional fields that are None are left out, as in lines of earlier versions.
    """
    return to_json_line(values_of(record), _OPTIONAL[type(record)])


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
    ids: dict[type[Record], set[str]] = {kind: set() for kind in _KINDS.values()}
    first: Record | None = None
    for number, record in enumerate(stream_manifest(folder), start=1):
        first = first or record
        if record.modalities != first.modalities or record.vessels != first.vessels:
            check_one_kind(folder, modalities_of(first), modalities_of(record), record.id)
        known = ids[type(record)]
        if record.id in known:
            raise FileError(folder / MANIFEST_NAME, f"duplicate id {record.id!r}; remove one line", number)
        known.add(record.id)
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
        before = 0
        while lines := stream.readlines(_BLOCK):
            yield from decode_plain(lines) or (
                parse_line(line, where=f"{path}, line {number}") for number, line in enumerate(lines, start=before + 1)
            )
            before += len(lines)


def has_manifest(folder: Path) -> bool:
    """Return whether `folder` has a manifest, and therefore prepared or generated pairs."""
    return (folder / MANIFEST_NAME).is_file()


def check_finished(folder: Path) -> None:
    """Raise MissingError if `prepare` or `phantom` wrote into a folder that has no manifest.

    The views in such a folder are aligned, and may be incomplete, so they must not be read as raw pairs. After
    `phantom --unregistered`, the raw pairs are in its subfolder `raw`.
    """
    if has_manifest(folder):
        return
    for command, name in STATE_NAMES.items():
        if (folder / name).is_file():
            advice = f"repeat the `retipair {command}` command that wrote the folder"
            if command == "phantom" and (folder / "raw").is_dir():  # --unregistered writes no manifest
                advice = f"its raw pairs are in {folder / 'raw'}; give that folder to `retipair prepare`"
            raise MissingError(folder, f"no {MANIFEST_NAME} here; {advice}")


def parse_line(line: str, where: str) -> Record:
    """Return the record in one manifest line. Raises UserError, which begins with `where`, if the line is invalid."""
    records = decode_plain([line])
    return records[0] if records else parse_checked(line, where)


def decode_plain(lines: list[str]) -> list[Record] | None:
    """Return the records in manifest lines whose texts need no check, in a fraction of the time of `parse_checked`.

    Returns None if a line is invalid, or if a text in it may be unprintable or a path that leaves the folder.
    """
    text = "".join(lines)
    if "\\" in text or "\x7f" in text or not (text.isascii() or text.replace("\n", "").isprintable()):
        return None  # the decoder refuses all other unprintable characters of ASCII
    try:
        records = _DECODER.decode_lines(text)
        for record in records:
            modalities_of(record)
    except ValueError:
        return None
    # The decoder ignores empty lines, and accepts several records on a line and a record on several lines.
    if len(records) != len(lines) or not all(line[0] == "{" for line in lines):
        return None
    return records if _have_plain_paths(records) else None


def _have_plain_paths(records: Iterable[Record]) -> bool:
    """Return whether no path of the records begins with a slash or contains two dots in succession."""
    paths = "\n".join(["", *chain.from_iterable(map(files_of, records))])  # one text is searched faster than many
    return "\n/" not in paths and ".." not in paths


def parse_checked(line: str, where: str) -> Record:
    """Return the record in one manifest line, as `parse_line` does. The errors name the key and its value."""
    values = parse_json_line(line, where, "make the folder again")
    kind = _KINDS.get(str(values.pop("schema", None))) if isinstance(values, dict) else None
    if kind is None:
        raise UserError(f"{where}: unknown schema; this version reads {', '.join(_KINDS)}")
    from_values(kind, values, where, "make the folder again")  # its errors name the key and the value
    if key := next((key for key in _PRINTABLE if not str(values.get(key, "")).isprintable()), None):
        raise UserError(f"{where}: {key} has unprintable characters; make the folder again")
    try:
        find_modalities(values.get("modalities"), values.get("vessels"))
    except ValueError as error:
        raise UserError(f"{where}: modalities and vessels: {error}; make the folder again") from None
    try:
        record = msgspec.convert(values, kind)  # ints in fields of floats become floats, as in `decode_plain`
    except msgspec.ValidationError as error:  # `from_values` has checked everything but the sizes of matrices
        key = next(key for key in _SHAPES if f"$.{key}" in str(error))
        raise UserError(f"{where}: {key} must be {_SHAPES[key]}; make the folder again") from None
    for relative in files_of(record):
        _check_inside(relative, where)
    return record


def files_of(record: Record) -> list[str]:
    """Return the paths of the views of a pair and, for a prepared pair, of its mask; relative to the folder."""
    return [record.cf, record.fa, record.mask] if isinstance(record, PreparedPair) else [record.cf, record.fa]


def modalities_of(record: Record) -> Modalities:
    """Return the modalities of the two views of a pair."""
    if record.modalities is None and record.vessels is None:
        return CF_FA
    return find_modalities(record.modalities, record.vessels)


def check_one_kind(where: Path, expected: Modalities, found: Modalities, id: str) -> None:
    """Raise FileError, naming the folder `where`, if its pair `id` has other modalities or vessels than expected."""
    if found != expected:
        problem = f"pair {id} is {found}, not {expected}"
        raise FileError(where, f"{problem}; use a folder of its own for each kind of pair, with an adapter of its own")


def check_split(where: Path, record: PreparedPair, first_pairs: FirstPairs) -> None:
    """Raise FileError, naming the file `where`, if it puts pairs of one patient, or of one eye, into different splits.

    This can happen if a user edits the file. The eye is compared only if the record has no patient.

    record: the record to check against the earlier records of the file.
    first_pairs: the first pair of each patient or eye. `record` is added if it is the first.
    """
    group = ("patient", record.patient) if record.patient else ("eye", record.eye)
    split, id = first_pairs.setdefault(group, (record.split, record.id))
    if record.split != split:
        problem = f"{' '.join(group)} is both in {split} ({id}) and in {record.split} ({record.id})"
        raise FileError(where, f"{problem}; put all its pairs in one split")


def _check_inside(relative: str, where: str) -> None:
    if relative.startswith("/") or ".." in relative.split("/") or "\\" in relative:
        raise UserError(f"{where}: path {relative!r} is outside the manifest's folder")
