"""Measure the branches of a skeleton: its paths between end points and junctions.

The definitions are those of skan (Nunez-Iglesias et al. 2018, doi 10.7717/peerj.4312).
"""

from collections.abc import Mapping, Sequence
from itertools import pairwise

import numpy as np
from scipy import sparse
from scipy.sparse.csgraph import minimum_spanning_tree

_STEPS = {(0, 1): 1.0, (1, 0): 1.0, (1, 1): 2**0.5, (1, -1): 2**0.5}
"""Offsets (down, right) to the neighbours that follow a pixel in raster order, and their distances, px."""


def branch_lengths(lines: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return arc and chord length of each branch of a skeleton (H, W) bool, px, (n,) each.

    A branch is a path of 8-connected pixels from one end point or junction to the next. Steps to a diagonal neighbour
    are sqrt(2) px long. Loops without a junction are left out.
    """
    neighbours = _neighbours(_pixel_graph(lines))
    arcs, ends = [], []
    visited = set[tuple[int, int]]()
    for start in (pixel for pixel, beside in enumerate(neighbours) if len(beside) not in (0, 2)):
        for first in neighbours[start]:
            if (start, first) not in visited:
                before_end, end, arc = _follow(neighbours, start, first)
                visited.add((end, before_end))  # the same branch from its other end
                arcs.append(arc)
                ends.append((start, end))
    points = np.argwhere(lines)[np.array(ends, int).reshape(-1, 2)]  # (n, 2 ends, 2)
    return np.array(arcs), np.linalg.norm(points[:, 1] - points[:, 0], axis=1)


def _follow(neighbours: Sequence[Mapping[int, float]], start: int, first: int) -> tuple[int, int, float]:
    """Follow the branch that leaves `start` to `first`; return its last two pixels and its length."""
    previous, pixel, length = start, first, neighbours[start][first]
    while len(neighbours[pixel]) == 2:
        one, other = neighbours[pixel]
        previous, pixel = pixel, other if one == previous else one
        length += neighbours[previous][pixel]
    return previous, pixel, length


def _neighbours(graph: sparse.csr_array) -> list[dict[int, float]]:
    """Return the neighbours of each pixel and their distances."""
    indices, lengths, starts = graph.indices.tolist(), graph.data.tolist(), graph.indptr.tolist()
    return [dict(zip(indices[a:b], lengths[a:b], strict=True)) for a, b in pairwise(starts)]


def _pixel_graph(lines: np.ndarray) -> sparse.csr_array:
    """Return the distances between neighbouring pixels, (n, n), pixels in raster order.

    Adjacent pixels with three or more neighbours form a junction; they are connected by their minimum spanning tree, so
    that a junction contains no loops.
    """
    number = np.pad(np.cumsum(lines).reshape(lines.shape) * lines, 1) - 1  # -1 outside the lines
    inside = number[1:-1, 1:-1]
    edges = []
    for (down, right), length in _STEPS.items():
        other = number[1 + down :, 1 + right :][: lines.shape[0], : lines.shape[1]]
        both = (inside >= 0) & (other >= 0)
        edges.append((inside[both], other[both], np.full(both.sum(), length)))
    first, second, lengths = (np.concatenate(parts) for parts in zip(*edges, strict=True))
    shape = (int(lines.sum()),) * 2
    graph = _symmetric(first, second, lengths, shape)
    in_junction = np.diff(graph.indptr) > 2
    inner = in_junction[first] & in_junction[second]
    junctions = _symmetric(first[inner], second[inner], lengths[inner], shape)
    tree = minimum_spanning_tree(junctions)
    return sparse.csr_array(graph - (junctions - (tree + tree.T)))


def _symmetric(first: np.ndarray, second: np.ndarray, values: np.ndarray, shape: tuple[int, int]) -> sparse.csr_array:
    rows, columns = np.concatenate([first, second]), np.concatenate([second, first])
    return sparse.coo_array((np.concatenate([values, values]), (rows, columns)), shape=shape).tocsr()
