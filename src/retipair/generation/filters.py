"""Reject generated pairs whose two views are not consistent, or that are too similar to a training pair.

`generate` makes another attempt at a rejected pair, or with --best_of another round of attempts. A log in the output
folder lists the rejected rounds; without --best_of, each round is one attempt.
"""

import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

import numpy as np

from retipair.data.dataset import PairRecord, load_pair
from retipair.data.pair import Pair
from retipair.metrics.fourier_mellin import Spectra, best_over_poses
from retipair.metrics.memorisation import chunked_spectra, pair_descriptor, view_descriptors
from retipair.metrics.views import prepare_views
from retipair.runtime.console import track
from retipair.runtime.errors import UserError
from retipair.runtime.jsonl import merge_shards
from retipair.runtime.parallel import parallel_map
from retipair.runtime.schema import from_values, to_values

REJECTION_LOG_NAME = "refused.jsonl"
_MAX_TRIES = 2**20
_REPAIR = "remove the line; its pair is then generated again"


@dataclass(frozen=True)
class Rejection:
    """A round of attempts to generate a pair, of which the best was rejected.

    index: the number of the pair, from 1.
    round_number: from 0. A round has `--best_of` attempts.
    why: "consistency", "copy", or "consistency and copy".
    consistency: the vesselness correlation of the two views, in [-1, 1].
    similarity: the highest similarity of the pair to a training pair, in [-1, 1]; None if it was not computed.
    """

    index: int
    round_number: int = field(metadata={"json": "attempt"})
    why: str
    consistency: float
    similarity: float | None = field(metadata={"json": "likeness"})


@dataclass(frozen=True)
class QualityFilter:
    """The thresholds that a generated pair must satisfy. A threshold that is None is not checked.

    min_consistency: the minimum vesselness correlation of the two views, in [-1, 1].
    max_copy: the maximum similarity of the pair to any training pair, in [-1, 1].
    known: the descriptors of the training pairs, (n, 64, 64); required for max_copy.
    """

    min_consistency: float | None = None
    max_copy: float | None = None
    known: np.ndarray | None = None

    def reject(self, index: int, round_number: int, pair: Pair, consistency: float) -> Rejection | None:
        """Return a `Rejection` if the pair fails a threshold, else None."""
        similarity, reasons = None, []
        if self.min_consistency is not None and consistency < self.min_consistency:
            reasons.append("consistency")
        if self.max_copy is not None and self.known is not None:
            similarity = round(self._similarity(pair), 4)
            if similarity > self.max_copy:
                reasons.append("copy")
        return Rejection(index, round_number, " and ".join(reasons), consistency, similarity) if reasons else None

    def _similarity(self, pair: Pair) -> float:
        """Return the highest similarity of the pair to a training pair, in [-1, 1]."""
        descriptor = descriptor_of(pair)
        return max(float(best_over_poses(descriptor, chunk).max()) for chunk in self._spectra)

    @cached_property
    def _spectra(self) -> list[Spectra]:
        """The Fourier transforms of the training pairs' descriptors, in chunks of pairs; computed at the first use."""
        assert self.known is not None
        return [chunk for _, chunk in chunked_spectra(self.known)]


def descriptors_of(entries: Sequence[PairRecord]) -> np.ndarray:
    """Return the descriptors of these pairs, (n, 64, 64). This takes a fraction of a second per pair."""
    pairs = map(load_pair, track("Describing pairs", entries, len(entries)))
    return np.stack(list(parallel_map(descriptor_of, pairs)))


def descriptor_of(pair: Pair) -> np.ndarray:
    """Return the descriptor of a pair, (64, 64): a small vessel map, which identifies the eye."""
    return pair_descriptor(view_descriptors(prepare_views(pair)))


# --- The rejection log. A resumed command reads it, and does not repeat the attempts in it.


@dataclass
class RejectionLog:
    """The numbers of rejected rounds so far. A round is `--best_of` attempts, of which the best one was rejected.

    tries: the number of rejected rounds at each pair, by the number of the pair.
    reasons: the number of rejected rounds for each reason.
    """

    tries: Counter[int] = field(default_factory=Counter)
    reasons: Counter[str] = field(default_factory=Counter)

    def add(self, rejection: Rejection) -> None:
        self.tries[rejection.index] += 1
        self.reasons[rejection.why] += 1

    @property
    def tally(self) -> str:
        """The number of rejected rounds for each reason, as text: "2 for consistency, 1 for copy"."""
        return ", ".join(f"{count} for {why}" for why, count in sorted(self.reasons.items()))


def rejection_line(rejection: Rejection) -> str:
    return json.dumps(to_values(rejection)) + "\n"


def read_rejection_log(folder: Path) -> RejectionLog:
    """Read the rejected rounds of all processes and earlier calls, and merge their logs into one sorted file.

    Raises UserError, naming the line, if a line is damaged.
    """
    log, keys = RejectionLog(), set[int]()

    def key_of(line: str, where: str) -> int:
        try:
            values = json.loads(line)
        except (ValueError, RecursionError) as error:
            raise UserError(f"{where}: not JSON ({error}); {_REPAIR}") from None
        rejection = from_values(Rejection, values, where, _REPAIR)
        key = rejection.index * _MAX_TRIES + rejection.round_number
        if key not in keys:
            keys.add(key)
            log.add(rejection)
        return key

    merge_shards(folder / REJECTION_LOG_NAME, key_of)
    return log
