"""Read and extend `review.jsonl`, the decisions of a person who looked at the pairs of a folder in `retipair app`."""

import json
import threading
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from retipair.runtime.atomic_io import append_line
from retipair.runtime.errors import DamagedError, MissingError
from retipair.runtime.jsonl import parse_json_line
from retipair.runtime.schema import from_values
from retipair.runtime.text_files import nfc, read_text

REVIEW_NAME = "review.jsonl"
Decision = Literal["keep", "reject"]
_REPAIR = "correct or delete the line"
_APPENDING = threading.Lock()


@dataclass(frozen=True)
class ReviewLine:
    """One line of `review.jsonl`.

    decision: None removes the decision about the pair, which then counts as not reviewed.
    """

    id: str
    decision: Decision | None


@dataclass(frozen=True)
class Review:
    """The last decision about each reviewed pair.

    decisions: by id, in Unicode NFC, in the order of the last decisions.
    lines: the number of the line of each of these decisions, by id.
    """

    path: Path
    decisions: dict[str, Decision]
    lines: dict[str, int]

    @property
    def rejected(self) -> dict[str, int]:
        """The ids of the rejected pairs, each with the number of its line."""
        return {id: self.lines[id] for id, decision in self.decisions.items() if decision == "reject"}


def read_review(folder: Path) -> Review:
    """Read `folder/review.jsonl`. There are no decisions if the file is missing.

    An incomplete last line is ignored, because its writer was killed.
    Raises UserError, naming the file and the line, for a line that is not valid.
    """
    path = folder / REVIEW_NAME
    decisions: dict[str, Decision] = {}
    lines: dict[str, int] = {}
    text = read_text(path) if path.is_file() else ""
    *complete, last = text.split("\n")
    for number, line in enumerate([*complete, last] if _is_json(last) else complete, start=1):
        where = f"{path}, line {number}"
        entry = from_values(ReviewLine, parse_json_line(f"{line}\n", where, _REPAIR), where, _REPAIR)
        id = nfc(entry.id)
        lines.pop(id, None)
        decisions.pop(id, None)
        if entry.decision:
            decisions[id], lines[id] = entry.decision, number
    return Review(path, decisions, lines)


def append_review(folder: Path, id: str, decision: Decision | None) -> None:
    """Append a decision about a pair to `folder/review.jsonl`, and flush it to disk. None removes it.

    An incomplete last line, left by a process that was killed, is removed first.
    Raises UserError if the file has a NUL byte, as in UTF-16, or if its lines end in a lone \\r.
    """
    path = folder / REVIEW_NAME
    line = json.dumps({"id": id, "decision": decision}) + "\n"
    with _APPENDING:
        content = path.read_bytes() if path.is_file() else b""
        if b"\0" in content or (b"\r" in content and b"\n" not in content):
            raise DamagedError(path, "cannot be extended; save it as UTF-8 text with lines that end in \\n")
        last = content.rpartition(b"\n")[2]
        if _is_json(last):
            line = f"\n{line}"
        elif last:
            with path.open("r+b") as stream:
                stream.truncate(len(content) - len(last))
        append_line(path, line)


def _is_json(text: str | bytes) -> bool:
    try:
        json.loads(text)
    except (ValueError, RecursionError):
        return False
    return True


def check_reviewed(folders: Iterable[Path | None]) -> None:
    """Raise MissingError if none of the folders has a `review.jsonl`: --reviewed would have no effect."""
    named = [folder for folder in folders if folder]
    if not any((folder / REVIEW_NAME).is_file() for folder in named):
        raise MissingError(named[-1], f"no {REVIEW_NAME} here; review its pairs in `retipair app`, or omit --reviewed")
