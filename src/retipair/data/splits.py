"""Split pairs into train, val and test, so that all pairs of one patient or eye are in the same split."""

import hashlib
import unicodedata
from collections.abc import Sequence

from retipair.data.manifest import Split
from retipair.data.raw_pair import RawPair
from retipair.runtime.errors import UserError

_SIDE_NAMES = {"od", "os", "og", "oi", "ra", "la", "re", "le", "r", "l", "right", "left", "右眼", "左眼", "右", "左"}
"""Words for the right or the left eye that tables use in place of an eye's name, in lower case."""


def split_pairs(pairs: Sequence[RawPair], val_fraction: float, test_fraction: float, seed: int) -> dict[str, Split]:
    """Return the split of every pair, by id.

    If the user has given the pairs splits, these are returned. Otherwise, the pairs are split by `split_groups`.
    Raises UserError if an eye or patient is in two splits, if the names do not identify the eyes, if only some pairs
    have a split, or if there are too few eyes.
    """
    check_names(pairs)
    groups = {pair.id: group_of(pair) for pair in pairs}
    if not any(pair.split for pair in pairs):
        splits = split_groups(list(groups.values()), val_fraction, test_fraction, seed)
        return {name: splits[group] for name, group in groups.items()}
    return _user_split(pairs, groups)


def check_names(pairs: Sequence[RawPair]) -> None:
    """Raise UserError if the names of eyes and patients do not identify the eyes. Hashed names cannot be checked."""
    _check_patients(pairs)
    _check_sides(pairs)
    _check_spelling({pair.id: group_of(pair) for pair in pairs})


def group_of(pair: RawPair) -> str:
    """Return the group of a pair: its patient, or its eye if the patient is unknown, or its id if both are unknown.

    All pairs of a group are in one split.
    """
    return f"patient {pair.patient}" if pair.patient else f"eye {pair.eye or pair.id}"


def eye_names(pairs: Sequence[RawPair]) -> dict[str, str]:
    """Return a distinct name of each pair's eye, by id of the pair.

    The name begins with the patient if several patients have an eye of the same name. It is the pair's id if the eye is
    unknown.
    """
    patients: dict[str | None, set[str | None]] = {}
    for pair in pairs:
        patients.setdefault(pair.eye, set()).add(pair.patient)
    return {
        pair.id: f"{pair.patient}/{pair.eye}" if pair.eye and len(patients[pair.eye]) > 1 else pair.eye or pair.id
        for pair in pairs
    }


def split_groups(groups: Sequence[str], val_fraction: float, test_fraction: float, seed: int) -> dict[str, Split]:
    """Assign every group (a patient, or an eye if the patient is unknown) to one split.

    Each split with a non-zero fraction gets at least one group, and "train" gets at least one. Groups are assigned in
    the order of a hash of their name and the seed. Thus, if a group is added or removed, few other groups change their
    split. Raises UserError if there are too few groups.
    """
    names = set(groups)
    n_val, n_test = (group_count(fraction, len(names)) for fraction in (val_fraction, test_fraction))
    if len(names) <= n_val + n_test:
        raise UserError(
            f"{len(names)} eye(s) or patient(s) cannot be divided into {1 + (n_val > 0) + (n_test > 0)} splits; "
            "add pairs of other eyes, or correct eyes.csv (columns id,eye) if it groups pairs wrongly"
        )
    order = sorted(names, key=lambda name: split_hash(name, seed))
    splits: dict[str, Split] = dict.fromkeys(order, "train")
    splits |= dict.fromkeys(order[:n_val], "val")
    splits |= dict.fromkeys(order[n_val : n_val + n_test], "test")
    return splits


def split_hash(group: str, seed: int) -> bytes:
    """Return the hash by which `split_groups` orders the groups."""
    return hashlib.sha256(f"{seed} {group}".encode()).digest()


def _user_split(pairs: Sequence[RawPair], groups: dict[str, str]) -> dict[str, Split]:
    splits: dict[str, Split] = {}
    by_group: dict[str, Split] = {}
    for pair in pairs:
        if pair.split is None:
            raise UserError(f"pair {pair.id!r} has no split but others do; fill the column split in every line")
        group = groups[pair.id]
        if by_group.setdefault(group, pair.split) != pair.split:
            raise UserError(f"{group} is both in {by_group[group]} and in {pair.split}; put it in one split")
        splits[pair.id] = pair.split
    if missing := [split for split in ("train", "val") if split not in splits.values()]:
        raise UserError(f"the column split assigns no pair to {missing[0]}; assign at least one eye to it")
    return splits


def _check_patients(pairs: Sequence[RawPair]) -> None:
    """Raise UserError if only some pairs of an eye name the patient, since the eye could then be in two splits."""
    named = {pair.eye for pair in pairs if pair.patient and pair.eye}
    for pair in pairs:
        if pair.eye in named and not pair.patient:
            raise UserError(
                f"pair {pair.id!r}: no patient, but another pair of eye {pair.eye!r} has one; name the patient here too"
            )


def _check_sides(pairs: Sequence[RawPair]) -> None:
    """Raise UserError if several pairs without a patient have the same side, such as "left", as the name of their eye.

    Pairs of different patients would otherwise count as one eye.
    """
    first: dict[str, RawPair] = {}
    for pair in pairs:
        if pair.eye and not pair.patient and pair.eye.lower() in _SIDE_NAMES:
            other = first.setdefault(pair.eye, pair)
            if other is not pair:
                raise UserError(
                    f"pairs {other.id!r} and {pair.id!r}: eye {pair.eye!r} names a side but no patient; name the "
                    "patient too (column patient), or give each eye its own name"
                )


def _check_spelling(groups: dict[str, str]) -> None:
    """Raise UserError if two groups differ only in case, spaces or character width (P1, p1).

    They are probably one patient or eye, which could then be in two splits.
    """
    first: dict[str, str] = {}
    for name, group in groups.items():
        other = first.setdefault("".join(unicodedata.normalize("NFKC", group).casefold().split()), group)
        if other != group:
            raise UserError(
                f"pair {name!r}: {group!r} and {other!r} differ only in spelling; use one spelling, or rename one of "
                "the two"
            )


def group_count(fraction: float, total: int) -> int:
    """Return how many of `total` groups get into a split with this fraction."""
    return max(1, round(fraction * total)) if fraction > 0 else 0
