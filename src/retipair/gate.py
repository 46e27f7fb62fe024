"""Which drawn pairs are kept: those whose halves match, and that copy nobody. What is refused is drawn again."""

import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np

from retipair.data.dataset import Entry, load_pair
from retipair.data.pair import Pair
from retipair.errors import UserError
from retipair.metrics.measured import measure
from retipair.metrics.memorisation import likenesses, nearest, pair_print, vessel_print
from retipair.parallel import in_order
from retipair.progress import watched
from retipair.run import write_text

LEDGER_NAME = "refused.jsonl"


@dataclass(frozen=True)
class Refusal:
    """A draw that was not kept: try `attempt` (from 0) at pair `index`; likeness is None where nobody asked."""

    index: int
    attempt: int
    why: str
    consistency: float
    likeness: float | None


@dataclass(frozen=True)
class Gate:
    """What a pair must have; None: that does not matter. known (n, 64, 64): the prints of the training pairs."""

    min_consistency: float | None = None
    max_copy: float | None = None
    known: np.ndarray | None = None

    def refusal(self, index: int, attempt: int, pair: Pair, consistency: float) -> Refusal | None:
        """Why this draw is not kept; None if it is."""
        likeness, reasons = None, []
        if self.min_consistency is not None and consistency < self.min_consistency:
            reasons.append("consistency")
        if self.max_copy is not None and self.known is not None:
            [found] = nearest(likenesses(print_of(pair)[None], self.known))
            likeness = round(found.likeness, 4)
            if likeness > self.max_copy:
                reasons.append("copy")
        return Refusal(index, attempt, " and ".join(reasons), consistency, likeness) if reasons else None


def prints_of(entries: Sequence[Entry]) -> np.ndarray:
    """What tells the eyes of these pairs from others, (n, 64, 64); half a second a pair."""
    pairs = map(load_pair, watched("Looking at the training pairs", entries, len(entries)))
    return np.stack(list(in_order(print_of, pairs)))


def print_of(pair: Pair) -> np.ndarray:
    seen = measure(pair)
    return pair_print(np.stack([vessel_print(view) for view in (seen.cf, seen.fa)]))


# --- The ledger: what was refused is not drawn again


def append_refusal(folder: Path, refusal: Refusal) -> None:
    with (folder / LEDGER_NAME).open("a", encoding="utf-8") as stream:
        stream.write(json.dumps(asdict(refusal)) + "\n")


def read_refusals(folder: Path) -> list[Refusal]:
    """What earlier calls refused; a torn last line is cut off, so that the next does not run on from it.

    Raises UserError, naming the line, if one is damaged.
    """
    path = folder / LEDGER_NAME
    text = path.read_text(encoding="utf-8", errors="replace") if path.is_file() else ""
    whole = text[: text.rfind("\n") + 1]
    if whole != text:
        write_text(path, whole)
    found = []
    for number, line in enumerate(whole.splitlines(), start=1):
        try:
            found.append(Refusal(**json.loads(line)))
        except (ValueError, TypeError) as error:
            raise UserError(f"{path}, line {number}: damaged ({error}); remove it, its pair is drawn again") from None
    return found


def tally(refusals: Sequence[Refusal]) -> str:
    """How many draws were refused, and why."""
    reasons = Counter(refusal.why for refusal in refusals)
    return ", ".join(f"{count} for {why}" for why, count in sorted(reasons.items()))
