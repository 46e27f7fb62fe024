"""Find the raw pairs in folders and tables of every supported layout, without decoding images.

    ROOT/{id}/{id}_01.png + _02.png (+ _01.txt, _02.txt)      the original; all files may also be in ROOT
    ROOT/cf/{id}.png + ROOT/fa/{id}.png (+ {id}.txt in each)  two parallel folders
    ROOT/ABNORMAL/n.jpg + n-n.jpg, ROOT/NORMAL/...            Isfahan MISP
    pairs.csv or pairs.jsonl                                  a table: columns cf, fa and optional ones

A folder may have an `eyes.csv` (id, eye and, if known, patient and split). Names are compared as Unicode NFC.
"""

import re
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

from retipair.data.manifest import MANIFEST_NAME, Split
from retipair.data.tables import Eyes, read_eyes, split_of, table_rows
from retipair.runtime.errors import DamagedError, FileError, MissingError, UserError
from retipair.runtime.text_files import nfc, on_disk

EYES_TABLE = "eyes.csv"
IMAGE_SUFFIXES = (".png", ".jpg", ".jpeg", ".jpe", ".jfif", ".tif", ".tiff", ".bmp", ".webp")
_OTHER_SUFFIXES = (".gif", ".jp2", ".j2k", ".heic", ".heif", ".avif", ".dcm", ".dicom")
"""Other image formats. These files count as views, so that an error names each file that cannot be read."""
_TABLE_SUFFIXES = (".csv", ".tsv", ".txt", ".jsonl", ".xlsx", ".xls", ".ods")
_PAIR_TABLES = ("pairs.csv", "pairs.tsv", "pairs.jsonl")
_LAYOUTS = "ID/ID_01.png + ID_02.png, cf/ and fa/ with equal names, ABNORMAL/ and NORMAL/, or a .csv/.jsonl table"
_NUMBERED = re.compile(r"(?P<id>.+)_(?P<view>0?[12])", re.ASCII)
_DOUBLED = re.compile(r"(?P<id>.+)-(?P=id)")
_MAX_ID_BYTES = 200  # bytes: file systems allow 255, and output file names are longer than ids
_SAFE_ID = re.compile(r"\w[\w.+-]*")
_SYSTEM_FOLDERS = {"@eadir", "#recycle", "$recycle.bin", "system volume information", "lost+found", "__macosx"}
"""Folders made by network drives and operating systems, in lower case; never searched."""


@dataclass(frozen=True, kw_only=True)
class RawPair:
    """Files of one pair and what is known about it; `cf` and `fa` are assigned by file names, not by content."""

    id: str
    cf: Path
    fa: Path
    cf_points: Path | None = None
    fa_points: Path | None = None
    eye: str | None = None
    patient: str | None = None
    split: Split | None = None
    caption: str | None = None
    views_named: bool = False
    """Whether table columns or folder names state which view is the CF; otherwise, colour decides."""

    @property
    def files(self) -> list[Path]:
        """Every file of the pair."""
        return [path for path in (self.cf, self.fa, self.cf_points, self.fa_points) if path is not None]

    def swapped(self) -> "RawPair":
        """Return the pair with views and points swapped."""
        return replace(self, cf=self.fa, fa=self.cf, cf_points=self.fa_points, fa_points=self.cf_points)


@dataclass(frozen=True)
class SkippedPair:
    """An unusable pair or image. reason: what is wrong and what to do. empty: a folder without images (no error)."""

    id: str
    reason: str
    empty: bool = False


def find_pairs(raw: Path) -> list[RawPair]:
    """Return the pairs in a raw folder or table, sorted by id.

    Raises UserError, naming the file and the remedy, for anything missing, unknown, duplicate or unpaired.
    """
    pairs, unusable = scan_pairs(raw)
    if bad := [skipped.reason for skipped in unusable if not skipped.empty]:
        more = f" ({len(bad) - 1} more cannot be used; `retipair prepare` lists them)" if bad[1:] else ""
        raise UserError(f"{bad[0]}{more}")
    return pairs


def scan_pairs(raw: Path) -> tuple[list[RawPair], list[SkippedPair]]:
    """Return the pairs sorted by id, and what cannot be used: half a pair, an unsafe name, an image that belongs to no
    pair, a folder without images.

    Raises UserError for errors that affect all pairs.
    """
    if (raw / MANIFEST_NAME).is_file():  # its eyes, splits and captions would be lost
        raise FileError(raw, "is already prepared; give the raw folder, or copy the views into a new folder")
    if raw.is_dir():
        _check_no_pair_table(raw)
        candidates = list(_in_folder(raw))
    elif raw.is_file():
        candidates = list(_in_table(raw))
    else:
        raise MissingError(raw, "no such file or folder; give the folder of the raw views, or a table that lists them")
    checked = [pair if isinstance(pair, SkippedPair) else _validated(pair) for pair in candidates]
    pairs = sorted((pair for pair in checked if isinstance(pair, RawPair)), key=lambda pair: pair.id)
    unusable = [pair for pair in checked if isinstance(pair, SkippedPair)]
    # Some file systems are case-insensitive.
    if duplicate := [name for name, count in Counter(pair.id.lower() for pair in pairs).items() if count > 1]:
        raise FileError(raw, f"id {duplicate[0]!r} occurs more than once; rename one of them")
    if not raw.is_dir():
        _check_eyes_known(raw, pairs)
        return pairs, unusable
    table = _eyes_table(raw)
    if table is None:
        return pairs, unusable
    eyes = read_eyes(table)
    # An empty folder that eyes.csv lists is an error.
    unusable = [replace(skipped, empty=skipped.empty and skipped.id not in eyes) for skipped in unusable]
    return _with_eyes(table, eyes, pairs, {skipped.id for skipped in unusable}), unusable


