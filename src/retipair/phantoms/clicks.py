"""Simulate key points placed by hand: at vessel forks and crossings, with jitter and some gross errors."""

from dataclasses import dataclass

import numpy as np

from retipair.phantoms.anatomy import Eye
from retipair.phantoms.vessels import SEEN_BY_BOTH, Tree, chosen, crossings
from retipair.registration.landmarks import Landmarks
from retipair.registration.warp import transform_points
from retipair.vision.field_of_view import erode

_RIM = 0.03  # of the view's side: minimum distance of points from the field's edge
_MIN_ERROR = 0.1  # of the view's side: minimum displacement of a wrong point


@dataclass(frozen=True)
class Clicks:
    """Number of points, their jitter in each view (sigma, px at 512), and how many are wrong in the FA."""

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
    """Place points at some of `places` (N, 2), CF px; return them and the indices of the wrong ones.

    fields: fields of view of CF and FA, (S, S) bool each. Returns fewer points if fewer places lie in both fields.
    """
    size = len(fields[0])
    cf_inside, fa_inside = (erode(field, _RIM * size) for field in fields)
    on_fa = transform_points(np.linalg.inv(fa_to_cf), places)
    visible = _within(cf_inside, places) & _within(fa_inside, on_fa)
    selected = np.flatnonzero(visible)[_farthest_points(rng, places[visible], clicks.points)]
    jitter = clicks.jitter * size / 512
    cf, fa = (view[selected] + rng.normal(0, 1, (len(selected), 2)) * jitter for view in (places, on_fa))
    wrong = sorted(int(index) for index in rng.permutation(len(selected))[: clicks.wrong])
    for index in wrong:
        fa[index] = _distant_place(rng, fa_inside, fa[index])
    return Landmarks(cf.clip(0, size - 1), fa.clip(0, size - 1)), wrong


def forks_and_crossings(eye: Eye) -> np.ndarray:
    """Return the forks and crossings, outside the disc, of vessels that both views show, (N, 2) mm."""
    trees = [_coarse(tree) for tree in (eye.arteries, eye.veins)]
    forks = [points[np.bincount(parents[parents >= 0], minlength=len(points)) > 1] for points, parents in trees]
    places = np.concatenate([*forks, _artery_vein_crossings(*trees)])
    return places[np.linalg.norm(places - eye.disc, axis=1) > eye.disc_radius]


def _coarse(tree: Tree) -> tuple[np.ndarray, np.ndarray]:
    """Return points and parents of the vessels that the CF shows."""
    points, parents, _ = chosen(tree.points, tree.parents, tree.levels == SEEN_BY_BOTH)
    return points, parents


def _artery_vein_crossings(arteries: tuple[np.ndarray, np.ndarray], veins: tuple[np.ndarray, np.ndarray]) -> np.ndarray:
    """Return the crossings of arteries and veins, (K, 2)."""
    points = np.concatenate([arteries[0], veins[0]])
    parents = np.concatenate([arteries[1], np.where(veins[1] >= 0, veins[1] + len(arteries[0]), -1)])
    a, b = crossings(points, parents).T
    along_a, along_b = points[a] - points[parents[a]], points[b] - points[parents[b]]
    between = points[parents[b]] - points[parents[a]]
    fraction = _cross(between, along_b) / _cross(along_a, along_b)
    return points[parents[a]] + fraction[:, None] * along_a


def _cross(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    return a[:, 0] * b[:, 1] - a[:, 1] * b[:, 0]


def _within(field: np.ndarray, places: np.ndarray) -> np.ndarray:
    """Return (N,) bool: which places (N, 2) px lie in the field (S, S) bool."""
    columns, rows = np.rint(places).astype(int).T
    inside = (columns >= 0) & (rows >= 0) & (columns < field.shape[1]) & (rows < field.shape[0])
    inside[inside] = field[rows[inside], columns[inside]]
    return inside


def _farthest_points(rng: np.random.Generator, places: np.ndarray, count: int) -> np.ndarray:
    """Return the indices of `count` places (N, 2) by farthest-point sampling from a random start."""
    if not len(places):
        return np.zeros(0, dtype=int)
    selected = [int(rng.integers(len(places)))]
    distance = np.linalg.norm(places - places[selected[0]], axis=1)
    while len(selected) < min(count, len(places)):
        selected.append(int(np.argmax(distance)))
        distance = np.minimum(distance, np.linalg.norm(places - places[selected[-1]], axis=1))
    return np.array(selected)


def _distant_place(rng: np.random.Generator, field: np.ndarray, place: np.ndarray) -> np.ndarray:
    """Sample a place in the field (S, S) at least _MIN_ERROR away from this one, (2,) px."""
    places = np.argwhere(field)[:, ::-1]
    far = places[np.linalg.norm(places - place, axis=1) > _MIN_ERROR * len(field)]
    return np.asarray(far[rng.integers(len(far))], dtype=float)
