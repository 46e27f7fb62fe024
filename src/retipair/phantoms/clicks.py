"""Simulate landmarks that are placed by hand at vessel forks and crossings, with jitter and some gross errors."""

from dataclasses import dataclass

import numpy as np

from retipair.phantoms.anatomy import Eye
from retipair.phantoms.vessels import SEEN_BY_BOTH, Tree, chosen, crossings
from retipair.registration.landmarks import Landmarks
from retipair.registration.warp import transform_points
from retipair.vision.field_of_view import contains, erode

_RIM = 0.03  # fraction of the image side: minimum distance of landmarks from the edge of the field of view
_MIN_ERROR = 0.1  # fraction of the image side: minimum displacement of a wrong landmark


@dataclass(frozen=True)
class Clicks:
    """Parameters of the simulated landmarks of one pair.

    points: the number of landmarks.
    jitter: the standard deviation of the random errors of landmarks in x and in y, in each view, px in a view 512 px
    wide.
    wrong: the number of landmarks that are placed at a wrong location in the FA.
    """

    points: int
    jitter: float
    wrong: int


def place(
    rng: np.random.Generator,
    places: np.ndarray,
    fields: tuple[np.ndarray, np.ndarray],
    fa_to_cf: np.ndarray,
    clicks: Clicks,
) -> tuple[Landmarks, list[int]]:
    """Place landmarks at some of the given places. Return (landmarks, sorted indices of the wrong landmarks).

    If fewer than `clicks.points` places are visible in both views, all visible places get a landmark.

    places: the forks and crossings, (N, 2) CF px.
    fields: the fields of view of CF and FA, (S, S) bool each.
    fa_to_cf: the true transform (3, 3) from FA px to CF px.
    clicks: the number of landmarks and their errors.
    """
    size = len(fields[0])
    cf_inside, fa_inside = (erode(field, _RIM * size) for field in fields)
    on_fa = transform_points(np.linalg.inv(fa_to_cf), places)
    visible = contains(cf_inside, places) & contains(fa_inside, on_fa)
    selected = np.flatnonzero(visible)[_farthest_points(rng, places[visible], clicks.points)]
    jitter = clicks.jitter * size / 512
    cf, fa = (view[selected] + rng.normal(0, 1, (len(selected), 2)) * jitter for view in (places, on_fa))
    wrong = sorted(int(index) for index in rng.permutation(len(selected))[: clicks.wrong])
    for index in wrong:
        fa[index] = _distant_place(rng, fa_inside, fa[index])
    return Landmarks(cf.clip(0, size - 1), fa.clip(0, size - 1)), wrong


def forks_and_crossings(eye: Eye) -> np.ndarray:
    """Return where vessels fork, and where arteries and veins cross, (N, 2) mm.

    Only vessels that both views show are used, and only places outside the optic disc.
    """
    trees = [_seen_by_both(tree) for tree in (eye.arteries, eye.veins)]
    forks = [points[np.bincount(parents[parents >= 0], minlength=len(points)) > 1] for points, parents in trees]
    places = np.concatenate([*forks, _artery_vein_crossings(*trees)])
    return places[np.linalg.norm(places - eye.disc, axis=1) > eye.disc_radius]


def _seen_by_both(tree: Tree) -> tuple[np.ndarray, np.ndarray]:
    """Return (points, parents) of the vessels that both views show, without the finest vessels."""
    points, parents, _ = chosen(tree.points, tree.parents, tree.levels == SEEN_BY_BOTH)
    return points, parents


def _artery_vein_crossings(arteries: tuple[np.ndarray, np.ndarray], veins: tuple[np.ndarray, np.ndarray]) -> np.ndarray:
    """Return the positions (K, 2) at which arteries and veins cross. Both are given as (points, parents)."""
    points = np.concatenate([arteries[0], veins[0]])
    parents = np.concatenate([arteries[1], np.where(veins[1] >= 0, veins[1] + len(arteries[0]), -1)])
    a, b = crossings(points, parents).T
    along_a, along_b = points[a] - points[parents[a]], points[b] - points[parents[b]]
    between = points[parents[b]] - points[parents[a]]
    fraction = _cross(between, along_b) / _cross(along_a, along_b)
    return points[parents[a]] + fraction[:, None] * along_a


def _cross(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    return a[:, 0] * b[:, 1] - a[:, 1] * b[:, 0]


def _farthest_points(rng: np.random.Generator, places: np.ndarray, count: int) -> np.ndarray:
    """Return the indices of `count` places that lie far apart, by farthest-point sampling from a random start.

    places: (N, 2) px. If N is below `count`, all indices are returned.
    """
    if not len(places):
        return np.zeros(0, dtype=int)
    selected = [int(rng.integers(len(places)))]
    distance = np.linalg.norm(places - places[selected[0]], axis=1)
    while len(selected) < min(count, len(places)):
        selected.append(int(np.argmax(distance)))
        distance = np.minimum(distance, np.linalg.norm(places - places[selected[-1]], axis=1))
    return np.array(selected)


def _distant_place(rng: np.random.Generator, field: np.ndarray, place: np.ndarray) -> np.ndarray:
    """Sample a pixel (2,) in the field of view `field` (S, S) that is more than _MIN_ERROR * S px away from `place`."""
    places = np.argwhere(field)[:, ::-1]
    far = places[np.linalg.norm(places - place, axis=1) > _MIN_ERROR * len(field)]
    return np.asarray(far[rng.integers(len(far))], dtype=float)
