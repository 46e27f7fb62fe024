"""Find the raw pairs in a folder or in a table, and decode as few images as possible. These layouts are
supported:

    ROOT/{id}/{id}_01.png + _02.png (+ _01.txt, _02.txt)      of the original scripts; all files may also be in ROOT
    ROOT/cf/{id}.png + ROOT/fa/{id}.png (+ {id}.txt in each)  two parallel folders
    ROOT/ABNORMAL/n.jpg + n-n.jpg, ROOT/NORMAL/...            of the data set Isfahan MISP
    pairs.csv or pairs.jsonl                                  a table with the columns cf and fa, and optional columns
    a folder of DICOM files, or with a DICOMDIR               paired by their tags, see `dicom_pairs`

A .txt, .csv or .roi file beside a view contains its landmarks. A folder may have a table `eyes.csv` with the columns
id, eye and, if known, patient and split. Names are compared in Unicode NFC.
"""

import re
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

from retipair.data.dicom import is_dicom
from retipair.data.dicom_pairs import find_dicom_pairs, is_dicom_folder, with_tags
from retipair.data.folders import (
    NUMBERED,
    images_in,
    is_existing_file,
    points_beside,
    spelled_as_on_disk,
    view_name,
    visible,
)
from retipair.data.manifest import MANIFEST_NAME, check_finished, has_manifest
from retipair.data.raw_pair import RawPair, SkippedPair
from retipair.data.tables import Eyes, read_eyes, split_of, table_rows
from retipair.runtime.errors import FileError, MissingError, UserError
from retipair.runtime.text_files import SAFE_NAME, is_too_long, nfc
from retipair.vision.modality import find_modalities

EYES_TABLE = "eyes.csv"
_TABLE_SUFFIXES = (".csv", ".tsv", ".txt", ".jsonl", ".xlsx", ".xls", ".ods")
_PAIR_TABLES = ("pairs.csv", "pairs.tsv", "pairs.jsonl")
_LAYOUTS = (
    "ID/ID_01.png + ID_02.png, cf/ and fa/ with equal names, ABNORMAL/ and NORMAL/, DICOM files, Parquet files, or a "
    ".csv/.jsonl table"
)
DOUBLED = re.compile(r"(?P<id>.+)-(?P=id)")
"""The name n-n of one view of a pair in the layout of Isfahan MISP; the name of the other view is n."""
COLUMNS = (
    *("id", "cf", "fa", "cf_points", "fa_points", "fa_frame", "cf_modality", "fa_modality"),
    *("eye", "patient", "split", "caption"),
)
"""The columns that a table of pairs or views may have."""


def find_pairs(raw: Path) -> list[RawPair]:
    """Return the pairs in a raw folder or table, sorted by id.

    Raises UserError, naming the file and the remedy, for the first problem, such as a missing file, an unknown column,
    a duplicate id, or a view without its partner.
    """
    pairs, unusable = scan_pairs(raw)
    if bad := [skipped.reason for skipped in unusable if not skipped.empty]:
        others = "1 more pair or image" if len(bad) == 2 else f"{len(bad) - 1} more pairs or images"
        more = f" ({others} cannot be used; `retipair prepare` lists all)" if bad[1:] else ""
        raise UserError(f"{bad[0]}{more}")
    return pairs


