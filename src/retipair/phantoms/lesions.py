"""Sample the lesions of diabetic retinopathy and of vein occlusion. CF and FA are rendered from the same lesions."""

from dataclasses import dataclass, replace
from typing import Literal

import numpy as np

from retipair.phantoms.vessels import SEEN_BY_BOTH, Tree

Disease = Literal["healthy", "diabetic", "vein_occlusion"]
DISEASES: tuple[Disease, ...] = ("healthy", "diabetic", "vein_occlusion")

LesionKind = Literal["microaneurysm", "haemorrhage", "exudate", "nonperfusion", "leakage"]
LESION_KINDS: tuple[LesionKind, ...] = ("microaneurysm", "haemorrhage", "exudate", "nonperfusion", "leakage")

_FIELD = 6.0  # mm: lesions are sampled within this distance from the fovea; random offsets may move some further away


@dataclass(frozen=True)
class Lesion:
    """A lesion, shaped like an ellipse with an irregular outline.

    x, y: the centre, mm.
    radius: the geometric mean of the half axes of the ellipse, mm.
    aspect: the ratio of length to width.
    angle: the direction of the length, rad.
    outline: the irregularity of the outline: its second, third and fifth Fourier amplitudes, relative to the radius.
    """

    kind: LesionKind
    x: float
    y: float
    radius: float
    aspect: float = 1.0
    angle: float = 0.0
    outline: tuple[float, float, float] = (0.0, 0.0, 0.0)

    def mirrored(self) -> "Lesion":
        """Return the lesion with its position and direction mirrored left to right. `outline` does not change."""
        return replace(self, x=-self.x, angle=np.pi - self.angle)


def draw_lesions(
    rng: np.random.Generator, disease: Disease, disc: np.ndarray, arteries: Tree, veins: Tree
) -> tuple[Lesion, ...]:
    """Sample the lesions of an eye. A healthy eye has none.

    disc: the centre of the optic disc, (2,) mm; no lesion has its centre within 1.1 mm of it.
    """
    if disease == "healthy":
        return ()
    lesions = _diabetic(rng, arteries, veins) if disease == "diabetic" else _occluded(rng, disc, veins)
    off_disc = [lesion for lesion in lesions if np.hypot(lesion.x - disc[0], lesion.y - disc[1]) > 1.1]
    return tuple(off_disc)


def _diabetic(rng: np.random.Generator, arteries: Tree, veins: Tree) -> list[Lesion]:
    """Sample microaneurysms (40 to 100 um wide), haemorrhages, rings of exudate, leakage and nonperfusion."""
    severity = rng.uniform(0.15, 1.0)
    fine = np.concatenate([tree.points[tree.levels != SEEN_BY_BOTH] for tree in (arteries, veins)])
    fine = fine[np.linalg.norm(fine, axis=1) < _FIELD]
    lesions = []
    for x, y in rng.permutation(fine)[: rng.poisson(45 * severity)]:
        lesions.append(Lesion("microaneurysm", x, y, rng.uniform(0.02, 0.05)))
        if rng.random() < 0.25:
            lesions.append(Lesion("leakage", x, y, rng.uniform(0.15, 0.45)))
    for x, y in rng.permutation(fine)[: rng.poisson(12 * severity)]:
        lesions.append(_blob(rng, "haemorrhage", x, y, rng.uniform(0.06, 0.28)))
    for _ in range(rng.poisson(1.2 * severity)):
        lesions += _exudates(rng, _place(rng, 1.8), rng.uniform(0.25, 0.7), int(rng.integers(6, 30)))
    for _ in range(rng.poisson(1.5 * severity)):
        x, y = _place(rng, _FIELD, min_distance=2.0)
        lesions.append(_blob(rng, "nonperfusion", x, y, rng.uniform(0.4, 1.0)))
    return lesions


def _occluded(rng: np.random.Generator, disc: np.ndarray, veins: Tree) -> list[Lesion]:
    """Sample flame haemorrhages along the nerve fibres, leakage and nonperfusion, all near veins of one quadrant."""
    thick = veins.radii > np.quantile(veins.radii[veins.levels == SEEN_BY_BOTH], 0.6)
    upper = rng.random() < 0.5
    temporal = (veins.points[:, 0] < disc[0] - 1) & ((veins.points[:, 1] < 0) == upper)
    along = veins.points[thick & temporal & (np.linalg.norm(veins.points, axis=1) < _FIELD)]
    if not len(along):
        return []
    lesions = []
    for x, y in along[rng.integers(len(along), size=rng.poisson(45))] + rng.normal(0, 0.35, 2):
        place = np.array([x, y]) + rng.normal(0, 0.5, 2)
        angle = np.arctan2(*(place - disc)[::-1])
        flame = _blob(rng, "haemorrhage", place[0], place[1], rng.uniform(0.06, 0.25))
        lesions.append(replace(flame, aspect=rng.uniform(1.5, 4), angle=angle + rng.normal(0, 0.2)))
    for x, y in along[rng.integers(len(along), size=rng.poisson(5))]:
        lesions.append(Lesion("leakage", x, y, rng.uniform(0.4, 0.9)))
    for x, y in along[rng.integers(len(along), size=rng.poisson(2.5))] + rng.normal(0, 0.6, 2):
        lesions.append(_blob(rng, "nonperfusion", x, y, rng.uniform(0.5, 1.1)))
    return lesions


def _blob(rng: np.random.Generator, kind: LesionKind, x: float, y: float, radius: float) -> Lesion:
    a, b, c = rng.normal(0, (0.14, 0.08, 0.04))
    return Lesion(kind, x, y, radius, rng.uniform(1, 1.5), rng.uniform(0, np.pi), (a, b, c))


def _exudates(rng: np.random.Generator, centre: np.ndarray, ring: float, count: int) -> list[Lesion]:
    """Sample hard exudates (lipid deposits), 30 to 120 um wide, on part of a ring.

    centre: the centre of the ring, (2,) mm.
    ring: the radius of the ring, mm.
    count: the number of exudates; those near the fovea are left out.
    """
    start, reach = rng.uniform(0, 2 * np.pi), rng.uniform(1.5, 2 * np.pi)
    angles = start + reach * rng.random(count)
    radii = ring * (1 + rng.normal(0, 0.15, count))
    places = centre + radii[:, None] * np.column_stack([np.cos(angles), np.sin(angles)])
    return [_blob(rng, "exudate", x, y, rng.uniform(0.015, 0.06)) for x, y in places if np.hypot(x, y) > 0.35]


def _place(rng: np.random.Generator, max_distance: float, min_distance: float = 0.4) -> np.ndarray:
    radius, angle = np.sqrt(rng.uniform(min_distance**2, max_distance**2)), rng.uniform(0, 2 * np.pi)
    return radius * np.array([np.cos(angle), np.sin(angle)])
