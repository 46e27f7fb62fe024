"""Key points as a person places them: where vessels fork or cross, in both views, a little off, some quite wrong."""

from dataclasses import dataclass

import numpy as np

from retipair.phantoms.anatomy import Eye
from retipair.phantoms.vessels import SEEN_BY_BOTH, Tree, chosen, crossings
from retipair.registration.landmarks import Landmarks
from retipair.registration.warp import transform_points
from retipair.vision.field_of_view import erode

_RIM = 0.03  # of the view's side: nobody clicks nearer to the field's edge
_NONSENSE = 0.1  # of the view's side: a wrong point lies at least this far from where it belongs


@dataclass(frozen=True)
class Clicks:
    """How many points, how far off in each view (sigma, px at 512), and how many of them wrong in the FA."""

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
    """Points at some of `places` (N, 2), CF px, and which of them, from 0, are wrong.

    fields: where CF and FA show the eye, (S, S) bool each. Fewer points where both show fewer places.
    """
    size = len(fields[0])
    cf_inside, fa_inside = (erode(field, _RIM * size) for field in fields)
    on_fa = transform_points(np.linalg.inv(fa_to_cf), places)
    seen = _within(cf_inside, places) & _within(fa_inside, on_fa)
    some = np.flatnonzero(seen)[_spread(rng, places[seen], clicks.points)]
    jitter = clicks.jitter * size / 512
    cf, fa = (view[some] + rng.normal(0, 1, (len(some), 2)) * jitter for view in (places, on_fa))
    wrong = sorted(int(one) for one in rng.permutation(len(some))[: clicks.wrong])
    for one in wrong:
        fa[one] = _elsewhere(rng, fa_inside, fa[one])
    return Landmarks(cf.clip(0, size - 1), fa.clip(0, size - 1)), wrong


def forks_and_crossings(eye: Eye) -> np.ndarray:
    """Where vessels that both views show fork or cross outside the disc, (N, 2) mm."""
    trees = [_coarse(tree) for tree in (eye.arteries, eye.veins)]
    forks = [points[np.bincount(parents[parents >= 0], minlength=len(points)) > 1] for points, parents in trees]
    found = np.concatenate([*forks, _meetings(*trees)])
    return found[np.linalg.norm(found - eye.disc, axis=1) > eye.disc_radius]


def _coarse(tree: Tree) -> tuple[np.ndarray, np.ndarray]:
    """Points and parents of what the CF shows."""
    points, parents, _ = chosen(tree.points, tree.parents, tree.levels == SEEN_BY_BOTH)
    return points, parents


def _meetings(arteries: tuple[np.ndarray, np.ndarray], veins: tuple[np.ndarray, np.ndarray]) -> np.ndarray:
    """Where an artery and a vein cross, (K, 2)."""
    points = np.concatenate([arteries[0], veins[0]])
    parents = np.concatenate([arteries[1], np.where(veins[1] >= 0, veins[1] + len(arteries[0]), -1)])
    a, b = crossings(points, parents).T
    along_a, along_b = points[a] - points[parents[a]], points[b] - points[parents[b]]
    between = points[parents[b]] - points[parents[a]]
    share = _cross(between, along_b) / _cross(along_a, along_b)
    return points[parents[a]] + share[:, None] * along_a


def _cross(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    return a[:, 0] * b[:, 1] - a[:, 1] * b[:, 0]


def _within(field: np.ndarray, places: np.ndarray) -> np.ndarray:
    """(N,) bool: which places (N, 2) px lie in the field (S, S) bool."""
    columns, rows = np.rint(places).astype(int).T
    inside = (columns >= 0) & (rows >= 0) & (columns < field.shape[1]) & (rows < field.shape[0])
    inside[inside] = field[rows[inside], columns[inside]]
    return inside


def _spread(rng: np.random.Generator, places: np.ndarray, count: int) -> np.ndarray:
    """Numbers of `count` places (N, 2) far from one another: a random one, then always the farthest from those."""
    if not len(places):
        return np.zeros(0, dtype=int)
    some = [int(rng.integers(len(places)))]
    distance = np.linalg.norm(places - places[some[0]], axis=1)
    while len(some) < min(count, len(places)):
        some.append(int(np.argmax(distance)))
        distance = np.minimum(distance, np.linalg.norm(places - places[some[-1]], axis=1))
    return np.array(some)


def _elsewhere(rng: np.random.Generator, field: np.ndarray, place: np.ndarray) -> np.ndarray:
    """A place in the field (S, S) far from this one, (2,) px."""
    places = np.argwhere(field)[:, ::-1]
    far = places[np.linalg.norm(places - place, axis=1) > _NONSENSE * len(field)]
    return np.asarray(far[rng.integers(len(far))], dtype=float)