def scan_pairs(raw: Path) -> tuple[list[RawPair], list[SkippedPair]]:
    """Find the pairs in a raw folder or table; return (pairs sorted by id, items that cannot be used).

    Items that cannot be used are, for example, views without a partner, pairs with an unsafe name or with landmarks in
    one view only, images that belong to no pair, and folders without images. Raises UserError for other problems, such
    as a duplicate id or an invalid table.
    """
    if has_manifest(raw):  # to prepare it again would lose the eyes, splits and captions in the manifest
        problem = f"contains {MANIFEST_NAME}, so its pairs are prepared or generated, not raw"
        raise FileError(raw, f"{problem}; give the raw folder, or copy the views into a new folder")
    check_finished(raw)
    if raw.is_dir():
        check_no_pair_table(raw)
        candidates = list(_in_folder(raw))
    elif is_dicom(raw):
        raise FileError(raw, "is one DICOM file; give the folder of all views")
    elif raw.is_file():
        candidates = list(_in_table(raw))
    else:
        raise MissingError(raw, "no such file or folder; give the folder of the raw views, or a table that lists them")
    tagged = (pair if isinstance(pair, SkippedPair) else with_tags(pair) for pair in candidates)
    checked = [pair if isinstance(pair, SkippedPair) else _validated(pair) for pair in tagged]
    pairs = sorted((pair for pair in checked if isinstance(pair, RawPair)), key=lambda pair: pair.id)
    unusable = [pair for pair in checked if isinstance(pair, SkippedPair)]
    # Ids that differ only in case would name the same output files on a case-insensitive file system.
    first: dict[str, str] = {}
    for pair in pairs:
        if other := first.get(pair.id.lower()):
            how = "occurs more than once" if other == pair.id else f"differs from {other!r} only in case"
            raise FileError(raw, f"id {pair.id!r} {how}; rename one of the pairs")
        first[pair.id.lower()] = pair.id
    if not raw.is_dir():
        check_eyes_known(raw, not pairs or any(pair.eye or pair.patient for pair in pairs))
        return pairs, unusable
    table = eyes_table(raw)
    if table is None:
        return pairs, unusable
    if paired_by_tags(raw):
        raise FileError(
            table, "is not read with DICOM files, whose tags name the eyes; list the pairs in a table instead"
        )
    eyes = read_eyes(table)
    # A folder without images is an error if eyes.csv lists it.
    unusable = [replace(skipped, empty=skipped.empty and skipped.id not in eyes) for skipped in unusable]
    return _with_eyes(table, eyes, pairs, {skipped.id for skipped in unusable}), unusable


def paired_by_tags(raw: Path) -> bool:
    """Return whether the pairs of a folder are found by the tags of its DICOM files."""
    return raw.is_dir() and not _view_folders(raw) and is_dicom_folder(raw)


def check_no_pair_table(folder: Path) -> None:
    """Raise UserError if a folder contains a table of pairs, whose eyes and splits would be ignored."""
    for path in visible(folder):
        if path.name.lower() in _PAIR_TABLES:
            raise FileError(path, "is a table of pairs; pass it instead of its folder, or rename it")


def eyes_table(folder: Path) -> Path | None:
    """Return the path of `eyes.csv` (in upper or lower case) in a folder, or None if there is no such table.

    Raises UserError for two such tables, and if the only table has another format (eyes.xlsx) and would be ignored.
    """
    similar = [path for path in visible(folder) if path.name.lower().startswith("eyes.") and not path.is_dir()]
    tables = [path for path in similar if path.name.lower() == EYES_TABLE]
    if len(tables) > 1:
        raise FileError(tables[1], f"{tables[0].name} exists too; remove one of them")
    others = [path for path in similar if path.suffix.lower() in _TABLE_SUFFIXES]
    if others and not tables:
        raise FileError(others[0], f"is not read; if it is the table of eyes, save it as {EYES_TABLE}, else rename it")
    return tables[0] if tables else None


def check_eyes_known(table: Path, named: bool) -> None:
    """Raise UserError if a table of pairs or views names no eye or patient, but is beside an `eyes.csv`.

    The command would otherwise ignore `eyes.csv`.
    named: whether the table names the eye or the patient of any pair or view.
    """
    eyes = table.parent / EYES_TABLE
    if not named and eyes.is_file() and eyes != table:
        raise FileError(eyes, f"is not read with a table of pairs; put its columns eye and patient into {table.name}")


# --- Folders


def _in_folder(root: Path) -> Iterator[RawPair | SkippedPair]:
    folders = {path.name.lower(): path for path in visible(root) if path.is_dir()}
    if views := _view_folders(root):
        return _parallel(views["cf"], views["fa"])
    if is_dicom_folder(root):
        return find_dicom_pairs(root)
    if "abnormal" in folders or "normal" in folders:
        return _isfahan({name: folders[name] for name in ("abnormal", "normal") if name in folders})
    return _numbered(root)


