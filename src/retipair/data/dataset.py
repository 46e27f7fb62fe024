"""One reader for prepared and generated folders: what training and from_data take pairs from."""

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
from retipair.runtime.errors import UserError
from retipair.runtime.text_files import nfc
from retipair.vision.field_of_view import field_of_view

GENERATED_VAL_FRACTION = 0.2
"""A generated folder has no split of its own: its eyes (a source pair and all its variations are one) get this one."""

_NAMED = 3
"""Ids that the line on left-out pairs names, at most."""


@dataclass(frozen=True, slots=True)
class PairRecord:
    """One pair on disk. caption is None where the pair has no sentence of its own, mask where there is no such file.

    group: the patient, else the eye: what must be on one side of every split, with all its variations.
    fa_chroma: what a model's FA had of colour before it was written grey, in [0, 255]; None for prepared pairs.
    variation: whether the pair was generated from another (--mode from_data).
    There may be very many: names, where a path for each would take ten times as much.
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
    """A prepared or generated folder as its manifest, its list of rejected pairs and its files say.

    entries: every pair that has files, rejected or not, in the manifest's order. rejected: the ids that are listed.
    deleted: the ids of other pairs that have no file left, which counts as rejected too. Both in that order.
    """

    path: Path
    entries: list[PairRecord]
    rejected: tuple[str, ...]
    deleted: tuple[str, ...]

    @cached_property
    def kept(self) -> list[PairRecord]:
        """The pairs to use: neither listed nor deleted."""
        rejected = set(self.rejected)
        return [entry for entry in self.entries if entry.id not in rejected]

    @cached_property
    def known(self) -> list[PairRecord]:
        """The pairs that a model may have been trained on: those kept, and rejected ones that still have both views.

        Copies are looked for among these, whenever a pair was rejected.
        """
        rejected = set(self.rejected)
        return [one for one in self.entries if one.id not in rejected or (one.cf.is_file() and one.fa.is_file())]

    @property
    def note(self) -> str:
        """How many pairs are left out and why, as one line; "" if none is."""
        listed = _count(self.rejected, f"listed in {REJECTED_NAME}")
        deleted = _count(self.deleted, "whose files were deleted")
        reasons = ", ".join(filter(None, (listed, deleted)))
        return f"{self.path}: pairs left out: {reasons}" if reasons else ""

    @property
    def rejected_sha256(self) -> str | None:
        """A fingerprint of which pairs are left out; None if none is."""
        ids = sorted({*self.rejected, *self.deleted})
        return hashlib.sha256("\0".join(ids).encode()).hexdigest() if ids else None

    def has_content(self, sha256: str) -> bool:
        """Whether `content_sha256` of the pairs that are kept, or of those and the rejected ones, is this."""
        return any(content_sha256(entries) == sha256 for entries in (self.kept, self.known))

    def check_any_left(self) -> None:
        """Raise UserError if every pair is left out."""
        if not self.kept:
            raise UserError(f"{self.note}; no pair is left")


def _count(ids: Sequence[str], reason: str) -> str:
    first = ", ".join(ids[:_NAMED]) + (", ..." if len(ids) > _NAMED else "")
    return f"{len(ids)} {reason} ({first})" if ids else ""


def read_dataset(folder: Path, report: Callable[[str], object] = lambda line: None) -> list[PairRecord]:
    """Return the pairs of a prepared or generated folder that are not rejected, in the manifest's order.

    `report` is called with one line if pairs are left out. Raises UserError as `read_folder`, and if no pair is left.
    """
    found = read_folder(folder)
    if found.note:
        report(found.note)
    found.check_any_left()
    return found.kept


def read_folder(folder: Path) -> PairFolder:
    """Read a prepared or generated folder, rejected pairs included.

    Generated pairs are on the side of the prepared pairs of their eye, if the manifest has any; the split of the others
    is drawn, over rejected pairs too, so that rejecting one moves no other pair.
    Raises UserError, naming the file, if the manifest is missing, empty or broken or puts one eye or patient on two
    sides, or if the list of rejected pairs has an id that the manifest has not.
    """
    entries: list[PairRecord] = []
    prepared: dict[str, PreparedPair] = {}
    varied: list[int] = []
    unsplit: list[int] = []
    for record in read_manifest(folder):
        entry = _entry(folder, record)
        if isinstance(record, PreparedPair):
            _check_side(folder, record, prepared)
        else:
            (varied if record.source_eye else unsplit).append(len(entries))
        entries.append(entry)
    if not entries:
        raise UserError(f"{folder}: its manifest is empty; make the folder again")
    sources = {record.patient or record.eye: record.split for record in prepared.values()}
    unsplit += [at for at in varied if entries[at].group not in sources]
    groups = sorted({entries[at].group for at in unsplit})
    drawn = (
        split_groups(groups, GENERATED_VAL_FRACTION, 0.0, seed=0) if len(groups) > 1 else {}
    )  # one has no other side
    for places, sides in ((varied, sources), (unsplit, drawn)):
        for at in places:
            if (side := sides.get(entries[at].group, "train")) != entries[at].split:
                entries[at] = replace(entries[at], split=side)
    return _apply_rejections(folder, entries)


def _check_side(folder: Path, record: PreparedPair, first: dict[str, PreparedPair]) -> None:
    """`prepare` keeps eyes and patients together: a manifest that was edited or put together by hand may not.

    `first` has the first record of each eye or patient, and gets this one.
    """
    group = f"patient {record.patient}" if record.patient else f"eye {record.eye}"
    other = first.setdefault(group, record)
    if record.split != other.split:
        raise UserError(
            f"{folder / MANIFEST_NAME}: {group} is both in {other.split} ({other.id}) and in {record.split} "
            f"({record.id}); put all its pairs on one side"
        )


def _apply_rejections(folder: Path, entries: Sequence[PairRecord]) -> PairFolder:
    listed = read_rejected(folder)
    if listed.lines:
        listed.check({nfc(entry.id) for entry in entries})
    present: list[PairRecord] = []
    gone: list[PairRecord] = []
    for entry in entries:
        has_any = has_files(folder, (entry.cf_name, entry.fa_name, entry.mask_name))
        (present if has_any else gone).append(entry)
    rejected = tuple(entry.id for entry in entries if entry.id in listed)
    deleted = tuple(entry.id for entry in gone if entry.id not in listed)
    return PairFolder(folder, present, rejected, deleted)


def has_files(folder: Path, names: Iterable[str | None]) -> bool:
    """Whether at least one of these files exists; a pair of which none does was deleted by hand."""
    return any(_exists(f"{folder}{os.sep}{name}") for name in names if name)


def _exists(path: str) -> bool:
    """Whether there is such a directory entry: a dangling link and a file that may not be read are not deleted."""
    try:
        os.lstat(path)
    except (FileNotFoundError, NotADirectoryError):
        return False
    except OSError:
        return True
    return True


def _entry(folder: Path, record: Record) -> PairRecord:
    """Of a generated pair, which is on no side yet, on that of training."""
    names = (folder, record.cf, record.fa)
    if isinstance(record, PreparedPair):
        caption = intern(record.caption) if record.caption else record.caption
        return PairRecord(record.id, _group_of(record), record.split, *names, record.mask, caption)
    heard, varied = intern(record.prompt), record.mode == "from_data"
    return PairRecord(record.id, _group_of(record), "train", *names, None, heard, record.fa_chroma, varied)


def _group_of(record: Record) -> str:
    if isinstance(record, PreparedPair):
        return record.patient or record.eye
    return record.source_eye or record.id


def filter_split(entries: Sequence[PairRecord], split: Split, where: Path) -> list[PairRecord]:
    """The entries of one side of the split. Raises UserError, naming the folder, if there are none."""
    chosen = [entry for entry in entries if entry.split == split]
    if not chosen:
        raise UserError(f"{where}: no pair in its {split} split; prepare it again with pairs of more eyes")
    return chosen


def load_pair(entry: PairRecord) -> Pair:
    """The views as they are on disk, valid where the pair's mask says so or, without one, where both show the eye.

    Raises UserError, naming the CF, if they are not squares of one size.
    """
    cf, fa = load_image(entry.cf, "RGB"), load_image(entry.fa, "L")
    mask = load_image(entry.mask, "L") > 0 if entry.mask else field_of_view(cf) & field_of_view(fa)
    if len({*cf.shape[:2], *fa.shape, *mask.shape}) > 1:
        sizes = ", ".join(f"{view.shape[1]}x{view.shape[0]}" for view in (cf, fa, mask))
        raise UserError(f"{entry.cf}: CF, FA and mask are {sizes} px, not squares of one size; prepare the pair again")
    return Pair(cf, fa, mask)


def load_views(entry: PairRecord, size: int) -> tuple[np.ndarray, np.ndarray]:
    """CF (size, size, 3) and FA (size, size), uint8; resized with antialiasing if the files are larger or smaller."""
    return _resized(load_image(entry.cf, "RGB"), size), _resized(load_image(entry.fa, "L"), size)


def _resized(view: np.ndarray, size: int) -> np.ndarray:
    if view.shape[:2] == (size, size):
        return view
    return np.asarray(Image.fromarray(view).resize((size, size), Image.Resampling.LANCZOS))


def content_sha256(entries: Sequence[PairRecord]) -> str:
    """A fingerprint of the pairs: their ids, splits, captions and the bytes of both files."""
    digest = hashlib.sha256()
    for entry in entries:
        digest.update(f"{entry.id}\0{entry.split}\0{entry.caption}\0".encode())
        for path in (entry.cf, entry.fa):
            digest.update(hashlib.sha256(_bytes(path)).digest())
    return digest.hexdigest()


def pair_sha256(entry: PairRecord) -> str:
    """A fingerprint of what one pair shows: the bytes of its files."""
    files = (entry.cf, entry.fa, *([entry.mask] if entry.mask else []))
    return hashlib.sha256(b"".join(hashlib.sha256(_bytes(path)).digest() for path in files)).hexdigest()


def _bytes(path: Path) -> bytes:
    try:
        if not path.is_file():  # a pipe would be waited for
            raise FileNotFoundError(errno.ENOENT, "no such file")
        return path.read_bytes()
    except OSError as error:
        raise UserError(
            f"{path}: named in the manifest but not readable ({error.strerror}); make the folder again, or leave its "
            f"pair out: list the id in {REJECTED_NAME}, or delete all files of the pair"
        ) from None
