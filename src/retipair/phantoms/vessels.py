"""Two vessel trees that share a retina: grown towards the tissue they feed, never crossing their own kind."""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from scipy.spatial import cKDTree

SEEN_BY_BOTH, FA_ONLY = 0, 1
"""Levels: the CF shows what is large enough; the finest vessels only light up in the FA."""


@dataclass(frozen=True)
class Tree:
    """Vessels of one kind as nodes, each joined to its parent, parents first.

    points (N, 2) x, y mm; parents (N,) int, -1 at a root; radii (N,) mm; levels (N,) SEEN_BY_BOTH or FA_ONLY.
    """

    points: np.ndarray
    parents: np.ndarray
    radii: np.ndarray
    levels: np.ndarray

    def segments(self) -> tuple[np.ndarray, np.ndarray]:
        """Indices (M,) of every node that has a parent, and of that parent."""
        child = np.flatnonzero(self.parents >= 0)
        return child, self.parents[child]


@dataclass(frozen=True)
class Growth:
    """How far apart new nodes lie, from how far tissue attracts vessels, and how near it is fed; all mm."""

    step: float
    reach: float
    fed: float


Allowed = Callable[[np.ndarray], np.ndarray]
"""points (N, 2) mm -> (N,) bool: may a vessel be there?"""


def grow(
    points: np.ndarray,
    parents: np.ndarray,
    tissue: np.ndarray,
    how: Growth,
    allowed: Allowed,
    rng: np.random.Generator,
) -> tuple[np.ndarray, np.ndarray]:
    """Grow branches from nodes (N, 2), parents (N,) towards every point of tissue (T, 2) in reach.

    Space colonisation (Runions et al. 2007, Modeling Trees with a Space Colonization Algorithm): each point of tissue
    pulls its nearest node; a node grows one step along the mean pull; tissue that a vessel reached pulls no more.
    At most two branches leave a node. Returns all nodes, the old ones first.
    """
    children = np.bincount(parents[parents >= 0], minlength=len(points))
    hungry, fresh = tissue, points
    while True:
        hungry = hungry[cKDTree(fresh).query(hungry, distance_upper_bound=how.fed)[0] > how.fed]
        free = np.flatnonzero(children < 2)
        distance, nearest = cKDTree(points[free]).query(hungry, distance_upper_bound=how.reach)
        reached = np.isfinite(distance)
        if not reached.any():
            return points, parents
        pulled, which = np.unique(free[nearest[reached]], return_inverse=True)
        pull = (hungry[reached] - points[free[nearest[reached]]]) / distance[reached, None]
        direction = rng.normal(0, 0.15, (len(pulled), 2))
        np.add.at(direction, which, pull)
        fresh = points[pulled] + how.step * direction / (np.linalg.norm(direction, axis=1, keepdims=True) + 1e-9)
        good = allowed(fresh) & _apart(fresh, points, pulled, 0.6 * how.step)
        fresh = fresh[good]
        # A node that cannot grow where it is pulled would be pulled there for ever.
        children[pulled[~good]] = 2
        children[pulled[good]] += 1
        points, parents = np.concatenate([points, fresh]), np.concatenate([parents, pulled[good]])
        children = np.concatenate([children, np.zeros(good.sum(), dtype=children.dtype)])


def _apart(fresh: np.ndarray, existing: np.ndarray, origins: np.ndarray, distance: float) -> np.ndarray:
    """Which new nodes keep `distance` from every other node but the one they grow from."""
    distances, indices = cKDTree(existing).query(fresh, k=2)
    others = np.where(indices == origins[:, None], np.inf, distances).min(axis=1)
    return others > distance


def smooth(points: np.ndarray, parents: np.ndarray, fixed: int, rounds: int = 4) -> np.ndarray:
    """Vessels without the corners of their growth: each node moves towards its parent and heir; `fixed` stay."""
    child = np.flatnonzero(parents >= 0)
    heir = np.full(len(points), -1)
    heir[parents[child[::-1]]] = child[::-1]  # the first child, which goes straight on
    inner = np.flatnonzero((parents >= 0) & (heir >= 0))
    inner = inner[inner >= fixed]
    for _ in range(rounds):
        points = points.copy()
        points[inner] = 0.5 * points[inner] + 0.25 * (points[parents[inner]] + points[heir[inner]])
    return points


def keep_branches(parents: np.ndarray, dropped: np.ndarray) -> np.ndarray:
    """(N,) bool: what is left when every node in `dropped` (N,) bool goes with all that grows from it."""
    kept = ~dropped
    for node in np.flatnonzero(parents >= 0):  # parents come first
        kept[node] &= kept[parents[node]]
    return kept


def chosen(points: np.ndarray, parents: np.ndarray, kept: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Points and renumbered parents of the `kept` nodes, and their old numbers."""
    number = np.cumsum(kept) - 1
    old = np.flatnonzero(kept)
    above = parents[old]
    return points[old], np.where(above >= 0, number[above], -1), old


def crossings(points: np.ndarray, parents: np.ndarray) -> np.ndarray:
    """Pairs (K, 2) of nodes whose segments to their parents cross without sharing an end."""
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
    """On which side of the line a -> b the point c lies: the sign of a cross product, (N,)."""
    return (b[:, 0] - a[:, 0]) * (c[:, 1] - a[:, 1]) - (b[:, 1] - a[:, 1]) * (c[:, 0] - a[:, 0])


def without_crossings(points: np.ndarray, parents: np.ndarray) -> np.ndarray:
    """(N,) bool: the nodes left when of each two crossing vessels the one that feeds less ends before the crossing."""
    kept = np.ones(len(points), dtype=bool)
    while True:
        some_points, some_parents, old = chosen(points, parents, kept)
        found = crossings(some_points, some_parents)
        if not len(found):
            return kept
        size = leaves(some_parents)
        dropped = np.zeros(len(points), dtype=bool)
        dropped[old[np.where(size[found[:, 0]] < size[found[:, 1]], found[:, 0], found[:, 1])]] = True
        kept &= keep_branches(parents, dropped)


def leaves(parents: np.ndarray) -> np.ndarray:
    """How many ends each node feeds, (N,) int."""
    count = np.zeros(len(parents), dtype=np.int64)
    is_leaf = np.ones(len(parents), dtype=bool)
    is_leaf[parents[parents >= 0]] = False
    count[is_leaf] = 1
    for node in range(len(parents) - 1, -1, -1):  # children come last
        if parents[node] >= 0:
            count[parents[node]] += count[node]
    return count


def branching_radii(parents: np.ndarray, trunk: np.ndarray, radius: float, exponent: float) -> np.ndarray:
    """Radii (N,) mm that obey r0^x = r1^x + r2^x at every branching, the widest node of `trunk` having `radius`."""
    fed = leaves(parents)
    return radius * (fed / fed[trunk].max()) ** (1 / exponent)
