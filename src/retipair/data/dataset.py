"""Read prepared and generated folders, the source of pairs for training, evaluation and --mode from_data."""

import errno
import hashlib
import os
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from sys import intern

import numpy as np
from PIL import Image

from retipair.data.manifest import MANIFEST_NAME, PreparedPair, Record, Split, read_manifest
from retipair.data.pair import Pair, load_image
from retipair.data.rejected import REJECTED_NAME, read_rejected
from retipair.data.splits import split_groups
from retipair.runtime.errors import DamagedError, FileError, MissingError, UserError
from retipair.runtime.text_files import nfc
from retipair.vision.field_of_view import field_of_view

GENERATED_VAL_FRACTION = 0.2
"""Fraction of the eyes of a generated folder for validation; all variations of a source pair count as one eye."""

_MAX_LISTED = 3
"""Maximum number of ids listed in the line about skipped pairs."""


@dataclass(frozen=True, slots=True)
class PairRecord:
    """One pair on disk. caption is None if the pair has no caption of its own; mask is None if it has no mask file.

    group: the patient, else the eye; all pairs of a group and their variations are in one split.
    fa_chroma: mean chroma of the generated FA before it was saved in grey, in [0, 255]; None for prepared pairs.
    variation: whether the pair was generated from another (--mode from_data).
    Stores file names, because one path per file would take ten times the memory.
    """

    id: str
    group: str
    split: Split
    folder: Path
    cf_name: str
    fa_name: str
    mask_name: str | None
    caption: str | None
    fa_chroma: float | None = None
    variation: bool = False

    @property
    def cf(self) -> Path:
        return self.folder / self.cf_name

    @property
    def fa(self) -> Path:
        return self.folder / self.fa_name

    @property
    def mask(self) -> Path | None:
        return self.folder / self.mask_name if self.mask_name else None


@dataclass(frozen=True)
class PairFolder:
    """Pairs of a prepared or generated folder, according to its manifest, its list of rejected pairs and its files.

    entries: every pair that has files, rejected or not, in manifest order. rejected: the ids in the list.
    deleted: the ids of unlisted pairs without any file, which count as rejected too. Both in manifest order.
    """

    path: Path
    entries: list[PairRecord]
    rejected: tuple[str, ...]
    deleted: tuple[str, ...]

    @cached_property
    def kept(self) -> list[PairRecord]:
        """Pairs to use: neither listed as rejected nor deleted."""
        rejected = set(self.rejected)
        return [entry for entry in self.entries if entry.id not in rejected]

    @cached_property
    def known(self) -> list[PairRecord]:
        """Pairs that a model may have been trained on: those kept, and rejected ones that still have both views.

        The search for copies uses these, because a pair may have been rejected after training.
        """
        rejected = set(self.rejected)
        return [pair for pair in self.entries if pair.id not in rejected or (pair.cf.is_file() and pair.fa.is_file())]

    @property
    def note(self) -> str:
        """Number of skipped pairs and the reasons, in one line; "" if none is skipped."""
        listed = _count(self.rejected, f"listed in {REJECTED_NAME}")
        deleted = _count(self.deleted, "whose files were deleted")
        reasons = ", ".join(filter(None, (listed, deleted)))
        return f"{self.path}: pairs skipped: {reasons}" if reasons else ""

    @property
    def rejected_sha256(self) -> str | None:
        """Hash of the ids of skipped pairs; None if none is skipped."""
        ids = sorted({*self.rejected, *self.deleted})
        return hashlib.sha256("\0".join(ids).encode()).hexdigest() if ids else None

    def has_content(self, sha256: str) -> bool:
        """Return whether `sha256` is the `content_sha256` of the kept pairs or of the known ones."""
        return any(content_sha256(entries) == sha256 for entries in (self.kept, self.known))

    def check_any_left(self) -> None:
        """Raise UserError if every pair is skipped."""
        if not self.kept:
            raise UserError(f"{self.note}; no pair is left")


