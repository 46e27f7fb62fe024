"""Read the pairs of prepared and generated folders.

A user rejects a pair by listing its id in `rejected.txt`, or by deleting all its files. Rejected pairs are skipped.
"""

import errno
import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from sys import intern
from typing import Literal

import msgspec
import numpy as np
from PIL import Image

from retipair.data.folders import has_files
from retipair.data.manifest import (
    GIVEN_VIEWS,
    MANIFEST_NAME,
    FirstPairs,
    PreparedPair,
    Record,
    Split,
    check_split,
    modalities_of,
    read_manifest,
)
from retipair.data.pair import Pair, load_image
from retipair.data.rejected import REJECTED_NAME, RejectedList, read_rejected
from retipair.data.review import REVIEW_NAME
from retipair.data.splits import split_groups
from retipair.runtime.errors import DamagedError, FileError, MissingError, UserError
from retipair.runtime.text_files import nfc
from retipair.vision.field_of_view import field_of_view
from retipair.vision.modality import CF_FA, Modalities
from retipair.vision.ridges import resize_mask

GENERATED_VAL_FRACTION = 0.2
"""Fraction of the eyes of a generated folder that are used for validation.

All pairs generated from one source eye or patient count as one eye. Each pair generated from noise counts as one eye.
"""

_MAX_LISTED = 3
"""Maximum number of ids that `PairFolder.note` lists for each reason."""


class PairRecord(msgspec.Struct, frozen=True, gc=False):
    """One pair of a prepared or generated folder, as file names; `load_pair` and `load_views` read the images.

    group: the name of the patient, or of the eye if the patient is unknown. A generated pair has the group of its
    source, or its own id if it was generated from noise. All pairs of a group are in one split.
    cf_name, fa_name, mask_name: paths relative to `folder`; text takes a tenth of the memory of Path objects.
    mask_name, caption: None if the pair has no mask file, or no caption of its own.
    native_size: the smallest of three sides, in px: the side of the views on disk, and the two sides in
    `PreparedPair.native_size`, if they are known.
    fa_chroma: the mean chroma of the generated FA before it was saved in grey, in [0, 255]; None for prepared pairs.
    mode: the mode in which the pair was generated; None for pairs prepared from raw views.
    source_id: the id of the pair or view from which the pair was generated; None for other pairs.
    modalities: the modalities of the two views.
    """

    id: str
    group: str
    split: Split
    folder: Path
    cf_name: str
    fa_name: str
    mask_name: str | None
    caption: str | None
    native_size: int
    fa_chroma: float | None = None
    mode: str | None = None
    source_id: str | None = None
    modalities: Modalities = CF_FA

    @property
    def variation(self) -> bool:
        """Whether the pair was generated from another pair (`generate --mode from_data`)."""
        return self.mode == "from_data"

    @property
    def given(self) -> Literal["cf", "fa"] | None:
        """The view from which the other view was generated (`--mode cf2fa` and `fa2cf`), or None in other modes."""
        return GIVEN_VIEWS.get(self.mode) if self.mode else None

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
    """Pairs of a prepared or generated folder, in the order of its manifest.

    entries: every pair that has at least one file, rejected or not.
    rejected: the ids of the rejected pairs: those in `rejected.txt`, then those that only `review.jsonl` rejects.
    reviewed: how many of them only `review.jsonl` rejects.
    deleted: the ids of the pairs whose files were all deleted and that are not in `rejected`. They are skipped too.
    """

    path: Path
    entries: list[PairRecord]
    rejected: tuple[str, ...]
    deleted: tuple[str, ...]
    reviewed: int = 0

    @cached_property
    def kept(self) -> list[PairRecord]:
        """The pairs to use: those that are neither rejected nor deleted."""
        rejected = set(self.rejected)
        return [entry for entry in self.entries if entry.id not in rejected]

    @cached_property
    def known(self) -> list[PairRecord]:
        """`kept`, and the rejected pairs whose CF and FA exist. Copies are searched among those of the split "train".

        Rejected pairs are included because a model may have been trained on them before they were rejected.
        """
        rejected = set(self.rejected)
        return [pair for pair in self.entries if pair.id not in rejected or (pair.cf.is_file() and pair.fa.is_file())]

    @property
    def note(self) -> str:
        """One line with the number of skipped pairs and the reasons; "" if no pair is skipped."""
        first_reviewed = len(self.rejected) - self.reviewed
        listed = _count(self.rejected[:first_reviewed], f"listed in {REJECTED_NAME}")
        reviewed = _count(self.rejected[first_reviewed:], f"rejected in {REVIEW_NAME}")
        deleted = _count(self.deleted, "whose files were deleted")
        reasons = ", ".join(filter(None, (listed, reviewed, deleted)))
        return f"{self.path}: pairs skipped: {reasons}" if reasons else ""

    @property
    def rejected_sha256(self) -> str | None:
        """The SHA-256 of the ids of all skipped pairs; None if no pair is skipped."""
        ids = sorted({*self.rejected, *self.deleted})
        return hashlib.sha256("\0".join(ids).encode()).hexdigest() if ids else None

    def has_content(self, sha256: str) -> bool:
        """Return whether `sha256` is the `content_sha256` of the pairs `kept` or of the pairs `known`."""
        return any(content_sha256(entries) == sha256 for entries in (self.kept, self.known))

    def check_any_left(self) -> None:
        """Raise UserError if every pair of the folder is skipped."""
        if not self.kept:
            raise UserError(f"{self.note}; no pair is left")


