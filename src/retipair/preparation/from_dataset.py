"""Read a Hugging Face data set (Parquet files with images inside) as raw pairs or, if exported, as prepared pairs.

A data set of `retipair export pairs` has aligned pairs with masks: `import_pairs` writes them, byte for byte, into a
prepared folder. Any other data set has raw pairs: `extracted_views` writes their images into a temporary folder with a
table, which is prepared like a table of the user.
"""

import io
import json
import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from PIL import Image, UnidentifiedImageError

from retipair.config import PrepareConfig
from retipair.data.contact_sheet import SHEET_NAME, contact_sheet, load_titled, sheet_mark
from retipair.data.dataset_row import VIEWS, to_prepared
from retipair.data.manifest import (
    MANIFEST_NAME,
    FirstPairs,
    PreparedPair,
    Split,
    check_one_kind,
    check_split,
    has_manifest,
    modalities_of,
    write_manifest,
)
from retipair.data.pair import MEGAPIXELS, save_image
from retipair.data.parquet import (
    image_bytes,
    image_columns,
    is_parquet_dataset,
    parquet_files,
    read_rows,
    read_schema,
    split_in_name,
)
from retipair.data.sources import find_pairs
from retipair.preparation.export_pairs import STATE_NAME as EXPORT_STATE_NAME
from retipair.preparation.export_pairs import read_export
from retipair.preparation.state import STATE_NAME
from retipair.runtime.atomic_io import atomic_write, file_sha256, is_leftover, read_json, temp_path, write_text
from retipair.runtime.console import console, track
from retipair.runtime.errors import FileError, MissingError, OccupiedError, SettingError, UserError
from retipair.runtime.lock import directory_lock
from retipair.runtime.schema import canonical_json, json_sha256

_NAMES = {
    "cf": ("cf", "cfp", "fundus", "colour", "color", "colour_fundus", "color_fundus"),
    "fa": ("fa", "ffa", "angiogram", "fluorescein", "fluorescein_angiogram"),
}
"""The names of columns, in lower case, that are recognised as a view."""
_TEXTS = ("id", "eye", "patient", "split", "caption", "cf_modality", "fa_modality")
_SUFFIXES = (".png", ".jpg", ".jpeg", ".tif", ".tiff", ".bmp", ".webp")
_ROW = "extracted_row_"
"""The names of temporary images begin with it, and end with the line of their pair in the table."""
_IMPORT_SCHEMA = "retipair.import-state/1"
_EXPORTED = (*VIEWS, "schema", "id", "split", "size", "consistency")
"""Columns that every export has."""
_MARKS = {"consistency_before", "settings_sha256", "fa_chroma"}
"""Columns that only exports have: of prepared pairs the first, of generated pairs the others."""


def is_export(data: Path) -> bool:
    """Return whether a data set was written by `retipair export pairs`, as its columns or its state file show.

    Raises FileError, naming the file and the column, if an export lacks a column. Read as raw pairs, its aligned pairs
    would be aligned again, and would get other splits.
    """
    files = parquet_files(data)
    if not ((data / EXPORT_STATE_NAME).is_file() or any(map(_is_exported, files))):
        return False
    for path in files:
        names = read_schema(path).names
        if missing := [name for name in _EXPORTED if name not in names]:
            problem = f"belongs to an export of `retipair export pairs`, but has no column {missing[0]}"
            raise FileError(path, f"{problem}; export the pairs again, or copy the file as it was exported")
    return True


def _is_exported(path: Path) -> bool:
    names = set(read_schema(path).names)
    if names & _MARKS or names >= {*_EXPORTED}:
        return True
    first = next(read_rows(path, ["schema"]), None) if "schema" in names else None
    return first is not None and str(first[1]["schema"]).startswith("retipair.")


def dataset_sha256(data: Path) -> str:
    """Return a hash of the names, folders and content of the Parquet files of a data set; folders may state splits."""
    root = data if data.is_dir() else data.parent
    return json_sha256([[path.relative_to(root).as_posix(), file_sha256(path)] for path in parquet_files(data)])


def raw_captions(data: Path) -> list[tuple[str, str | None]]:
    """Return (id, caption) of each pair of a data set, a raw folder or a table, without reading images."""
    if is_parquet_dataset(data):
        return [(row["id"], row.get("caption")) for _, row, _ in _described_rows(data, [])]
    # Ids of DICOM files name patients, so their pairs are numbered here.
    return [
        (f"number {n}" if pair.dicom else pair.id, pair.caption) for n, pair in enumerate(find_pairs(data), start=1)
    ]


# --- Raw pairs


