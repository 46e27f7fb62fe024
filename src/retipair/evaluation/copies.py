"""Search for generated pairs that copy training pairs, and for real pairs that show the same eye under two eye ids."""

import numpy as np

from retipair.data.selection import evenly_spaced_indices
from retipair.evaluation.means import mean_with_interval
from retipair.evaluation.measurements import MeasuredSet
from retipair.evaluation.metric_cache import StoredDescriptors
from retipair.evaluation.scores import ClosestPair, Memorisation
from retipair.evaluation.sets import Sets
from retipair.metrics import memorisation
from retipair.metrics.data_issues import DataIssue, find_duplicate_eyes
from retipair.metrics.memorisation import Nearest
from retipair.metrics.pair_metrics import VIEWS
from retipair.runtime.console import progress

_CLOSEST = 10
"""Number of generated pairs shown in the report beside their most similar training pairs."""
_MAX_STORED = 500
"""Maximum number of similarities stored in the scores, for each set."""
_MAX_COMPARED = 1000
"""Maximum number of real pairs with which each real pair is compared; limits the time for large sets."""


def search_copies(sets: Sets) -> Memorisation | None:
    """Search for generated pairs that copy training pairs: compare each generated pair with all training pairs.

    Returns None if there are no generated pairs, or fewer than two training pairs.
    """
    if sets.generated is None or len(sets.all_train.entries) < 2:
        return None
    nearest_to_generated = _nearest("Searching for copies", sets.generated.descriptors, sets.all_train.descriptors)
    nearest_to_train = sets.once(
        "nearest_to_train", lambda: _nearest_other_eye("Comparing training pairs with each other", sets.all_train)
    )
    generated = np.array([nearest.similarity for nearest in nearest_to_generated])
    # A similarity of -1 means that there is no training pair of another eye.
    train = np.array([nearest.similarity for nearest in nearest_to_train if nearest.similarity > -1])
    order = np.argsort(-generated, kind="stable").tolist()
    similar = [row for row in order if generated[row] >= memorisation.COPY]
    given = {row for row in similar if _is_of_given_view(sets, row, nearest_to_generated[row])}
    both = {"generated": generated, "train": train}
    return Memorisation(
        similarity={name: mean_with_interval(values) for name, values in both.items()},
        similarities={name: _stored(values) for name, values in both.items()},
        ratio=float(generated.mean()) / max(float(train.mean()), 1e-9) if len(train) else None,
        authenticity=memorisation.authenticity(nearest_to_generated, nearest_to_train) if len(train) else None,
        threshold=memorisation.COPY,
        copies=tuple(sets.generated.entries[row].id for row in similar if row not in given),
        variations=sum(entry.variation for entry in sets.generated.entries),
        given=len(given),
        closest=tuple(_closest_pair(sets, row, nearest_to_generated[row]) for row in order[:_CLOSEST]),
    )


def _is_of_given_view(sets: Sets, row: int, nearest: Nearest) -> bool:
    """Return whether the given view of a generated pair shows the eye of the most similar training pair.

    If it does, the pair is similar to that training pair by design, because the drawn view shows the vessels of the
    given view.
    """
    assert sets.generated
    view = sets.generated.entries[row].given
    if view is None:
        return False
    at = VIEWS.index(view)
    given, train = (
        measured.metrics(index).descriptors[at]
        for measured, index in ((sets.generated, row), (sets.all_train, nearest.index))
    )
    return memorisation.nearest([given], [train])[0].similarity >= memorisation.COPY


def duplicate_eyes(real: MeasuredSet) -> list[DataIssue]:
    """Return an issue for real pairs that show one eye under different ids of patient or eye (see `COPY`)."""
    if len(real.entries) < 2:
        return []
    ids, splits = ([getattr(entry, name) for entry in real.entries] for name in ("id", "split"))
    return find_duplicate_eyes(ids, splits, _nearest_other_eye("Searching for duplicate eyes", real))


def _stored(values: np.ndarray) -> tuple[float, ...]:
    return tuple(values[evenly_spaced_indices(len(values), _MAX_STORED)].tolist())


def _nearest(title: str, queries: StoredDescriptors, references: StoredDescriptors) -> list[Nearest]:
    with progress(title, len(queries) * -(-len(references) // memorisation.AT_ONCE)) as advance:
        return memorisation.nearest(queries, references, advance=advance)


def _nearest_other_eye(title: str, measured: MeasuredSet) -> list[Nearest]:
    """Return, for each pair, the most similar of at most _MAX_COMPARED pairs of other eyes.

    If the patients are known, pairs of the other eye of the same patient are left out too.
    """
    rows = evenly_spaced_indices(len(measured.entries), _MAX_COMPARED)
    references = StoredDescriptors(measured.cache, [measured.keys[row] for row in rows])
    eyes = np.array([entry.group for entry in measured.entries])
    with progress(title, len(eyes) * -(-len(rows) // memorisation.AT_ONCE)) as advance:
        matches = memorisation.nearest(measured.descriptors, references, (eyes, eyes[rows]), advance)
    return [Nearest(int(rows[match.index]), match.similarity) for match in matches]


def _closest_pair(sets: Sets, row: int, nearest: Nearest) -> ClosestPair:
    assert sets.generated
    return ClosestPair(sets.generated.entries[row].id, sets.all_train.entries[nearest.index].id, nearest.similarity)
