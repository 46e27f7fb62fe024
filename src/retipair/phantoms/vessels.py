"""Grow vessel trees towards the tissue they supply, without crossings within a tree."""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from scipy.spatial import cKDTree

SEEN_BY_BOTH, FA_ONLY = 0, 1
"""Levels: both views show large vessels; the finest vessels are visible in the FA only."""


@dataclass(frozen=True)
class Tree:
    """Vessels of one kind as nodes connected to their parents; a parent precedes its children.

    points (N, 2) x, y mm; parents (N,) int, -1 at a root; radii (N,) mm; levels (N,) SEEN_BY_BOTH or FA_ONLY.
    """

    points: np.ndarray
    parents: np.ndarray
    radii: np.ndarray
    levels: np.ndarray

    def segments(self) -> tuple[np.ndarray, np.ndarray]:
        """Return the indices (M,) of all nodes with a parent, and of their parents."""
        child = np.flatnonzero(self.parents >= 0)
        return child, self.parents[child]


@dataclass(frozen=True)
class Growth:
    """Growth parameters, mm: distance of new nodes, range of attraction, and distance at which tissue is supplied."""

    step: float
    reach: float
    supply_distance: float


Allowed = Callable[[np.ndarray], np.ndarray]
"""Maps points (N, 2) mm to (N,) bool: whether vessels may grow there."""


def grow(
    points: np.ndarray,
    parents: np.ndarray,
    tissue: np.ndarray,
    growth: Growth,
    allowed: Allowed,
    rng: np.random.Generator,
) -> tuple[np.ndarray, np.ndarray]:
    """Grow branches from nodes (N, 2), parents (N,) towards all tissue points (T, 2) within range.

    Space colonisation (Runions et al. 2007, Modeling Trees with a Space Colonization Algorithm): each tissue point
    attracts its nearest node; a node grows one step in the mean direction; supplied tissue is removed. A node has at
    most two branches. Returns all nodes, the old ones first.
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
        # A blocked node must not be attracted again, or the loop would not end.
        children[attracted[~accepted]] = 2
        children[attracted[accepted]] += 1
        points, parents = np.concatenate([points, new]), np.concatenate([parents, attracted[accepted]])
        children = np.concatenate([children, np.zeros(accepted.sum(), dtype=children.dtype)])


def _keeps_distance(new: np.ndarray, existing: np.ndarray, origins: np.ndarray, distance: float) -> np.ndarray:
    """Return which new nodes are further than `distance` from all nodes except the one they grow from."""
    distances, indices = cKDTree(existing).query(new, k=2)
    others = np.where(indices == origins[:, None], np.inf, distances).min(axis=1)
    return others > distance


def smooth(points: np.ndarray, parents: np.ndarray, fixed: int, rounds: int = 4) -> np.ndarray:
    """Smooth vessels: each node moves towards its parent and first child; the first `fixed` nodes do not move."""
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
    """Return (N,) bool: the nodes left after removing those in `dropped` (N,) bool and their descendants."""
    kept = ~dropped
    for node in np.flatnonzero(parents >= 0):  # a parent precedes its children
        kept[node] &= kept[parents[node]]
    return kept


def chosen(points: np.ndarray, parents: np.ndarray, kept: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return points, renumbered parents and old indices of the `kept` nodes."""
    new_index = np.cumsum(kept) - 1
    old = np.flatnonzero(kept)
    old_parents = parents[old]
    return points[old], np.where(old_parents >= 0, new_index[old_parents], -1), old


def crossings(points: np.ndarray, parents: np.ndarray) -> np.ndarray:
    """Return pairs (K, 2) of nodes whose segments to their parents cross without sharing an end."""
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
    """Return a cross product (N,), whose sign is the side of the line a -> b on which c lies."""
    return (b[:, 0] - a[:, 0]) * (c[:, 1] - a[:, 1]) - (b[:, 1] - a[:, 1]) * (c[:, 0] - a[:, 0])


def without_crossings(points: np.ndarray, parents: np.ndarray) -> np.ndarray:
    """Return (N,) bool: the nodes left after cutting, at each crossing, the branch with fewer leaves."""
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
    """Count the leaves below each node, (N,) int."""
    count = np.zeros(len(parents), dtype=np.int64)
    is_leaf = np.ones(len(parents), dtype=bool)
    is_leaf[parents[parents >= 0]] = False
    count[is_leaf] = 1
    for node in range(len(parents) - 1, -1, -1):  # a parent precedes its children
        if parents[node] >= 0:
            count[parents[node]] += count[node]
    return count


def branching_radii(parents: np.ndarray, trunk: np.ndarray, radius: float, exponent: float) -> np.ndarray:
    """Return radii (N,) mm with r0^x = r1^x + r2^x at every branching; the widest `trunk` node has `radius`."""
    count = leaves(parents)
    return radius * (count / count[trunk].max()) ** (1 / exponent)
