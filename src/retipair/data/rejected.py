"""Read and extend `rejected.txt`, the list of rejected pairs in a prepared or generated folder.

A user, `evaluate --withhold_copies`, `merge`, or `prepare` (for pairs whose files a user has deleted) lists the ids of
pairs that no command should use. With --reviewed, a command leaves out the pairs that `review.jsonl` rejects, too.
"""

import os
from collections.abc import Container, Iterable
from contextlib import nullcontext
from dataclasses import dataclass, field
from pathlib import Path

from retipair.data.manifest import MANIFEST_NAME
from retipair.data.review import REVIEW_NAME, read_review
from retipair.runtime.atomic_io import write_text
from retipair.runtime.errors import DamagedError, FileError
from retipair.runtime.text_files import nfc, read_text

REJECTED_NAME = "rejected.txt"
_COMMENT = "#"


@dataclass(frozen=True)
class RejectedList:
    """The content of `rejected.txt`, and with --reviewed the pairs that `review.jsonl` rejects.

    lines: for each id, in Unicode NFC, the number of the first line of `rejected.txt` that lists it.
    comments: the comment lines of `rejected.txt`, by line number.
    reviewed: for each id that `review.jsonl` rejects, the number of the line; empty without --reviewed.
    """

    path: Path
    lines: dict[str, int]
    comments: dict[int, str]
    reviewed: dict[str, int] = field(default_factory=dict)

    def __contains__(self, id: str) -> bool:
        return bool(self.lines or self.reviewed) and (nfc(id) in self.lines or nfc(id) in self.reviewed)

    def check(self, known: Container[str]) -> None:
        """Raise UserError, naming the line, for a listed id that is not in `known`, the ids of all pairs (NFC)."""
        for id, number in self.reviewed.items():
            if id not in known:
                raise FileError(self.path.with_name(REVIEW_NAME), f"no pair has the id {id!r}; delete the line", number)
        for id, number in self.lines.items():
            if id not in known:
                raise FileError(
                    self.path,
                    f"no pair has the id {id!r}; correct or remove the line "
                    f"({MANIFEST_NAME} has the ids; a comment needs a line of its own)",
                    number,
                )


def read_rejected(folder: Path, reviewed: bool = False) -> RejectedList:
    """Read `folder/rejected.txt`: one id per line; blank lines and lines that begin with # are ignored.

    reviewed: whether to add the pairs that `folder/review.jsonl` rejects.

    A byte order mark, CRLF line ends and spaces around an id are ignored. Returns an empty list if the file is missing.
    Raises UserError, naming the file, if it is not text in UTF-8 or UTF-16 (see `read_text`), or if only a file with a
    similar name exists, or if `review.jsonl` is invalid.
    """
    path = folder / REJECTED_NAME
    lines: dict[str, int] = {}
    comments: dict[int, str] = {}
    for number, line in enumerate(_text(path).splitlines(), start=1):
        id = nfc(line.strip())
        if id.startswith(_COMMENT):
            comments[number] = id
        elif id:
            lines.setdefault(id, number)
    return RejectedList(path, lines, comments, read_review(folder).rejected if reviewed else {})


def add_rejected(folder: Path, ids: Iterable[str], reason: str) -> None:
    """Append the ids that are not listed yet to `folder/rejected.txt`, under a comment that states the reason.

    The existing lines are kept. The file is written atomically. Raises UserError for the same reasons as
    `read_rejected`.
    """
    listed = read_rejected(folder)
    if new := [id for id in ids if id not in listed]:
        before = _text(listed.path)
        gap = "" if before.endswith("\n") or not before else "\n"
        write_text(listed.path, f"{before}{gap}{_COMMENT} {reason}\n" + "".join(f"{id}\n" for id in new))


def _text(path: Path) -> str:
    if not os.path.lexists(path):
        _check_no_similar_name(path.parent)
        return ""
    if not path.is_file():
        raise DamagedError(path, "is not a file; move it away, or list rejected ids in a text file of that name")
    return read_text(path)


def _check_no_similar_name(folder: Path) -> None:
    """Raise UserError if the folder has a file such as rejected.csv or Rejected.txt, which would not be read."""
    with os.scandir(folder) if folder.is_dir() else nullcontext(()) as entries:
        others = sorted(entry.name for entry in entries if entry.name.lower().startswith("rejected."))
    if others:
        raise FileError(
            folder / others[0], f"is not read; if it lists rejected pairs, save it as {REJECTED_NAME}, else rename it"
        )