def _count(ids: Sequence[str], reason: str) -> str:
    first = ", ".join(ids[:_MAX_LISTED]) + (", ..." if len(ids) > _MAX_LISTED else "")
    return f"{len(ids)} {reason} ({first})" if ids else ""


def read_dataset(folder: Path, report: Callable[[str], object] = lambda line: None) -> list[PairRecord]:
    """Return the pairs of a prepared or generated folder that are not rejected, in the manifest's order.

    `report` is called with one line if pairs are skipped. Raises UserError as `read_folder`, and if no pair is left.
    """
    pairs = read_folder(folder)
    if pairs.note:
        report(pairs.note)
    pairs.check_any_left()
    return pairs.kept


def read_folder(folder: Path) -> PairFolder:
    """Read a prepared or generated folder, rejected pairs included.

    If the manifest also lists prepared pairs of the source eye or patient, a generated pair gets their split. The other
    generated pairs are split with a fixed seed, rejected pairs included, so that rejecting a pair does not change the
    split of others.
    Raises UserError, naming the file, if the manifest is missing, empty or invalid, if it has one eye or patient in
    two splits, or if the list of rejected pairs has an id that is not in the manifest.
    """
    entries: list[PairRecord] = []
    prepared: dict[str, PreparedPair] = {}
    varied: list[int] = []
    unsplit: list[int] = []
    for record in read_manifest(folder):
        entry = _entry(folder, record)
        if isinstance(record, PreparedPair):
            _check_split(folder, record, prepared)
        else:
            (varied if record.source_eye else unsplit).append(len(entries))
        entries.append(entry)
    if not entries:
        raise MissingError(folder, "its manifest is empty; make the folder again")
    source_splits = {record.patient or record.eye: record.split for record in prepared.values()}
    unsplit += [index for index in varied if entries[index].group not in source_splits]
    groups = sorted({entries[index].group for index in unsplit})
    # A single group cannot be split.
    seeded_splits = split_groups(groups, GENERATED_VAL_FRACTION, 0.0, seed=0) if len(groups) > 1 else {}
    for indices, splits in ((varied, source_splits), (unsplit, seeded_splits)):
        for index in indices:
            if (split := splits.get(entries[index].group, "train")) != entries[index].split:
                entries[index] = replace(entries[index], split=split)
    return _apply_rejections(folder, entries)


def _check_split(folder: Path, record: PreparedPair, first: dict[str, PreparedPair]) -> None:
    """Raise UserError if another record of the same eye or patient is in another split, as manual edits may cause.

    `first` maps each eye or patient to its first record, and is updated.
    """
    group = f"patient {record.patient}" if record.patient else f"eye {record.eye}"
    other = first.setdefault(group, record)
    if record.split != other.split:
        raise FileError(
            folder / MANIFEST_NAME,
            f"{group} is both in {other.split} ({other.id}) and in {record.split} "
            f"({record.id}); put all its pairs in one split",
        )


def _apply_rejections(folder: Path, entries: Sequence[PairRecord]) -> PairFolder:
    listed = read_rejected(folder)
    if listed.lines:
        listed.check({nfc(entry.id) for entry in entries})
    present: list[PairRecord] = []
    without_files: list[PairRecord] = []
    for entry in entries:
        has_any = has_files(folder, (entry.cf_name, entry.fa_name, entry.mask_name))
        (present if has_any else without_files).append(entry)
    rejected = tuple(entry.id for entry in entries if entry.id in listed)
    deleted = tuple(entry.id for entry in without_files if entry.id not in listed)
    return PairFolder(folder, present, rejected, deleted)


def has_files(folder: Path, names: Iterable[str | None]) -> bool:
    """Return whether at least one of these files exists; a pair without any was deleted by hand."""
    return any(_exists(f"{folder}{os.sep}{name}") for name in names if name)


def _exists(path: str) -> bool:
    """Return whether a directory entry exists; dangling links and unreadable files count."""
    try:
        os.lstat(path)
    except (FileNotFoundError, NotADirectoryError):
        return False
    except OSError:
        return True
    return True


