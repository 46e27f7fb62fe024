"""Hash the names of pairs, eyes and patients with a key, and write the key and the table of the original ids.

If the raw views are DICOM files, the names are always hashed, before anything is printed or written: they are made from
tags that identify the patient.
"""

import errno
import re
from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from retipair.data.anonymize import anonymous, hashed, read_key, write_names
from retipair.data.raw_pair import RawPair
from retipair.data.rejected import read_rejected
from retipair.data.splits import check_names
from retipair.preparation.reading import CheckedPair
from retipair.runtime.console import console
from retipair.runtime.errors import FileError, UserError

_WORD = re.compile(r"\w(?:[\w.+-]*\w)?")


@dataclass(frozen=True)
class Pseudonyms:
    """The hashed names of raw pairs.

    key_file: the file of the key; it may not exist yet.
    key: the key of the hashes.
    originals: the pairs with their original names.
    """

    key_file: Path
    key: bytes
    originals: Sequence[RawPair]

    @property
    def pairs(self) -> list[RawPair]:
        """The pairs with hashed names."""
        return [anonymous(pair, self.key) for pair in self.originals]

    def write(self, ids: Collection[str]) -> None:
        """Write the key, and add the pairs with these hashed ids to the table of names beside it; print where they are.

        Raises UserError if they cannot be written.
        """
        kept = [pair for pair in self.originals if hashed(self.key, "pair", pair.id) in ids]
        try:
            names = write_names(self.key_file, self.key, kept)
        except OSError as error:
            if error.errno not in (errno.EACCES, errno.EPERM, errno.EROFS):
                raise
            problem = f"the key of the ids cannot be written ({error.strerror})"
            raise FileError(
                self.key_file,
                f"{problem}; run `retipair prepare` with --anonymise KEYFILE, on a disk that can be written",
            ) from None
        print(
            f"ids are hashed with the key in {self.key_file}; {names} lists the original ids; keep both files apart "
            "from the pairs"
        )
        if any(pair.caption for pair in kept):
            console.print(
                "warning: captions are not anonymised and are stored in adapters and generated PNGs; check them for "
                "names"
            )


def pseudonyms_of(pairs: Sequence[RawPair], raw: Path, key_file: Path | None) -> Pseudonyms | None:
    """Return the hashed names of the pairs if some of them are DICOM files, else None.

    raw: the folder or table of the raw views. The key is stored beside it, unless there is a `key_file`.
    Raises UserError if the key file contains no key, or if the names do not identify the eyes (`check_names`).
    """
    if not any(pair.dicom for pair in pairs):
        return None
    try:
        check_names(pairs)
    except UserError:  # its text quotes the ids
        problem = (
            "its patients and eyes contradict one another, or are spelled in two ways, in the tags or in the table"
        )
        raise FileError(raw, f"{problem}; name the patient and the eye of each pair in a table") from None
    place = key_file or raw.resolve().with_name(f"{raw.resolve().name}.key")
    return Pseudonyms(place, read_key(place), pairs)


def anonymise(checked: Sequence[CheckedPair], key: bytes, already: bool) -> list[CheckedPair]:
    """Replace the hashes of the files by keyed hashes, and the ids too, unless these are keyed hashes already.

    The pairs are sorted by their new ids, so that their order does not reveal the original order.
    """
    renamed = (
        replace(
            item,
            pair=item.pair if already else anonymous(item.pair, key),
            sha256=hashed(key, "files", item.sha256),
        )
        for item in checked
    )
    return sorted(renamed, key=lambda item: item.pair.id)


def check_rejected_comments(out: Path, pairs: Sequence[RawPair]) -> None:
    """Raise UserError if a comment in the list of rejected pairs contains an original id of a pair, eye or patient.

    The comments are not anonymised.
    """
    names = {name for pair in pairs for name in (pair.id, pair.eye, pair.patient) if name}
    rejected = read_rejected(out)
    for number, line in rejected.comments.items():
        if matches := sorted(names & {line.strip("# "), *_WORD.findall(line)}):
            problem = f"a comment names {matches[0]!r}, and comments are not anonymised; remove the line"
            raise FileError(rejected.path, problem, number)