def _count(ids: Sequence[str], reason: str) -> str:
    first = ", ".join(ids[:_MAX_LISTED]) + (", ..." if len(ids) > _MAX_LISTED else "")
    return f"{len(ids)} {reason} ({first})" if ids else ""


def read_dataset(
    folder: Path, report: Callable[[str], object] = lambda line: None, reviewed: bool = False
) -> list[PairRecord]:
    """Return the pairs of a prepared or generated folder in the order of its manifest, without the rejected pairs.

    report: a function that is called with `PairFolder.note` if pairs are skipped.
    reviewed: whether to leave out the pairs that `review.jsonl` rejects, too.
    Raises UserError for the same reasons as `read_folder`, and if every pair is skipped.
    """
    pairs = read_folder(folder, reviewed)
    if pairs.note:
        report(pairs.note)
    pairs.check_any_left()
    return pairs.kept


def read_folder(folder: Path, reviewed: bool = False) -> PairFolder:
    """Read the manifest and `rejected.txt` of a prepared or generated folder, and assign generated pairs to splits.

    A manifest may list prepared and generated pairs. A generated pair gets the split of the prepared pairs of its
    source eye or patient, if the manifest lists such pairs. All other generated pairs are split with a fixed seed.
    Rejected pairs get a split too, so that rejecting a pair does not move another pair to a different split.
    reviewed: whether the pairs that `review.jsonl` rejects are rejected, too.
    Raises UserError, naming the file, if the manifest is missing, empty or invalid, if one eye or patient is in two
    splits, or if `rejected.txt` or `review.jsonl` has an id that is not in the manifest.
    """
    path = folder / MANIFEST_NAME
    entries: list[PairRecord] = []
    prepared: FirstPairs = {}
    varied: list[int] = []
    unsplit: list[int] = []
    for record in read_manifest(folder):
        entry = to_pair_record(folder, record)
        if isinstance(record, PreparedPair):
            check_split(path, record, prepared)
        else:
            (varied if record.source_eye else unsplit).append(len(entries))
        entries.append(entry)
    if not entries:
        raise MissingError(folder, "its manifest is empty; make the folder again")
    source_splits = {name: split for (_, name), (split, _) in prepared.items()}
    unsplit += [index for index in varied if entries[index].group not in source_splits]
    groups = list({entries[index].group for index in unsplit})
    # `split_groups` needs at least two groups; a single one stays in "train".
    seeded_splits = split_groups(groups, GENERATED_VAL_FRACTION, 0.0, seed=0) if len(groups) > 1 else {}
    for indices, splits in ((varied, source_splits), (unsplit, seeded_splits)):
        for index in indices:
            if (split := splits.get(entries[index].group, "train")) != entries[index].split:
                entries[index] = msgspec.structs.replace(entries[index], split=split)
    return _apply_rejections(folder, entries, read_rejected(folder, reviewed))


def read_with_content(folder: Path, sha256: str) -> PairFolder | None:
    """Return the pairs of a folder if their `content_sha256` is `sha256`; None if it is not.

    The hash is first compared with that of all pairs that are not in `rejected.txt`. If it differs, the pairs that
    `review.jsonl` rejects are left out too, as `--reviewed` does.
    Raises UserError for the same reasons as `read_folder`.
    """
    choices = (False, True) if (folder / REVIEW_NAME).is_file() else (False,)
    found = (read_folder(folder, reviewed) for reviewed in choices)
    return next((pairs for pairs in found if pairs.has_content(sha256)), None)


def _apply_rejections(folder: Path, entries: Sequence[PairRecord], listed: RejectedList) -> PairFolder:
    skipped: list[str] = []
    if listed.lines or listed.reviewed:
        listed.check({nfc(entry.id) for entry in entries})
        skipped = [entry.id for entry in entries if entry.id in listed]
    present: list[PairRecord] = []
    without_files: list[PairRecord] = []
    root = str(folder)  # faster to format than a Path
    for entry in entries:
        has_any = has_files(root, (entry.cf_name, entry.fa_name, entry.mask_name))
        (present if has_any else without_files).append(entry)
    rejected = [id for id in skipped if nfc(id) in listed.lines]
    reviewed = [id for id in skipped if nfc(id) not in listed.lines]
    deleted = tuple(entry.id for entry in without_files if entry.id not in listed)
    return PairFolder(folder, present, (*rejected, *reviewed), deleted, len(reviewed))


