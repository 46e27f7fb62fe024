"""Branches of skeletons whose lengths are known, and of one that skan measured."""

import numpy as np
import pytest

from retipair.metrics.skeleton import branch_lengths, branch_points

DIAGONAL = 2**0.5
DRAWN = {
    "row": (["......", ".####.", "......"], [(3, 3)]),
    "diagonal": (["#...", ".#..", "..#.", "...#"], [(3 * DIAGONAL, 3 * DIAGONAL)]),
    "bend": (["#....", ".#...", "..###"], [(2 * DIAGONAL + 2, 20**0.5)]),
    "hook": (["#...#", "#...#", ".###."], [(2 + 2 + 2 * DIAGONAL, 4)]),
    "cross": (["..#..", "..#..", "#####", "..#..", "..#.."], [(2, 2)] * 4),
    "fork": (
        ["#....#", ".#..#.", "..##..", "..#...", "..#..."],
        [(2 * DIAGONAL, 2 * DIAGONAL), (2 * DIAGONAL + 1, 13**0.5), (2, 2)],
    ),
    "lasso": ([".#....", "#.#...", ".#.###"], [(DIAGONAL + 2, 10**0.5), (4 * DIAGONAL, 0)]),
    "ring": ([".#.", "#.#", ".#."], []),
    "dot": (["...", ".#.", "..."], []),
    "nothing": (["...", "..."], []),
}


def drawn(rows: list[str]) -> np.ndarray:
    return np.array([[mark == "#" for mark in row] for row in rows])


@pytest.mark.parametrize("name", DRAWN)
def test_branches_run_between_ends_and_junctions(name: str) -> None:
    rows, expected = DRAWN[name]
    for lines in (drawn(rows), drawn(rows)[:, ::-1], drawn(rows)[::-1], drawn(rows).T):
        found = sorted(zip(*branch_lengths(lines), strict=True))
        assert np.allclose(np.reshape(found, (-1, 2)), np.reshape(sorted(expected), (-1, 2)), atol=1e-12), found


def test_a_dense_mask_has_the_branches_that_skan_finds() -> None:
    """As measured with skan 0.13.1; loops without a junction, which it counts as branches of chord 0, left out."""
    arcs, chords = branch_lengths(np.random.default_rng(0).random((24, 24)) < 0.3)
    assert len(arcs) == 57
    assert arcs.sum() == pytest.approx(137.95331880577405, abs=1e-12)
    assert chords.sum() == pytest.approx(99.30420493686884, abs=1e-12)
    assert (arcs.max(), chords.max()) == (9.65685424949238, 6.324555320336759)
    assert (chords == 0).sum() == 4


def lines_between(*ends: tuple[tuple[int, int], tuple[int, int]]) -> np.ndarray:
    """Straight lines (x, y) -> (x, y) in an image 60 px wide and 40 px high."""
    image = np.zeros((40, 60), dtype=bool)
    for (x0, y0), (x1, y1) in ends:
        steps = max(abs(x1 - x0), abs(y1 - y0)) + 1
        image[np.linspace(y0, y1, steps).round().astype(int), np.linspace(x0, x1, steps).round().astype(int)] = True
    return image


def test_branch_points_are_where_lines_fork_and_cross() -> None:
    fork = lines_between(((5, 20), (30, 20)), ((30, 20), (50, 5)), ((30, 20), (50, 35)))
    np.testing.assert_allclose(branch_points(fork), [[30, 20]], atol=1.5)
    crossing = lines_between(((5, 20), (55, 20)), ((20, 2), (20, 38)))
    np.testing.assert_allclose(branch_points(crossing), [[20, 20]], atol=0.5)
    both = branch_points(fork | lines_between(((10, 2), (10, 38))))
    np.testing.assert_allclose(both[np.argsort(both[:, 0])], [[10, 20], [30, 20]], atol=1.5)


def test_short_side_branches_are_no_branch_points() -> None:
    vessel = ((5, 20), (55, 20))
    assert len(branch_points(lines_between(vessel, ((30, 20), (30, 25))))) == 0
    assert len(branch_points(lines_between(vessel, ((30, 20), (30, 35))))) == 1
    assert len(branch_points(lines_between(vessel))) == 0
    assert len(branch_points(np.zeros((8, 8), dtype=bool))) == 0
