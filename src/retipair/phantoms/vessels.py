"""Grow trees of vessels towards the tissue that they supply. The vessels of one tree do not cross one another.

A tree consists of nodes. `points` (N, 2) are their positions in mm. `parents` (N,) int has the index of the parent of
each node; a root has the parent -1.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from scipy.spatial import cKDTree

SEEN_BY_BOTH, FA_ONLY = 0, 1
"""Values of `Tree.levels`. Both views show the larger vessels; only the FA shows the finest vessels."""


@dataclass(frozen=True)
class Tree:
    """The arteries or the veins of an eye, as N nodes. A parent has a lower index than its children.

    points: the positions x, y of the nodes, (N, 2) mm.
    parents: the index of the parent of each node, (N,) int; -1 for a root.
    radii: the radius of the vessel at each node, (N,) mm.
    levels: SEEN_BY_BOTH or FA_ONLY for each node, (N,).
    """

    points: np.ndarray
    parents: np.ndarray
    radii: np.ndarray
    levels: np.ndarray

    def segments(self) -> tuple[np.ndarray, np.ndarray]:
        """Return (indices of all nodes that have a parent, indices of their parents), (M,) each."""
        child = np.flatnonzero(self.parents >= 0)
        return child, self.parents[child]


@dataclass(frozen=True)
class Growth:
    """Parameters of the growth of vessels.

    step: the distance of a new node from its parent, mm.
    reach: the largest distance at which a tissue point attracts a node, mm.
    supply_distance: a tissue point with a node within this distance is supplied, mm.
    """

    step: float
    reach: float
    supply_distance: float


Allowed = Callable[[np.ndarray], np.ndarray]
"""A function that returns, for points (N, 2) mm, where vessels may grow, (N,) bool."""


def grow(
    points: np.ndarray,
    parents: np.ndarray,
    tissue: np.ndarray,
    growth: Growth,
    allowed: Allowed,
    rng: np.random.Generator,
) -> tuple[np.ndarray, np.ndarray]:
    """Grow branches from nodes towards tissue points. Return (points, parents), the old nodes first.

    The method is space colonisation (Runions et al. 2007, Modeling Trees with a Space Colonization Algorithm). In each
    round, each tissue point attracts the nearest node that has fewer than two children, if it is within `growth.reach`.
    Each attracted node gets a new child, one step away in the mean direction of the tissue points that attract it. Then
    the tissue points that have a node nearby (within `growth.supply_distance`) are removed.

    tissue: the tissue points, (T, 2) mm.
    allowed: a function that tells where vessels may grow.
    """
    children = np.bincount(parents[parents >= 0], minlength=len(points))
    unsupplied, new = tissue, points
    while True:
        to_vessel, _ = cKDTree(new).query(unsupplied, distance_upper_bound=growth.supply_distance)
        unsupplied = unsupplied[to_vessel > growth.supply_distance]
        free = np.flatnonzero(children < 2)
        distance, nearest = cKDTree(points[free]).query(unsupplied, distance_upper_bound=growth.reach)
        reached = np.isfinite(distance)
        if not reached.any():
            return points, parents
        attracted, which = np.unique(free[nearest[reached]], return_inverse=True)
        attraction = (unsupplied[reached] - points[free[nearest[reached]]]) / distance[reached, None]
        direction = rng.normal(0, 0.15, (len(attracted), 2))
        np.add.at(direction, which, attraction)
        new = points[attracted] + growth.step * direction / (np.linalg.norm(direction, axis=1, keepdims=True) + 1e-9)
        accepted = allowed(new) & _keeps_distance(new, points, attracted, 0.6 * growth.step)
        new = new[accepted]
        # A node whose new child is not accepted must not be attracted again, or the loop would not end.
        children[attracted[~accepted]] = 2
        children[attracted[accepted]] += 1
        points, parents = np.concatenate([points, new]), np.concatenate([parents, attracted[accepted]])
        children = np.concatenate([children, np.zeros(accepted.sum(), dtype=children.dtype)])


def _keeps_distance(new: np.ndarray, existing: np.ndarray, origins: np.ndarray, distance: float) -> np.ndarray:
    """Return (M,) bool: True for new nodes that are far enough from all existing nodes except their parents.

    new: the positions of the new nodes, (M, 2) mm.
    existing: the positions of the existing nodes, (N, 2) mm.
    origins: the indices of the parents of the new nodes, (M,).
    distance: the least distance, mm.
    """
    distances, indices = cKDTree(existing).query(new, k=2)
    others = np.where(indices == origins[:, None], np.inf, distances).min(axis=1)
    return others > distance


def smooth(points: np.ndarray, parents: np.ndarray, fixed: int, rounds: int = 4) -> np.ndarray:
    """Smooth vessels by moving each node towards its parent and its first child. Return the new points (N, 2).

    fixed: the number of nodes at the start of the list that do not move. Roots and ends do not move either.
    rounds: the number of repetitions.
    """
    child = np.flatnonzero(parents >= 0)
    first_child = np.full(len(points), -1)
    first_child[parents[child[::-1]]] = child[::-1]
    inner = np.flatnonzero((parents >= 0) & (first_child >= 0))
    inner = inner[inner >= fixed]
    for _ in range(rounds):
        points = points.copy()
        points[inner] = 0.5 * points[inner] + 0.25 * (points[parents[inner]] + points[first_child[inner]])
    return points


def keep_branches(parents: np.ndarray, dropped: np.ndarray) -> np.ndarray:
    """Return (N,) bool: the nodes that are left when those in `dropped` (N,) bool and their descendants are removed."""
    kept = ~dropped
    for node in np.flatnonzero(parents >= 0):  # a parent precedes its children
        kept[node] &= kept[parents[node]]
    return kept


def chosen(points: np.ndarray, parents: np.ndarray, kept: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return (points, parents, old indices) of the nodes in `kept` (N,) bool. The returned parents are new indices."""
    new_index = np.cumsum(kept) - 1
    old = np.flatnonzero(kept)
    old_parents = parents[old]
    return points[old], np.where(old_parents >= 0, new_index[old_parents], -1), old


