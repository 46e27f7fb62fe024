"""Review the pairs of a folder: which pair comes next, and the decisions in its `review.jsonl`."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from retipair.data.review import REVIEW_NAME, Decision, append_review, read_review
from retipair.interfaces.app.scoring import References, ScoredPair, ranges_of, scored_pairs
from retipair.interfaces.app.snapshot import Snapshot, take_snapshot
from retipair.runtime.atomic_io import check_folder_place
from retipair.runtime.errors import FileError
from retipair.runtime.text_files import nfc


@dataclass(frozen=True)
class ReviewedFolder:
    """The pairs of a folder in the order of the review, the most doubtful first.

    All decisions are read from the `review.jsonl` of the folder whenever they are needed, so that they survive a reload
    of the page and the end of the server. Positions are indices into `pairs`.
    snapshot: the state of the folder when its pairs were read.
    """

    folder: Path
    pairs: Sequence[ScoredPair]
    references: References
    snapshot: Snapshot

    @property
    def is_outdated(self) -> bool:
        """Whether the folder, or that of the training pairs, has changed since its pairs were scored."""
        return self.snapshot.is_outdated or self.references.is_outdated

    def decisions(self) -> dict[str, Decision]:
        """Return the last decision of each reviewed pair, in the order of these decisions, by the NFC of its id."""
        return read_review(self.folder).decisions

    def decision_at(self, position: int) -> Decision | None:
        return self.decisions().get(self._id(position))

    def id_at(self, position: int) -> str | None:
        """Return the id of the pair at a position; None if there is no such position."""
        return self._id(position) if position < len(self.pairs) else None

    def start(self) -> int:
        """Return the position of the first pair without a decision; 0 if there is none."""
        return self._undecided(range(len(self.pairs)), default=0)

    def decide(self, position: int, decision: Decision) -> int:
        """Record a decision, and return the position of the next pair without a decision.

        After the last pair, the search continues from the first. If all pairs have a decision, the position stays.
        """
        self._append(position, decision)
        count = len(self.pairs)
        return self._undecided([(position + step) % count for step in range(1, count)], default=position)

    def take_back(self, position: int) -> int:
        """Take back the last decision about a pair of this folder, and return the position of that pair.

        If there is none, the position stays.
        """
        places = {self._id(place): place for place in range(len(self.pairs))}
        last = next((places[id] for id in reversed(self.decisions()) if id in places), None)
        if last is None:
            return position
        self._append(last, None)
        return last

    def counts(self) -> tuple[int, int]:
        """Return how many pairs have a decision, and how many of them are rejected."""
        decisions = self.decisions()
        made = [decisions[id] for id in map(self._id, range(len(self.pairs))) if id in decisions]
        return len(made), made.count("reject")

    def _append(self, position: int, decision: Decision | None) -> None:
        try:
            append_review(self.folder, self.pairs[position].record.id, decision)
        except OSError as error:
            problem = f"cannot be written ({error.strerror}); the decision was not saved"
            raise FileError(self.folder / REVIEW_NAME, problem) from None

    def _id(self, position: int) -> str:
        return nfc(self.pairs[position].record.id)

    def _undecided(self, positions: Sequence[int], default: int) -> int:
        decisions = self.decisions()
        return next((position for position in positions if self._id(position) not in decisions), default)


def open_folder(folder: Path, references: References) -> ReviewedFolder:
    """Read and score the pairs of a prepared or generated folder.

    references: those of `--real`; without training pairs in them, the ranges are those of the real pairs in `folder`.
    Raises UserError for a folder without pairs, for pairs of other modalities than those of `--real`, and for a damaged
    review.
    """
    check_folder_place(folder)
    snapshot = take_snapshot(folder)
    used = references if references.known else ranges_of(folder)
    reviewed = ReviewedFolder(folder, scored_pairs(folder, used), used, snapshot)
    reviewed.decisions()
    return reviewed
