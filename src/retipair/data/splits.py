"""Which eyes train, which validate, which are kept for the end: by patient or eye, never by image."""

import hashlib
import unicodedata
from collections.abc import Sequence

from retipair.data.manifest import Split
from retipair.data.sources import RawPair
from retipair.runtime.errors import UserError

_SIDES = {"od", "os", "og", "oi", "ra", "la", "re", "le", "r", "l", "right", "left", "右眼", "左眼", "右", "左"}
"""What tables call the right and left eye, in lower case."""


def split_pairs(pairs: Sequence[RawPair], val_fraction: float, test_fraction: float, seed: int) -> dict[str, Split]:
    """The side of every pair, by id: the user's own where there is one, else a seeded one.

    Raises UserError when an eye or patient is on two sides, when names leave in doubt which eyes are one, when only
    some pairs have a side, or when there are too few eyes.
    """
    groups = {pair.id: group_of(pair) for pair in pairs}
    _check_patients(pairs)
    _check_sides(pairs)
    _check_spelling(groups)
    if not any(pair.split for pair in pairs):
        sides = split_groups(list(groups.values()), val_fraction, test_fraction, seed)
        return {name: sides[group] for name, group in groups.items()}
    return _own_split(pairs, groups)


def group_of(pair: RawPair) -> str:
    """What must not be divided: the patient, else the eye, else the pair."""
    return f"patient {pair.patient}" if pair.patient else f"eye {pair.eye or pair.id}"


def eye_names(pairs: Sequence[RawPair]) -> dict[str, str]:
    """A name for the eye of every pair, by id; with its patient's where two patients have eyes of one name (OD)."""
    patients: dict[str | None, set[str | None]] = {}
    for pair in pairs:
        patients.setdefault(pair.eye, set()).add(pair.patient)
    return {
        pair.id: f"{pair.patient}/{pair.eye}" if pair.eye and len(patients[pair.eye]) > 1 else pair.eye or pair.id
        for pair in pairs
    }


def split_groups(groups: Sequence[str], val_fraction: float, test_fraction: float, seed: int) -> dict[str, Split]:
    """Assign every group (a patient, or an eye where the patient is unknown) to one side.

    Each non-zero fraction gets at least one group and training keeps at least one. Groups are ranked by a hash
    of their name and the seed, so that one more or less moves few others to another side.
    Raises UserError when there are too few groups for the sides asked for.
    """
    names = sorted(set(groups))
    n_val, n_test = (_share(fraction, len(names)) for fraction in (val_fraction, test_fraction))
    if len(names) <= n_val + n_test:
        raise UserError(
            f"{len(names)} eye(s) or patient(s) cannot be on {1 + (n_val > 0) + (n_test > 0)} sides of a split; "
            "add pairs of other eyes, or correct eyes.csv (columns id,eye) if eyes are told apart wrongly"
        )
    order = sorted(names, key=lambda name: hashlib.sha256(f"{seed} {name}".encode()).hexdigest())
    sides: dict[str, Split] = dict.fromkeys(order, "train")
    sides.update(dict.fromkeys(order[:n_val], "val"))
    sides.update(dict.fromkeys(order[n_val : n_val + n_test], "test"))
    return sides


def _own_split(pairs: Sequence[RawPair], groups: dict[str, str]) -> dict[str, Split]:
    sides: dict[str, Split] = {}
    by_group: dict[str, Split] = {}
    for pair in pairs:
        if pair.split is None:
            raise UserError(f"pair {pair.id!r} has no split but others do; fill the column in every line")
        group = groups[pair.id]
        if by_group.setdefault(group, pair.split) != pair.split:
            raise UserError(f"{group} is both in {by_group[group]} and in {pair.split}; put it on one side")
        sides[pair.id] = pair.split
    if missing := [side for side in ("train", "val") if side not in sides.values()]:
        raise UserError(f"the split column leaves no pair for {missing[0]}; give it at least one eye")
    return sides


def _check_patients(pairs: Sequence[RawPair]) -> None:
    """An eye that has a patient here and none there could end on two sides unseen."""
    named = {pair.eye for pair in pairs if pair.patient and pair.eye}
    for pair in pairs:
        if pair.eye in named and not pair.patient:
            raise UserError(f"pair {pair.id!r}: eye {pair.eye!r} has a patient elsewhere; name it here too")


def _check_sides(pairs: Sequence[RawPair]) -> None:
    """The right eyes of all patients would be one eye."""
    first: dict[str, RawPair] = {}
    for pair in pairs:
        if pair.eye and not pair.patient and pair.eye.lower() in _SIDES:
            other = first.setdefault(pair.eye, pair)
            if other is not pair:
                raise UserError(
                    f"pairs {other.id!r} and {pair.id!r}: eye {pair.eye!r} says which side, not whose; name the "
                    "patient too (column patient), or give each eye a name of its own"
                )


def _check_spelling(groups: dict[str, str]) -> None:
    """One patient in two spellings could end on two sides: P1, p1, and with the wide characters of Chinese input."""
    first: dict[str, str] = {}
    for name, group in groups.items():
        other = first.setdefault("".join(unicodedata.normalize("NFKC", group).casefold().split()), group)
        if other != group:
            raise UserError(f"pair {name!r}: {group!r} and {other!r} differ in spelling alone; use one, or rename one")


def _share(fraction: float, total: int) -> int:
    return max(1, round(fraction * total)) if fraction > 0 else 0
