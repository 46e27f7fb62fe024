"""A card says what the views of a folder are."""

from collections.abc import Mapping

import pytest

from retipair.data.pair_facts import PairFacts


@pytest.mark.parametrize(
    ("origins", "real", "kind", "sourced"),
    [
        ({"real": 3}, 3, "Real", 0),
        ({"noise": 3}, 0, "Synthetic", 0),
        ({"real": 1, "synthetic": 2}, 1, "Real and synthetic", 0),
        ({"cf2fa": 3}, 3, "Real and synthetic", 3),  # each pair has a photograph and a drawn FA
        ({"fa2cf": 1, "from_data": 2}, 0, "Synthetic", 3),
    ],
)
def test_kind_of_the_views(origins: Mapping[str, int], real: int, kind: str, sourced: int) -> None:
    facts = PairFacts({"train": 2, "val": 1}, dict(origins), [512], [], [], 0.5, real)
    assert (facts.kind, facts.sourced, facts.splits_text) == (kind, sourced, "2 train, 1 val")