def _view_folders(root: Path) -> dict[str, Path]:
    """Return the two folders named cf (or cfs) and fa (or fas), in upper or lower case, or {} if neither exists."""
    folders: dict[str, Path] = {}
    for path in visible(root):
        view = path.name.lower().removesuffix("s")
        if view in ("cf", "fa") and path.is_dir():
            if view in folders:
                raise FileError(path, f"{folders[view].name}/ exists too; put all {view.upper()} into one of them")
            folders[view] = path
    if len(folders) == 1:
        [(present, path)] = folders.items()
        missing = "fa" if present == "cf" else "cf"
        raise MissingError(path, f"{missing}/ is missing beside it; put the {missing.upper()} there with equal names")
    return folders


def _numbered(root: Path) -> Iterator[RawPair | SkippedPair]:
    """Yield the pairs of the layout ID_01 and ID_02, with one folder for each pair or all files in one folder."""
    folders = {path: _images_or_skipped(path) for path in (root, *visible(root)) if path.is_dir()}
    if not any(folders.values()):
        raise MissingError(root, f"no images in a supported layout; supported are {_LAYOUTS}")
    for folder, images in folders.items():
        if isinstance(images, SkippedPair):
            yield images
            continue
        if folder != root and not images:
            reason = f"{folder}: no images in it; put {folder.name}_01.png and _02.png there or remove it"
            yield SkippedPair(nfc(folder.name), reason, empty=True)
        views: dict[str, dict[int, Path]] = {}
        for path in images:
            if match := NUMBERED.fullmatch(nfc(path.stem)):
                _add(views.setdefault(match["id"], {}), int(match["view"]), path)
            else:
                reason = f"{path}: named neither ID_01 (CF) nor ID_02 (FA); rename or remove it"
                yield SkippedPair(nfc(path.stem), reason)
        for name, pair in views.items():
            yield _pair(name, pair, expected={1: f"{name}_01", 2: f"{name}_02"})


def _parallel(cf: Path, fa: Path) -> Iterator[RawPair | SkippedPair]:
    views: dict[str, dict[int, Path]] = {}
    for number, folder in enumerate((cf, fa), start=1):
        for path in images_in(folder):
            _add(views.setdefault(nfc(path.stem), {}), number, path)
        yield from _folders_with_images(folder)
    if not views:
        raise MissingError(cf.parent, "cf/ and fa/ hold no images; put views with equal names in both")
    for name, pair in views.items():
        result = _pair(name, pair, expected={1: f"{cf.name}/{name}", 2: f"{fa.name}/{name}"})
        yield replace(result, views_named=True) if isinstance(result, RawPair) else result


def _isfahan(folders: dict[str, Path]) -> Iterator[RawPair | SkippedPair]:
    """Yield the pairs of the Isfahan layout, such as (7.jpg, 7-7.jpg): (CF, FA) in ABNORMAL/, (FA, CF) in NORMAL/."""
    if not any(images_in(folder) for folder in folders.values()):
        raise MissingError(next(iter(folders.values())), "no images in it; put n.jpg and n-n.jpg there")
    for kind, folder in folders.items():
        views: dict[str, dict[int, Path]] = {}
        plain, doubled = (1, 2) if kind == "abnormal" else (2, 1)
        for path in images_in(folder):
            match = DOUBLED.fullmatch(stem := nfc(path.stem))
            _add(views.setdefault(match["id"] if match else stem, {}), doubled if match else plain, path)
        yield from _folders_with_images(folder)
        for name, pair in views.items():
            yield _pair(f"{kind}_{name}", pair, expected={plain: name, doubled: f"{name}-{name}"})


def _folders_with_images(folder: Path) -> Iterator[SkippedPair]:
    """Yield a SkippedPair for each subfolder that contains images, since these images are not used."""
    for path in visible(folder):
        if path.is_dir() and _images_or_skipped(path):
            yield SkippedPair(nfc(path.name), f"{path}: is not searched; move its images to {folder.name}/ or away")


def _add(views: dict[int, Path], number: int, path: Path) -> None:
    if number in views:
        other = views[number]
        how = ", spelled with composed and decomposed characters (Unicode NFC, NFD)"
        how = how if nfc(path.name) == nfc(other.name) else ""
        raise FileError(path, f"names the same view as {other.name}{how}; remove one of them")
    views[number] = path