def _check_no_pair_table(folder: Path) -> None:
    """Raise UserError for a table of pairs: reading its folder would ignore the table's eyes and splits."""
    for path in _visible(folder):
        if path.name.lower() in _PAIR_TABLES:
            raise FileError(path, "is a table of pairs; pass it instead of its folder, or rename it")


def _eyes_table(folder: Path) -> Path | None:
    """Find the table of eyes, `eyes.csv` in upper or lower case; None if there is none.

    Raises UserError for two of them, and for one in another format, which would be ignored.
    """
    similar = [path for path in _visible(folder) if path.name.lower().startswith("eyes.") and not path.is_dir()]
    tables = [path for path in similar if path.name.lower() == EYES_TABLE]
    if len(tables) > 1:
        raise FileError(tables[1], f"{tables[0].name} exists too; remove one of them")
    others = [path for path in similar if path.suffix.lower() in _TABLE_SUFFIXES]
    if others and not tables:
        raise FileError(others[0], f"is not read; save it as {EYES_TABLE}, or rename it")
    return tables[0] if tables else None


def _check_eyes_known(table: Path, pairs: list[RawPair]) -> None:
    """Raise UserError if a table of pairs names no eyes but has an `eyes.csv` beside it, which would be ignored."""
    eyes = table.parent / EYES_TABLE
    if pairs and eyes.is_file() and eyes != table and not any(pair.eye or pair.patient for pair in pairs):
        raise FileError(eyes, f"is not read with a table of pairs; put its columns eye and patient into {table.name}")


# --- Folders


def _in_folder(root: Path) -> Iterator[RawPair | SkippedPair]:
    folders = {path.name.lower(): path for path in _visible(root) if path.is_dir()}
    if views := _view_folders(root):
        return _parallel(views["cf"], views["fa"])
    if "abnormal" in folders or "normal" in folders:
        return _isfahan({name: folders[name] for name in ("abnormal", "normal") if name in folders})
    return _numbered(root)


def _view_folders(root: Path) -> dict[str, Path]:
    """Find the folders of CF and FA, named cf or cfs and fa or fas, in upper or lower case; empty if none exists."""
    folders: dict[str, Path] = {}
    for path in _visible(root):
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
    """Read the original layout: one folder per pair, or all files in one folder."""
    folders = {path: _images_or_skipped(path) for path in (root, *_visible(root)) if path.is_dir()}
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
            if match := _NUMBERED.fullmatch(nfc(path.stem)):
                _add(views.setdefault(match["id"], {}), int(match["view"]), path)
            else:
                yield SkippedPair(nfc(path.stem), f"{path}: neither ID_01 (CF) nor ID_02 (FA); rename or remove it")
        for name, pair in views.items():
            yield _pair(name, pair, expected={1: f"{name}_01", 2: f"{name}_02"})


def _parallel(cf: Path, fa: Path) -> Iterator[RawPair | SkippedPair]:
    views: dict[str, dict[int, Path]] = {}
    for number, folder in enumerate((cf, fa), start=1):
        for path in _images(folder):
            _add(views.setdefault(nfc(path.stem), {}), number, path)
        yield from _folders_with_images(folder)
    if not views:
        raise MissingError(cf.parent, "cf/ and fa/ hold no images; put views with equal names in both")
    for name, pair in views.items():
        result = _pair(name, pair, expected={1: f"{cf.name}/{name}", 2: f"{fa.name}/{name}"})
        yield replace(result, views_named=True) if isinstance(result, RawPair) else result


def _isfahan(folders: dict[str, Path]) -> Iterator[RawPair | SkippedPair]:
    """Read the Isfahan layout: ABNORMAL/n is the CF and n-n the FA; in NORMAL/ it is the reverse."""
    if not any(_images(folder) for folder in folders.values()):
        raise MissingError(next(iter(folders.values())), "no images in it; put n.jpg and n-n.jpg there")
    for kind, folder in folders.items():
        views: dict[str, dict[int, Path]] = {}
        plain, doubled = (1, 2) if kind == "abnormal" else (2, 1)
        for path in _images(folder):
            match = _DOUBLED.fullmatch(stem := nfc(path.stem))
            _add(views.setdefault(match["id"] if match else stem, {}), doubled if match else plain, path)
        yield from _folders_with_images(folder)
        for name, pair in views.items():
            yield _pair(f"{kind}_{name}", pair, expected={plain: name, doubled: f"{name}-{name}"})


