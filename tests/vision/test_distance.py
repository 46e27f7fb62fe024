"""Distances to the edge of a mask are those of scipy, to the last bit."""

import numpy as np
import pytest
from scipy.ndimage import distance_transform_edt

from retipair.vision.distance import distance_to_edge, is_farther


def masks() -> list[np.ndarray]:
    """Sparse and dense masks, one that touches the edges of a wide image, a disc, and a column without an edge."""
    rng = np.random.default_rng(0)
    rows, columns = np.mgrid[:80, :120]
    disc = (rows - 40) ** 2 + (columns - 50) ** 2 < 38**2
    column = np.zeros((20, 5), dtype=bool)
    column[:, 2] = True
    return [*(rng.random((40, 70)) < share for share in (0.1, 0.9, 0.999)), disc, ~disc, column, np.zeros((3, 4), bool)]


@pytest.mark.parametrize("mask", masks())
def test_distances_are_those_of_scipy(mask: np.ndarray) -> None:
    expected = distance_transform_edt(mask)
    assert np.array_equal(distance_to_edge(mask), expected)
    for radius in (0, 1, 2.5, 5, 12, 200):
        assert np.array_equal(is_farther(mask, radius), expected > radius)


def test_a_mask_without_an_edge_is_farther_than_any_radius() -> None:
    assert is_farther(np.ones((5, 9), dtype=bool), 100).all()
