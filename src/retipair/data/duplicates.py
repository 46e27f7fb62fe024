"""Find views that occur in several pairs: duplicate pairs share both views; pairs of one eye may share one view."""

import hashlib
from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from retipair.data.raw_pair import RawPair
from retipair.runtime.errors import FileError

Views = tuple[str, str]
"""The `pixels_sha256` of a pair's CF and FA."""


def pixels_sha256(view: np.ndarray) -> str:
    """Return the SHA-256 of a view's pixels (H, W, 3) uint8, which does not depend on the file format."""
    return hashlib.sha256(f"{view.shape}".encode() + np.ascontiguousarray(view).data).hexdigest()


def find_duplicates(pairs: Sequence[RawPair], views: Sequence[Views]) -> dict[str, str]:
    """Return an error message, by id, for each pair that has the same two views as an earlier pair, in any order."""
    first: dict[tuple[str, ...], RawPair] = {}
    messages = {}
    for pair, hashes in zip(pairs, views, strict=True):
        earlier = first.setdefault(tuple(sorted(hashes)), pair)
        if earlier is not pair:
            messages[pair.id] = (
                f"{pair.cf}: pair {pair.id!r} shows the same two images as pair {earlier.id!r}; remove one of the "
                "pairs (--skip_bad keeps the first)"
            )
    return messages


def group_by_views(pairs: Sequence[RawPair], views: Sequence[Views]) -> tuple[list[RawPair], list[list[str]]]:
    """Assign the same eye and the same patient to all pairs of a group that shares views.

    Pairs that share a view show the same eye; in angiography, one CF often has several FA frames. Pairs that are
    connected through other pairs belong to the same group. The fields `eye` and `patient` of all pairs in a group are
    set to the values that any of its pairs has. If no pair of the group has an `eye`, the id of its first pair is used.
    Returns all pairs, and a list of the pair ids of each group in which the `eye` or `patient` of any pair changed.
    Raises UserError if the pairs of a group name different eyes, patients or splits.
    """
    grouped, new = list(pairs), []
    for members in _connected_groups(views):
        together = [pairs[index] for index in members]
        eye, patient, _ = (_common_value(together, name) for name in ("eye", "patient", "split"))
        for index in members:
            grouped[index] = replace(pairs[index], eye=eye or together[0].id, patient=patient)
        if any(grouped[index] != pairs[index] for index in members):
            new.append([pair.id for pair in together])
    return grouped, new


def _connected_groups(views: Sequence[Views]) -> list[list[int]]:
    """Return the groups of pairs that share views, directly or through other pairs, as sorted lists of indices.

    Pairs that share no view are left out.
    """
    groups: dict[str, list[int]] = {}  # the group of each view, by its hash
    for index, hashes in enumerate(views):
        joined = [index]
        for group in {id(group): group for view in hashes if (group := groups.get(view))}.values():
            joined += group
        for member in joined:
            groups |= dict.fromkeys(views[member], joined)
    unique = {id(group): sorted(group) for group in groups.values() if len(group) > 1}
    return sorted(unique.values())


def _common_value(pairs: Sequence[RawPair], name: str) -> str | None:
    """Return the value that the pairs have for an attribute, or None if no pair has a value.

    Raises UserError if two pairs have different values.
    """
    named = [pair for pair in pairs if getattr(pair, name)]
    for pair in named[1:]:
        here, there = getattr(pair, name), getattr(named[0], name)
        if here != there:
            raise FileError(
                pair.cf,
                f"pairs {named[0].id!r} and {pair.id!r} share a view but their {name} is {there!r} and "
                f"{here!r}; make both equal, or remove one of the pairs",
            )
    return getattr(named[0], name) if named else None