def crossings(points: np.ndarray, parents: np.ndarray) -> np.ndarray:
    """Return the crossings of vessel segments, as pairs (K, 2) of node indices.

    The segment of a node connects it to its parent. Segments with a common end do not count as crossing.
    """
    child = np.flatnonzero(parents >= 0)
    start, end = points[parents[child]], points[child]
    longest = np.linalg.norm(end - start, axis=1).max(initial=0)
    pairs = cKDTree((start + end) / 2).query_pairs(longest, output_type="ndarray")
    a, b = child[pairs[:, 0]], child[pairs[:, 1]]
    joined = (parents[a] == parents[b]) | (parents[a] == b) | (parents[b] == a)
    a, b = a[~joined], b[~joined]
    pa, qa, pb, qb = points[parents[a]], points[a], points[parents[b]], points[b]
    crossing = (_side(pa, qa, pb) * _side(pa, qa, qb) < 0) & (_side(pb, qb, pa) * _side(pb, qb, qa) < 0)
    return np.column_stack([a, b])[crossing]


def _side(a: np.ndarray, b: np.ndarray, c: np.ndarray) -> np.ndarray:
    """Return numbers (N,) whose sign tells on which side of the line from `a` to `b` the point `c` lies."""
    return (b[:, 0] - a[:, 0]) * (c[:, 1] - a[:, 1]) - (b[:, 1] - a[:, 1]) * (c[:, 0] - a[:, 0])


def without_crossings(points: np.ndarray, parents: np.ndarray) -> np.ndarray:
    """Return (N,) bool: the nodes that are left if, at each crossing, the branch with fewer leaves is removed."""
    kept = np.ones(len(points), dtype=bool)
    while True:
        kept_points, kept_parents, old = chosen(points, parents, kept)
        pairs = crossings(kept_points, kept_parents)
        if not len(pairs):
            return kept
        size = leaves(kept_parents)
        dropped = np.zeros(len(points), dtype=bool)
        dropped[old[np.where(size[pairs[:, 0]] < size[pairs[:, 1]], pairs[:, 0], pairs[:, 1])]] = True
        kept &= keep_branches(parents, dropped)


def leaves(parents: np.ndarray) -> np.ndarray:
    """Return the number of leaves (vessel ends) below each node, (N,) int. For a leaf, it is 1."""
    count = np.zeros(len(parents), dtype=np.int64)
    is_leaf = np.ones(len(parents), dtype=bool)
    is_leaf[parents[parents >= 0]] = False
    count[is_leaf] = 1
    for node in range(len(parents) - 1, -1, -1):  # a parent precedes its children
        if parents[node] >= 0:
            count[parents[node]] += count[node]
    return count


def branching_radii(parents: np.ndarray, trunk: np.ndarray, radius: float, exponent: float) -> np.ndarray:
    """Return the radii of all nodes, (N,) mm.

    At each branching, r0^x = r1^x + r2^x holds for the vessel of radius r0 and its branches of radii r1 and r2.

    trunk: the indices of trunk nodes.
    radius: the radius of the widest of these trunk nodes, mm; it determines the scale of all radii.
    exponent: x.
    """
    count = leaves(parents)
    return radius * (count / count[trunk].max()) ** (1 / exponent)