@dataclass(frozen=True)
class ExtractedViews:
    """The raw pairs of a data set, as a table with images in a temporary folder.

    places: "FILE, row NUMBER" of each line of the table.
    """

    data: Path
    table: Path
    places: list[str]

    def with_known_names(self, text: str) -> str:
        """Return a message in which the file and the row of the data set replace the paths of temporary files."""
        folder = re.escape(str(self.table.parent))
        temporary = rf"(?:{folder}/(cf|fa)/{_ROW}|{folder}/{self.table.name}, line |\b{_ROW})(\d+)(?:\.\w+)?"
        known = re.sub(temporary, lambda match: ", ".join(filter(None, (self._place(match[2]), match[1]))), text)
        return known.replace(str(self.table), str(self.data))

    def _place(self, number: str) -> str:
        return self.places[int(number) - 1]


@contextmanager
def extracted_views(data: Path, out: Path) -> Iterator[ExtractedViews]:
    """Yield the raw pairs of a data set; their temporary folder is beside OUT and is deleted at the end.

    A UserError names the file and the row of the data set instead of temporary files.
    """
    place = out.resolve()
    folder = temp_path(place.with_name(f"{place.name}.raw"))
    views = _view_columns(data)
    extracted = ExtractedViews(data, folder / "pairs.jsonl", [])
    with directory_lock(folder):
        try:
            _extract(extracted, views)
            yield extracted
        except UserError as error:
            if str(folder) not in str(error):
                raise
            raise UserError(extracted.with_known_names(str(error))) from None
        finally:
            shutil.rmtree(folder, ignore_errors=True)


def _extract(extracted: ExtractedViews, views: dict[str, str]) -> None:
    """Write the images of the columns `views`, and the table of the pairs."""
    folder = extracted.table.parent
    folder.chmod(0o700)  # photographs of patients: if the command is killed, they remain until its next run
    lines: list[str] = []
    for where, row, images in _described_rows(extracted.data, list(views.values())):
        extracted.places.append(where)
        name = f"{_ROW}{len(extracted.places)}"  # not the id, which may be unsafe, occur twice, or name a patient
        for view, column in views.items():
            content = image_bytes(images[column], where, column)
            row[view] = f"{view}/{name}{_suffix(images[column])}"
            (folder / view).mkdir(exist_ok=True)
            (folder / row[view]).write_bytes(content)
        lines.append(json.dumps({key: value for key, value in row.items() if value}, ensure_ascii=False) + "\n")
    write_text(extracted.table, "".join(lines))


def _suffix(image: Any) -> str:
    """Return the suffix of the name that is stored with an image, or .png."""
    suffix = Path(str(image.get("path") or "")).suffix.lower() if isinstance(image, dict) else ""
    return suffix if suffix in _SUFFIXES else ".png"


def _view_columns(data: Path) -> dict[str, str]:
    """Return the column of each view. Raises UserError, with the image columns, if they cannot be told."""
    path = parquet_files(data)[0]
    images = image_columns(path)
    found = {view: [name for name in images if name.lower() in names] for view, names in _NAMES.items()}
    if all(len(columns) == 1 for columns in found.values()):
        return {view: columns[0] for view, columns in found.items()}
    listed = f"its image columns are {', '.join(images)}" if images else "it has no image columns"
    raise FileError(path, f"needs the image columns cf and fa, but {listed}; rename the two columns")


def _described_rows(data: Path, images: list[str]) -> Iterator[tuple[str, dict[str, Any], dict[str, Any]]]:
    """Yield ("FILE, row NUMBER", texts, images) for each row; texts always has an id.

    If the name of every file states a split, and training and validation are among these, the splits of the names are
    used for rows without a value in a column `split`.
    """
    files = parquet_files(data)
    named: dict[Path, Split | None] = {path: split_in_name(path, data) for path in files}
    use_named = all(named.values()) and {"train", "val"} <= set(named.values())
    count = 0
    for path in files:
        texts = [name for name in read_schema(path).names if name in _TEXTS]
        for where, values in read_rows(path, [*texts, *images]):
            count += 1
            row = {name: str(values[name]) for name in texts if values[name] is not None}
            row.setdefault("id", f"{count:06d}")
            if use_named:
                row.setdefault("split", str(named[path]))
            yield where, row, values


# --- Exported pairs


