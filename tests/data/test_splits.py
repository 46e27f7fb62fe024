from pathlib import Path

import pytest

from retipair.data.sources import RawPair
from retipair.data.splits import eye_names, split_groups, split_pairs
from retipair.runtime.errors import UserError


def _pair(name: str, eye: str | None = None, patient: str | None = None, split=None) -> RawPair:
    return RawPair(id=name, cf=Path("cf.png"), fa=Path("fa.png"), eye=eye, patient=patient, split=split)


def test_no_eye_is_on_two_sides():
    pairs = [_pair(f"{n}", eye=f"{n // 3}") for n in range(30)]
    sides = split_pairs(pairs, 0.2, 0.1, seed=3)
    for eye in range(10):
        assert len({sides[f"{n}"] for n in range(3 * eye, 3 * eye + 3)}) == 1
    assert sorted(sides.values()).count("val") == 6
    assert sorted(sides.values()).count("test") == 3


def test_no_patient_is_on_two_sides():
    pairs = [_pair(f"{n}{eye}", eye=eye, patient=f"{n}") for n in range(8) for eye in ("OD", "OS")]
    sides = split_pairs(pairs, 0.25, 0, seed=0)
    assert all(sides[f"{n}OD"] == sides[f"{n}OS"] for n in range(8))
    assert eye_names(pairs)["3OD"] == "3/OD"


def test_the_split_depends_on_the_seed_alone():
    groups = [f"{n}" for n in range(20)]
    assert split_groups(groups, 0.2, 0, 1) == split_groups(groups[::-1], 0.2, 0, 1)
    assert split_groups(groups, 0.2, 0, 1) != split_groups(groups, 0.2, 0, 2)


def test_one_eye_less_moves_few_others():
    groups = [f"{n}" for n in range(50)]
    before, after = split_groups(groups, 0.2, 0, 0), split_groups(groups[1:], 0.2, 0, 0)
    assert sum(before[group] != after[group] for group in groups[1:]) <= 1


def test_one_eye_cannot_be_split():
    with pytest.raises(UserError, match=r"1 eye\(s\).*add pairs of other eyes"):
        split_pairs([_pair("a", eye="1"), _pair("b", eye="1")], 0.2, 0, 0)


def test_the_users_own_split_wins():
    pairs = [_pair("a", split="val"), _pair("b", split="train"), _pair("c", split="train")]
    assert split_pairs(pairs, 0.9, 0.05, 0) == {"a": "val", "b": "train", "c": "train"}


@pytest.mark.parametrize(
    ("pairs", "said"),
    [
        ([_pair("a", "1", None, "train"), _pair("b", "1", None, "val")], "eye 1 is both in train and in val"),
        ([_pair("a", "L", "p", "train"), _pair("b", "R", "p", "val")], "patient p is both"),
        ([_pair("a", split="train"), _pair("b")], "pair 'b' has no split"),
        ([_pair("a", split="train"), _pair("b", split="test")], "assigns no pair to val"),
        ([_pair("a", split="val")], "assigns no pair to train"),
        ([_pair("a", "L", "p"), _pair("b", "L")], "name the patient here too"),
    ],
)
def test_a_split_that_leaks_or_lacks_a_side_is_refused(pairs, said):
    with pytest.raises(UserError, match=said):
        split_pairs(pairs, 0.2, 0, 0)


@pytest.mark.parametrize("side", ["OD", "os", "R", "Left", "右眼"])
def test_a_side_is_no_eye_unless_the_patient_is_named(side):
    with pytest.raises(UserError, match="a side but no patient"):
        split_pairs([_pair("a", side), _pair("b", "x"), _pair("c", side), _pair("d", "y")], 0.2, 0, 0)
    named = [_pair("a", side, "1"), _pair("b", side, "2"), _pair("c", side, "1")]
    assert split_pairs(named, 0.2, 0, 0)["a"] == split_pairs(named, 0.2, 0, 0)["c"]
    assert len(split_pairs([_pair("a", side), _pair("b", "x")], 0.2, 0, 0)) == 2  # one alone is one eye


@pytest.mark.parametrize("other", ["p 1a", "P1a", "p1A", "p１a", "p1ａ"])
@pytest.mark.parametrize("column", ["eye", "patient"])
def test_names_that_differ_in_spelling_alone_are_refused(other, column):
    pairs = [_pair("a", **{column: "p1a"}), _pair("b", **{column: other}), _pair("c", **{column: "p2"})]
    with pytest.raises(UserError, match="differ only in spelling"):
        split_pairs(pairs, 0.2, 0, 0)
    assert len(split_pairs([pairs[0], pairs[0], pairs[2]], 0.2, 0, 0)) == 2