def to_pair_record(folder: Path, record: Record) -> PairRecord:
    """Convert a manifest record to a PairRecord; a generated pair is in "train" until `read_folder` sets its split."""
    if isinstance(record, PreparedPair):
        split: Split = record.split
        mask, caption, native_size = record.mask, record.caption, record.native_size
        fa_chroma = None
    else:
        split, mask, caption, native_size, fa_chroma = "train", None, record.prompt, None, record.fa_chroma
    return PairRecord(
        id=record.id,
        group=group_name(record),
        split=split,
        folder=folder,
        cf_name=record.cf,
        fa_name=record.fa,
        mask_name=mask,
        caption=caption and intern(caption),
        native_size=min(record.size, *native_size) if native_size else record.size,
        fa_chroma=fa_chroma,
        mode=record.mode and intern(record.mode),
        source_id=record.source_id and intern(record.source_id),
        modalities=modalities_of(record),
    )


def group_name(record: Record) -> str:
    """Return the `PairRecord.group` of a manifest record."""
    if isinstance(record, PreparedPair):
        return record.patient or record.eye
    return record.source_eye or record.id


def load_pair(entry: PairRecord, size: int | None = None) -> Pair:
    """Load CF, FA and mask, with sides of `size` px, or at their size on disk if `size` is None.

    If there is no mask file, the mask is the intersection of the fields of view detected in CF and FA.
    Raises UserError, naming the CF file, if the images are not squares of the same size.
    """
    images = {"CF": load_image(entry.cf, "RGB"), "FA": load_image(entry.fa, "L")}
    if entry.mask:
        images["mask"] = load_image(entry.mask, "L")
    if len({side for image in images.values() for side in image.shape[:2]}) > 1:
        sizes = ", ".join(f"{name} {image.shape[1]}x{image.shape[0]}" for name, image in images.items())
        raise FileError(entry.cf, f"the views are not squares of one size ({sizes} px); make the pair again")
    mask = images["mask"] > 0 if entry.mask else field_of_view(images["CF"]) & field_of_view(images["FA"])
    cf, fa = (_resized(images[view], size) for view in ("CF", "FA"))
    return Pair(cf, fa, resize_mask(mask, size or len(mask)), dark_vessels=entry.modalities.dark_vessels)


def load_views(entry: PairRecord, size: int) -> tuple[np.ndarray, np.ndarray]:
    """Load CF (size, size, 3) and FA (size, size), uint8, resized with antialiasing if their size on disk differs."""
    return _resized(load_image(entry.cf, "RGB"), size), _resized(load_image(entry.fa, "L"), size)


def _resized(view: np.ndarray, size: int | None) -> np.ndarray:
    if size is None or view.shape[:2] == (size, size):
        return view
    return np.asarray(Image.fromarray(view).resize((size, size), Image.Resampling.LANCZOS))


def content_sha256(entries: Sequence[PairRecord], hashes: dict[PairRecord, bytes] | None = None) -> str:
    """Return one SHA-256 of the ids, splits, captions, CF files and FA files of all pairs, in order.

    hashes: pair -> the SHA-256 values of its CF and FA, to avoid reading the files of these pairs. The values of pairs
        that this dict does not contain are computed and stored in it.
    """
    digest, hashes = hashlib.sha256(), {} if hashes is None else hashes
    for entry in entries:
        digest.update(f"{entry.id}\0{entry.split}\0{entry.caption}\0".encode())
        if entry not in hashes:
            hashes[entry] = b"".join(hashlib.sha256(file_bytes(path)).digest() for path in (entry.cf, entry.fa))
        digest.update(hashes[entry])
    return digest.hexdigest()


def pair_sha256(entry: PairRecord) -> str:
    """Return one SHA-256 of the files of a pair: CF, FA, and the mask if there is one."""
    files = (entry.cf, entry.fa, *([entry.mask] if entry.mask else []))
    return hashlib.sha256(b"".join(hashlib.sha256(file_bytes(path)).digest() for path in files)).hexdigest()


def file_bytes(path: Path) -> bytes:
    """Return the content of a file that a manifest names. Raises UserError, naming the file, if it cannot be read."""
    try:
        if not path.is_file():  # for example a named pipe, which would block the read
            raise FileNotFoundError(errno.ENOENT, "no such file")
        return path.read_bytes()
    except OSError as error:
        kind = MissingError if isinstance(error, FileNotFoundError) else DamagedError
        raise kind(
            path,
            f"named in the manifest but not readable ({error.strerror}); make the folder again, or skip the "
            f"pair: list its id in {REJECTED_NAME}, or delete all its files",
        ) from None
