"""Find views with equal pixels in several pairs: duplicate pairs, and pairs of one eye."""

import hashlib
from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from retipair.data.sources import RawPair
from retipair.runtime.errors import FileError

Views = tuple[str, str]
"""Hashes of the pixels of CF and FA."""


def pixels_sha256(view: np.ndarray) -> str:
    """Hash the decoded pixels of a view (H, W, 3) uint8, independent of the file format."""
    return hashlib.sha256(f"{view.shape}".encode() + np.ascontiguousarray(view).data).hexdigest()


def find_duplicates(pairs: Sequence[RawPair], views: Sequence[Views]) -> dict[str, str]:
    """Find pairs whose views both equal those of an earlier pair: id -> error message."""
    first: dict[tuple[str, ...], RawPair] = {}
    messages = {}
    for pair, hashes in zip(pairs, views, strict=True):
        earlier = first.setdefault(tuple(sorted(hashes)), pair)
        if earlier is not pair:
            messages[pair.id] = (
                f"{pair.cf}: pair {pair.id!r} shows the same two images as pair {earlier.id!r}; remove one of them "
                "(--skip_bad keeps the first)"
            )
    return messages


def group_by_views(pairs: Sequence[RawPair], views: Sequence[Views]) -> tuple[list[RawPair], list[list[str]]]:
    """Assign one eye and patient to all pairs that share a view, directly or through other pairs.

    Returns all pairs, and the ids of each group that changed. The eye is the one named for any pair of the group, else
    the id of its first pair. One CF with several FA frames is normal in angiography. Raises UserError if the pairs of a
    group have different eyes, patients or splits.
    """
    grouped, new = list(pairs), []
    for members in _connected(views):
        together = [pairs[index] for index in members]
        eye, patient, _ = (_common(together, name) for name in ("eye", "patient", "split"))
        for index in members:
            grouped[index] = replace(pairs[index], eye=eye or together[0].id, patient=patient)
        if any(grouped[index] != pairs[index] for index in members):
            new.append([pair.id for pair in together])
    return grouped, new


def _connected(views: Sequence[Views]) -> list[list[int]]:
    """Group the indices of pairs that share views; groups of two or more, in order."""
    groups: dict[str, list[int]] = {}  # view -> its group
    for index, hashes in enumerate(views):
        joined = [index]
        for group in {id(group): group for view in hashes if (group := groups.get(view))}.values():
            joined += group
        for member in joined:
            groups |= dict.fromkeys(views[member], joined)
    unique = {id(group): sorted(group) for group in groups.values() if len(group) > 1}
    return sorted(unique.values())


def _common(pairs: Sequence[RawPair], name: str) -> str | None:
    """Return the common value of attribute `name`, None if no pair has one. Raises UserError if values differ."""
    named = [pair for pair in pairs if getattr(pair, name)]
    for pair in named[1:]:
        here, there = getattr(pair, name), getattr(named[0], name)
        if here != there:
            raise FileError(
                pair.cf,
                f"pairs {named[0].id!r} and {pair.id!r} share a view but their {name} is {there!r} and "
                f"{here!r}; correct that, or remove one of them",
            )
    return getattr(named[0], name) if named else None
