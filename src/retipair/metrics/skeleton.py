"""Measure the branches of a skeleton, the paths between its end points and junctions.

Branches and their lengths are defined as in skan (Nunez-Iglesias et al. 2018, doi 10.7717/peerj.4312).
"""

from typing import NamedTuple

import numpy as np
from scipy import sparse
from scipy.sparse.csgraph import connected_components, minimum_spanning_tree
from scipy.spatial import cKDTree

_OFFSETS = {(0, 1): 1.0, (1, 0): 1.0, (1, 1): 2**0.5, (1, -1): 2**0.5}
"""Offset (down, right) to a neighbour -> its distance in px, for the four neighbours that follow in raster order."""

_SPUR_PX = 8.0
_MERGED_PX = 6.0


class _Steps(NamedTuple):
    """Steps from the pixels of a skeleton to their neighbours, as lists, which a loop reads faster than arrays.

    begins: the index of the first step from each pixel, and the number of steps at the end.
    to: the pixel to which each step leads.
    lengths: the length of each step, in px.
    """

    begins: list[int]
    to: list[int]
    lengths: list[float]

    def of(self, pixel: int) -> range:
        """Return the indices of the steps from a pixel."""
        return range(self.begins[pixel], self.begins[pixel + 1])


def branch_lengths(lines: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return the arc length and the chord length of each of the n branches of a skeleton, in px, (n,) each.

    A branch is a path of 8-connected pixels from one end point or junction to the next. The arc length is the length
    along the path, where a step to a diagonal neighbour is sqrt(2) px long. The chord length is the distance between
    the ends. Closed loops without a junction are left out.

    lines: the skeleton, (H, W) bool.
    """
    graph = _pixel_graph(lines)
    steps, degrees = _steps(graph), np.diff(graph.indptr)
    arcs, ends = [], []
    visited = set[tuple[int, int]]()
    for start in np.flatnonzero((degrees != 0) & (degrees != 2)).tolist():
        for step in steps.of(start):
            if (start, steps.to[step]) not in visited:
                before_end, end, arc = _follow(steps, start, step)
                visited.add((end, before_end))  # do not follow the same branch from its other end
                arcs.append(arc)
                ends.append((start, end))
    points = np.argwhere(lines)[np.array(ends, int).reshape(-1, 2)]  # (n branches, 2 ends, 2 coordinates)
    return np.array(arcs), np.linalg.norm(points[:, 1] - points[:, 0], axis=1)


def branch_points(lines: np.ndarray) -> np.ndarray:
    """Return the positions of the branchings and crossings of a skeleton, (N, 2) px: x and y.

    Side branches of up to 8 px are pruned first, because they are irregularities of the vessel edge. Branch points up
    to 6 px apart, such as the two at a crossing, are replaced by their mean.

    lines: the skeleton, (H, W) bool.
    """
    lines = _prune(lines)
    degrees = np.diff(_pixel_graph(lines).indptr)
    rows, columns = np.nonzero(lines)
    at = np.column_stack([columns, rows])[degrees > 2].astype(float)
    if not len(at):
        return np.empty((0, 2))
    near = cKDTree(at).sparse_distance_matrix(cKDTree(at), _MERGED_PX)
    count, cluster = connected_components(near, directed=False)
    return np.column_stack([np.bincount(cluster, weights) for weights in at.T]) / np.bincount(cluster)[:count, None]


def _prune(lines: np.ndarray) -> np.ndarray:
    """Remove the side branches of up to _SPUR_PX px that end freely."""
    graph = _pixel_graph(lines)
    steps, pixels = _steps(graph), np.argwhere(lines)
    pruned = lines.copy()
    for end in np.flatnonzero(np.diff(graph.indptr) == 1).tolist():
        if path := _path_to_junction(steps, end):
            pruned[tuple(pixels[path].T)] = False
    return pruned


def _path_to_junction(steps: _Steps, start: int) -> list[int]:
    """Return the pixels from an end point to the next junction, without the junction.

    The list is empty if the branch has no junction or is longer than _SPUR_PX px.
    """
    path, length, before = [start], 0.0, -1
    while length <= _SPUR_PX:
        further = [step for step in steps.of(path[-1]) if steps.to[step] != before]
        if len(further) != 1:
            return path[:-1] if len(further) > 1 else []
        before = path[-1]
        length += steps.lengths[further[0]]
        path.append(steps.to[further[0]])
    return []


def _follow(steps: _Steps, start: int, step: int) -> tuple[int, int, float]:
    """Follow a branch to its end, and return the second last pixel, the last pixel and the arc length.

    start, step: the first pixel of the branch, and the step to the second.
    """
    begins, to, lengths = steps
    previous, pixel, length = start, to[step], lengths[step]
    while begins[pixel + 1] - begins[pixel] == 2:
        step = begins[pixel]
        if to[step] == previous:
            step += 1
        previous, pixel = pixel, to[step]
        length += lengths[step]
    return previous, pixel, length


def _steps(graph: sparse.csr_array) -> _Steps:
    return _Steps(graph.indptr.tolist(), graph.indices.tolist(), graph.data.tolist())


def _pixel_graph(lines: np.ndarray) -> sparse.csr_array:
    """Return the graph of the n pixels of a skeleton: the distances between neighbouring pixels, (n, n).

    The pixels are in raster order. Adjacent pixels with three or more neighbours form one junction. Within a junction,
    only the connections of the minimum spanning tree are kept, so that it contains no loops.
    """
    rows, columns = np.nonzero(np.pad(lines, 1))
    # The index of each pixel of the skeleton; -1 elsewhere.
    number = np.full((lines.shape[0] + 2, lines.shape[1] + 2), -1)
    number[rows, columns] = np.arange(len(rows))
    edges = []
    for (down, right), length in _OFFSETS.items():
        other = number[rows + down, columns + right]
        pixels = np.flatnonzero(other >= 0)
        edges.append((pixels, other[pixels], np.full(len(pixels), length)))
    first, second, lengths = (np.concatenate(parts) for parts in zip(*edges, strict=True))
    shape = (len(rows),) * 2
    graph = _symmetric(first, second, lengths, shape)
    in_junction = np.diff(graph.indptr) > 2
    inner = in_junction[first] & in_junction[second]
    junctions = _symmetric(first[inner], second[inner], lengths[inner], shape)
    tree = minimum_spanning_tree(junctions)
    return sparse.csr_array(graph - (junctions - (tree + tree.T)))


def _symmetric(first: np.ndarray, second: np.ndarray, values: np.ndarray, shape: tuple[int, int]) -> sparse.csr_array:
    rows, columns = np.concatenate([first, second]), np.concatenate([second, first])
    return sparse.coo_array((np.concatenate([values, values]), (rows, columns)), shape=shape).tocsr()