def _folders_with_images(folder: Path) -> Iterator[SkippedPair]:
    """Yield a SkippedPair for each subfolder that contains images, because subfolders are not searched."""
    for path in _visible(folder):
        if path.is_dir() and _images_or_skipped(path):
            yield SkippedPair(nfc(path.name), f"{path}: is not searched; move its images to {folder.name}/ or away")


def _add(views: dict[int, Path], number: int, path: Path) -> None:
    if number in views:
        other = views[number]
        how = ", spelled with composed and decomposed characters (Unicode NFC, NFD)"
        raise FileError(
            path, f"the same view as {other.name}{how if nfc(path.name) == nfc(other.name) else ''}; remove one of them"
        )
    views[number] = path


def _pair(name: str, views: dict[int, Path], expected: dict[int, str]) -> RawPair | SkippedPair:
    if missing := [stem for number, stem in expected.items() if number not in views]:
        present = next(iter(views.values()))
        return SkippedPair(name, f"{present}: its partner {missing[0]} is missing; add it or remove this view")
    cf, fa = views[1], views[2]
    return RawPair(id=name, cf=cf, fa=fa, cf_points=_points_of(cf), fa_points=_points_of(fa))


def _points_of(view: Path) -> Path | None:
    named = (on_disk(view.with_suffix(suffix)) for suffix in (".txt", ".TXT", ".Txt"))
    return next((path for path in named if _is_file_or_link(path)), None)


def _visible(folder: Path) -> list[Path]:
    """List a folder, sorted, without hidden files and folders of network drives and operating systems."""
    try:
        paths = sorted(folder.iterdir())
    except OSError as error:
        raise DamagedError(folder, f"cannot be read ({error.strerror}); change its permissions, or remove it") from None
    return [path for path in paths if not path.name.startswith(".") and path.name.lower() not in _SYSTEM_FOLDERS]


def _images_or_skipped(folder: Path) -> list[Path] | SkippedPair:
    try:
        return _images(folder)
    except UserError as error:
        return SkippedPair(nfc(folder.name), str(error))


def _images(folder: Path) -> list[Path]:
    suffixes = (*IMAGE_SUFFIXES, *_OTHER_SUFFIXES)
    return [path for path in _visible(folder) if path.suffix.lower() in suffixes and _is_file_or_link(path)]


def _is_file_or_link(path: Path) -> bool:
    """Accept dangling links: reading reports them, for example git-annex content that is not fetched yet."""
    return path.is_file() or (path.is_symlink() and not path.exists())


# --- Tables


def _in_table(path: Path) -> Iterator[RawPair | SkippedPair]:
    known = ("id", "cf", "fa", "cf_points", "fa_points", "eye", "patient", "split", "caption")
    for where, row in table_rows(path, known, needed=("cf", "fa")):
        files = {
            key: _spelled_as_on_disk(path.parent / row[key])
            for key in ("cf", "fa", "cf_points", "fa_points")
            if key in row
        }
        name = nfc(row.get("id") or re.sub(r"_0?1$", "", files["cf"].stem))
        if missing := [file for file in files.values() if not _is_file(file)]:
            yield SkippedPair(name, f"{where}: {missing[0]} does not exist; paths are relative to the table")
            continue
        described = {key: nfc(row[key]) for key in ("eye", "patient", "caption") if key in row}
        split = split_of(row, where)
        yield RawPair(id=name, **files, **described, split=split, views_named=True)  # type: ignore[arg-type]


def _spelled_as_on_disk(path: Path) -> Path:
    """Return the path as it is spelled on disk."""
    try:
        return on_disk(path)
    except OSError:  # not a valid file name
        return path


def _is_file(path: Path) -> bool:
    try:
        return path.is_file()
    except OSError:  # not a valid file name
        return False


def _with_eyes(path: Path, eyes: Eyes, pairs: list[RawPair], unusable: set[str]) -> list[RawPair]:
    """Add eyes, patients and splits from `eyes.csv`, which must list every pair and may list unusable ones."""
    ids = {pair.id for pair in pairs}
    if unknown := sorted(set(eyes) - ids - unusable):
        raise FileError(path, f"no pair has id {unknown[0]!r}; correct or remove its line")
    if missing := sorted(ids - set(eyes)):
        raise FileError(path, f"no line for pair {missing[0]!r}; add one, so that no eye is in two splits")
    return [replace(pair, **eyes[pair.id]) for pair in pairs]


def _validated(pair: RawPair) -> RawPair | SkippedPair:
    if len(pair.id.encode(errors="replace")) > _MAX_ID_BYTES:
        reason = f"{pair.cf}: its name is too long for the output files; rename it, and its partner"
    elif not _SAFE_ID.fullmatch(pair.id):
        reason = f"{pair.cf}: id {pair.id!r} is not a safe file name; use letters, digits, . _ + and -"
    elif (pair.cf_points is None) != (pair.fa_points is None):
        points = pair.cf_points or pair.fa_points
        reason = f"{points}: the other view has no points; add some or remove these"
    else:
        return pair
    return SkippedPair(pair.id, reason)
