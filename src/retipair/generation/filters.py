"""Which drawn pairs are kept: those whose halves match, and that copy nobody. What is refused is drawn again."""

import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from functools import cached_property
from pathlib import Path

import numpy as np

from retipair.data.dataset import PairRecord, load_pair
from retipair.data.manifest import find_type_error
from retipair.data.pair import Pair
from retipair.metrics.fourier_mellin import Spectra, best_over_poses
from retipair.metrics.memorisation import pair_descriptor, spectra_of, vessel_prints
from retipair.metrics.views import prepare_views
from retipair.runtime.console import track
from retipair.runtime.errors import UserError
from retipair.runtime.jsonl import merge_shards
from retipair.runtime.parallel import parallel_map

REJECTION_LOG_NAME = "refused.jsonl"
_MOST_TRIES = 2**20


@dataclass(frozen=True)
class Rejection:
    """A draw that was not kept: try `attempt` (from 0) at pair `index`; likeness is None where nobody asked."""

    index: int
    attempt: int
    why: str
    consistency: float
    likeness: float | None


@dataclass(frozen=True)
class QualityFilter:
    """What a pair must have; None: that does not matter. known (n, 64, 64): the prints of the training pairs."""

    min_consistency: float | None = None
    max_copy: float | None = None
    known: np.ndarray | None = None

    def reject(self, index: int, attempt: int, pair: Pair, consistency: float) -> Rejection | None:
        """Why this draw is not kept; None if it is."""
        likeness, reasons = None, []
        if self.min_consistency is not None and consistency < self.min_consistency:
            reasons.append("consistency")
        if self.max_copy is not None and self.known is not None:
            likeness = round(self._likeness(pair), 4)
            if likeness > self.max_copy:
                reasons.append("copy")
        return Rejection(index, attempt, " and ".join(reasons), consistency, likeness) if reasons else None

    def _likeness(self, pair: Pair) -> float:
        """The highest likeness to a training pair, in [-1, 1]."""
        one = descriptor_of(pair)
        return max(float(best_over_poses(one, others).max()) for others in self._spectra)

    @cached_property
    def _spectra(self) -> list[Spectra]:
        """The training pairs' prints, transformed once for all draws."""
        assert self.known is not None
        return [others for _, others in spectra_of(self.known)]


def descriptors_of(entries: Sequence[PairRecord]) -> np.ndarray:
    """What tells the eyes of these pairs from others, (n, 64, 64); half a second a pair."""
    pairs = map(load_pair, track("Looking at the training pairs", entries, len(entries)))
    return np.stack(list(parallel_map(descriptor_of, pairs)))


def descriptor_of(pair: Pair) -> np.ndarray:
    return pair_descriptor(vessel_prints(prepare_views(pair)))


# --- The ledger: what was refused is not drawn again


@dataclass
class RejectionLog:
    """What was refused so far: how often each pair, and how often why."""

    tries: Counter[int] = field(default_factory=Counter)
    reasons: Counter[str] = field(default_factory=Counter)

    def add(self, rejection: Rejection) -> None:
        self.tries[rejection.index] += 1
        self.reasons[rejection.why] += 1

    @property
    def tally(self) -> str:
        """How many draws were refused, and why."""
        return ", ".join(f"{count} for {why}" for why, count in sorted(self.reasons.items()))


def rejection_line(rejection: Rejection) -> str:
    return json.dumps(asdict(rejection)) + "\n"


def read_rejection_log(folder: Path) -> RejectionLog:
    """What earlier calls refused; the file is put in order. Raises UserError, naming the line, if one is damaged."""
    found, seen = RejectionLog(), set[int]()

    def place_of(line: str, where: str) -> int:
        try:
            values = json.loads(line)
            rejection = Rejection(**values)
            if wrong := find_type_error(Rejection, values):
                raise ValueError(f"{wrong} cannot be {values[wrong]!r:.40}")
            place = rejection.index * _MOST_TRIES + rejection.attempt
        except (ValueError, TypeError, RecursionError) as error:
            raise UserError(f"{where}: damaged ({error}); remove it, its pair is drawn again") from None
        if place not in seen:
            seen.add(place)
            found.add(rejection)
        return place

    merge_shards(folder / REJECTION_LOG_NAME, place_of)
    return found