def import_pairs(config: PrepareConfig) -> Path:
    """Write the pairs of an export into the prepared folder OUT, and return it. Views and masks are copied as they are.

    All values are checked before anything is written; a damaged image is found when it is copied. An interrupted import
    is continued. Raises UserError if OUT contains other files, or if a row cannot be used.
    """
    if config.anonymise:
        problem = "the pairs are prepared already; anonymise them when you prepare the raw views"
        raise SettingError("anonymise", None, problem)
    for name in ("modalities", "vessels_second"):
        if getattr(config, name):
            raise SettingError(name, None, "the pairs are prepared already, and state what their views are; omit it")
    if (config.raw / EXPORT_STATE_NAME).is_file():
        read_export(config.raw)  # raises an error if the export was interrupted
    indices, records = _read_records(config.raw)
    source = dataset_sha256(config.raw)
    with directory_lock(config.out):
        _check_out(config.out, source)
        console.print(f"{config.raw} holds aligned pairs of `retipair export pairs`: they are copied as they are")
        (config.out / MANIFEST_NAME).unlink(missing_ok=True)
        write_text(config.out / STATE_NAME, canonical_json({"schema": _IMPORT_SCHEMA, "source": source}))
        rows = (row for path in parquet_files(config.raw) for row in read_rows(path, VIEWS))
        for record, (where, images) in track("Copying", zip(records, rows, strict=True), len(records)):
            _write_views(config.out, record, images, where)
        _delete_others(config.out, records)
        records = [record for _, record in sorted(zip(indices, records, strict=True), key=_order)]
        sheet = contact_sheet(load_titled(config.out, record) for record in records)
        save_image(config.out / SHEET_NAME, sheet, sheet_mark(config.out, records))
        write_manifest(config.out, records)
    print(f"{len(records)} pairs in {config.out}")
    return config.out


def _read_records(data: Path) -> tuple[list[int], list[PreparedPair]]:
    """Return (indices, manifest lines) of all pairs, in the order of the rows; the index of a prepared pair is 0.

    Raises UserError, naming the row, if a row is invalid, and FileError if one eye or patient is in two splits.
    """
    indices: list[int] = []
    records: dict[str, PreparedPair] = {}
    first_pairs: FirstPairs = {}
    for path in parquet_files(data):
        names = [name for name in read_schema(path).names if name not in VIEWS]
        for where, values in read_rows(path, names):
            record = to_prepared(values, where)
            if records.setdefault(record.id.lower(), record) is not record:
                raise UserError(f"{where}: id {record.id!r} occurs more than once; export the pairs again")
            first = next(iter(records.values()))
            check_one_kind(data, modalities_of(first), modalities_of(record), record.id)
            check_split(path, record, first_pairs)
            indices.append(_index(values, where))
    if not records:
        raise MissingError(data, "its Parquet files have no rows; export the pairs again")
    return indices, list(records.values())


def _index(values: dict[str, Any], where: str) -> int:
    index = values.get("index")
    if index is not None and type(index) is not int:
        raise UserError(f"{where}: index {index!r:.40} is not an integer; remove the column, or export the pairs again")
    return index or 0


def _order(pair: tuple[int, PreparedPair]) -> tuple[int, str]:
    """Return the key by which the manifests of `prepare` (by id) and `generate` (by index) are sorted."""
    index, record = pair
    return index, record.id


def _delete_others(out: Path, records: list[PreparedPair]) -> None:
    """Delete views that an interrupted import of another data set has left."""
    names = {f"{record.id}.png" for record in records}
    for path in (path for view in VIEWS for path in (out / view).iterdir()):
        if path.name not in names and path.is_file():
            path.unlink()


def _write_views(out: Path, record: PreparedPair, images: dict[str, Any], where: str) -> None:
    for view in VIEWS:
        content, path = image_bytes(images[view], where, view), out / getattr(record, view)
        _check_png(content, record.size, f"{where}: {view}")
        if not (path.is_file() and path.read_bytes() == content):
            with atomic_write(path) as stream:
                stream.write(content)


def _check_png(content: bytes, size: int, where: str) -> None:
    """Raise UserError, which begins with `where`, unless the content is an undamaged PNG file of size x size px."""
    try:
        with Image.open(io.BytesIO(content), formats=["PNG"]) as image:
            if image.size != (size, size) or size**2 > MEGAPIXELS * 10**6:  # before the pixels take memory
                limit = f"or more than {MEGAPIXELS} megapixels"
                raise UserError(f"{where} is not {size} x {size} px, {limit}; export the pairs again")
            image.verify()  # checksums, and that no chunk is missing
        with Image.open(io.BytesIO(content), formats=["PNG"]) as image:
            image.load()
    except UserError:
        raise
    except UnidentifiedImageError:  # its text is the address of the stream
        raise UserError(f"{where} is not a PNG image; export the pairs again") from None
    except Exception as error:  # Pillow raises many types of exceptions for malformed files
        raise UserError(f"{where} cannot be read as a PNG image ({error}); export the pairs again") from None


def _check_out(out: Path, source: str) -> None:
    """Raise UserError unless OUT is new, empty, of the same export, or left by an interrupted import."""
    if not out.is_dir() or all(map(is_leftover, out.iterdir())):
        return
    state = read_json(out / STATE_NAME) if (out / STATE_NAME).is_file() else {}
    finished = has_manifest(out) and state.get("source") != source
    if state.get("schema") != _IMPORT_SCHEMA or finished:
        raise OccupiedError(out, "contains files of other pairs; choose a new or empty folder for OUT")