def _entry(folder: Path, record: Record) -> PairRecord:
    """Convert a manifest record; a generated pair, which has no split yet, gets "train"."""
    names = (folder, record.cf, record.fa)
    if isinstance(record, PreparedPair):
        caption = intern(record.caption) if record.caption else record.caption
        return PairRecord(record.id, _group_of(record), record.split, *names, record.mask, caption)
    prompt, variation = intern(record.prompt), record.source_id is not None
    return PairRecord(record.id, _group_of(record), "train", *names, None, prompt, record.fa_chroma, variation)


def _group_of(record: Record) -> str:
    if isinstance(record, PreparedPair):
        return record.patient or record.eye
    return record.source_eye or record.id


def filter_split(entries: Sequence[PairRecord], split: Split, where: Path) -> list[PairRecord]:
    """Return the entries of one split. Raises MissingError, naming the folder, if there are none."""
    chosen = [entry for entry in entries if entry.split == split]
    if not chosen:
        raise MissingError(where, f"no pair in its {split} split; prepare it again with pairs of more eyes")
    return chosen


def load_pair(entry: PairRecord) -> Pair:
    """Load the views at their size on disk; without a mask file, the mask is where both fields of view overlap.

    Raises UserError, naming the CF, if views and mask are not squares of one size.
    """
    cf, fa = load_image(entry.cf, "RGB"), load_image(entry.fa, "L")
    mask = load_image(entry.mask, "L") > 0 if entry.mask else field_of_view(cf) & field_of_view(fa)
    if len({*cf.shape[:2], *fa.shape, *mask.shape}) > 1:
        sizes = ", ".join(f"{view.shape[1]}x{view.shape[0]}" for view in (cf, fa, mask))
        raise FileError(entry.cf, f"CF, FA and mask are {sizes} px, not squares of one size; prepare the pair again")
    return Pair(cf, fa, mask)


def load_views(entry: PairRecord, size: int) -> tuple[np.ndarray, np.ndarray]:
    """Load CF (size, size, 3) and FA (size, size), uint8; files of another size are resized with antialiasing."""
    return _resized(load_image(entry.cf, "RGB"), size), _resized(load_image(entry.fa, "L"), size)


def _resized(view: np.ndarray, size: int) -> np.ndarray:
    if view.shape[:2] == (size, size):
        return view
    return np.asarray(Image.fromarray(view).resize((size, size), Image.Resampling.LANCZOS))


def content_sha256(entries: Sequence[PairRecord], hashes: dict[PairRecord, bytes] | None = None) -> str:
    """Hash the pairs: their ids, splits, captions and the bytes of CF and FA.

    hashes: SHA-256 of CF and FA by pair; the hashes of other pairs are computed and added.
    """
    digest, hashes = hashlib.sha256(), {} if hashes is None else hashes
    for entry in entries:
        digest.update(f"{entry.id}\0{entry.split}\0{entry.caption}\0".encode())
        if entry not in hashes:
            hashes[entry] = b"".join(hashlib.sha256(_bytes(path)).digest() for path in (entry.cf, entry.fa))
        digest.update(hashes[entry])
    return digest.hexdigest()


def pair_sha256(entry: PairRecord) -> str:
    """Hash the bytes of one pair's files: CF, FA and the mask, if any."""
    files = (entry.cf, entry.fa, *([entry.mask] if entry.mask else []))
    return hashlib.sha256(b"".join(hashlib.sha256(_bytes(path)).digest() for path in files)).hexdigest()


def _bytes(path: Path) -> bytes:
    try:
        if not path.is_file():  # reading a pipe would block
            raise FileNotFoundError(errno.ENOENT, "no such file")
        return path.read_bytes()
    except OSError as error:
        kind = MissingError if isinstance(error, FileNotFoundError) else DamagedError
        raise kind(
            path,
            f"named in the manifest but not readable ({error.strerror}); make the folder again, or skip the "
            f"pair: list its id in {REJECTED_NAME}, or delete all its files",
        ) from None