def _pair(name: str, views: dict[int, Path], expected: dict[int, str]) -> RawPair | SkippedPair:
    if missing := [stem for number, stem in expected.items() if number not in views]:
        present = next(iter(views.values()))
        return SkippedPair(name, f"{present}: its partner {missing[0]} is missing; add it or remove this view")
    cf, fa = views[1], views[2]
    try:
        return RawPair(id=name, cf=cf, fa=fa, cf_points=points_beside(cf), fa_points=points_beside(fa))
    except UserError as error:
        return SkippedPair(name, str(error))


def _images_or_skipped(folder: Path) -> list[Path] | SkippedPair:
    try:
        return images_in(folder)
    except UserError as error:
        return SkippedPair(nfc(folder.name), str(error))


# --- Tables


def _in_table(path: Path) -> Iterator[RawPair | SkippedPair]:
    for where, row in table_rows(path, COLUMNS, needed=("cf", "fa")):
        files = {
            key: spelled_as_on_disk(path.parent / row[key])
            for key in ("cf", "fa", "cf_points", "fa_points")
            if key in row
        }
        name = nfc(row.get("id") or re.sub(r"_0?1$", "", view_name(files["cf"])))
        if missing := [file for file in files.values() if not is_existing_file(file)]:
            yield SkippedPair(name, f"{where}: {missing[0]} does not exist; paths are relative to the table")
            continue
        described: dict[str, Any] = {key: nfc(row[key]) for key in ("eye", "patient", "caption") if key in row}
        described |= {"split": split_of(row, where), "fa_frame": _frame_of(row, where)}
        yield RawPair(id=name, **files, **described, modalities=_modalities_of(row, where), views_named=True)  # type: ignore[arg-type]


def _frame_of(row: dict[str, str], where: str) -> int | None:
    """Return the number of the FA's frame, from 1, or None if the row names none."""
    if "fa_frame" not in row:
        return None
    if not re.fullmatch("0*[1-9][0-9]{0,5}", row["fa_frame"], re.ASCII):
        raise UserError(f"{where}: fa_frame {row['fa_frame']!r} is not the number of a frame; count frames from 1")
    return int(row["fa_frame"])


def _modalities_of(row: dict[str, str], where: str) -> tuple[str, str] | None:
    """Return the keys of the modalities of both views, or None if the row names neither."""
    if not {"cf_modality", "fa_modality"} & row.keys():
        return None
    try:
        return find_modalities((row.get("cf_modality", "cf"), row.get("fa_modality", "fa"))).keys
    except ValueError as error:
        raise UserError(f"{where}: cf_modality and fa_modality: {error}") from None


def _with_eyes(path: Path, eyes: Eyes, pairs: list[RawPair], unusable: set[str]) -> list[RawPair]:
    """Return the pairs with the eyes, patients and splits from `eyes.csv`.

    unusable: the ids of the pairs that cannot be used. `eyes.csv` may list them.
    Raises UserError if `eyes.csv` lists an id that is not in `pairs` or `unusable`, or does not list all of `pairs`.
    """
    ids = {pair.id for pair in pairs}
    if unknown := sorted(set(eyes) - ids - unusable):
        raise FileError(path, f"no pair has id {unknown[0]!r}; correct or remove its line")
    if missing := sorted(ids - set(eyes)):
        raise FileError(path, f"no line for pair {missing[0]!r}; add one, so that no eye is in two splits")
    return [replace(pair, **eyes[pair.id]) for pair in pairs]


def _validated(pair: RawPair) -> RawPair | SkippedPair:
    if not pair.dicom and is_too_long(pair.id):
        reason = f"{pair.cf}: its name is too long for the output files; rename it, and its partner"
    elif not pair.dicom and not SAFE_NAME.fullmatch(pair.id):  # ids of DICOM files are hashed
        reason = f"{pair.cf}: id {pair.id!r} is not a safe file name; use letters, digits, . _ + and -"
    elif (pair.cf_points is None) != (pair.fa_points is None):
        points = pair.cf_points or pair.fa_points
        reason = f"{points}: the other view has no points; add some or remove these"
    else:
        return pair
    return SkippedPair(pair.id, reason)
