"""Sample the anatomy of one eye: optic disc, fovea, arteries, veins and lesions. This takes a fraction of a second.

Coordinates are mm on the retina. In the camera's view, x points to the right and y down; the fovea lies at (0, 0).
Constants with two values are (mean, standard deviation) in healthy adults, unless stated otherwise. The source is given
if there is one.
"""

from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
from scipy.spatial import cKDTree

from retipair.phantoms import vessels
from retipair.phantoms.lesions import Disease, Lesion, draw_lesions
from retipair.phantoms.vessels import FA_ONLY, SEEN_BY_BOTH, Growth, Tree

DISC_FOVEA = (4.76, 0.34)
"""Distance between the centres of disc and fovea, mm (Beijing Eye Study: Jonas et al. 2015, PMC4577126)."""
FOVEA_BELOW = (5.6, 3.3)
"""Angle of the fovea below the horizontal line through the disc, degrees (same source as DISC_FOVEA)."""
DISC_DIAMETER = (1.8, 0.12)
"""Diameter of the optic disc, mm."""
CUP_DIAMETER = (0.7, 1.2)
"""Minimum and maximum of the diameter of the optic cup, mm."""
AVASCULAR_AREA = (0.27, 0.10)
"""Area of the foveal avascular zone, mm2."""
MACULA_RADIUS = 1.25
"""Scale of the map "macula" (see `maps.CHANNELS`), mm. At this distance from the fovea, the map has the value 1 / e."""
ARTERY_DIAMETER = (0.135, 0.015)
"""Diameter of the main arteries at the disc, mm (Brown et al. 2024, Nature Communications 15:6859)."""
VEIN_DIAMETER = (0.151, 0.015)
"""Diameter of the main veins at the disc, mm (same source as ARTERY_DIAMETER)."""
ARTERY_TO_VEIN = (0.65, 0.84)
"""Minimum and maximum of the ratio of the artery diameter to the vein diameter."""
ARTERY_EXPONENT = 2.59
"""Exponent x of arteries in r0^x = r1^x + r2^x, for a vessel of radius r0 and its two branches (Luo et al. 2017,
PMC6024667)."""
VEIN_EXPONENT = 1.95
"""Exponent x of veins (same source as ARTERY_EXPONENT)."""

REACH = 7.6
"""Vessels grow within this distance from the centre of the field of view, mm.

A 45-degree field, 6.4 mm in radius, is covered even if it is shifted.
"""
_STEP = 0.11  # mm: distance between the nodes of larger vessels
# Rounds of growth, from large branches to small branches: (distance between tissue points in mm, growth parameters).
_BRANCHES = (
    (2.6, Growth(step=_STEP, reach=4.5, supply_distance=0.9)),
    (1.5, Growth(step=_STEP, reach=2.6, supply_distance=0.5)),
    (0.8, Growth(step=_STEP, reach=1.2, supply_distance=0.25)),
)
_FINEST = (0.40, Growth(step=0.09, reach=0.7, supply_distance=0.14))
_FINE_RADIUS = (0.007, 0.012)  # mm: minimum and maximum of the radius of the finest vessels


@dataclass(frozen=True)
class Eye:
    """The anatomy of one retina.

    side: "right" or "left". In a right eye, the optic disc lies to the right of the fovea.
    disc: the centre of the optic disc, (2,) mm.
    disc_radius, cup_radius: the radii of the optic disc and of the optic cup, mm.
    avascular_radius: the radius of the foveal avascular zone, mm.
    centre: the centre of the field of view, (2,) mm.
    """

    side: Literal["left", "right"]
    disease: Disease
    disc: np.ndarray
    disc_radius: float
    cup_radius: float
    avascular_radius: float
    centre: np.ndarray
    arteries: Tree
    veins: Tree
    lesions: tuple[Lesion, ...]


def draw_eye(rng: np.random.Generator, disease: Disease) -> Eye:
    """Sample a random eye with this disease."""
    distance = _normal(rng, *DISC_FOVEA)
    angle = np.deg2rad(_normal(rng, *FOVEA_BELOW))
    disc = distance * np.array([np.cos(angle), -np.sin(angle)])
    avascular = float(np.sqrt(_normal(rng, *AVASCULAR_AREA) / np.pi))
    centre = np.array([rng.uniform(0.0, 0.45) * disc[0], rng.uniform(-0.5, 0.5)])
    vein = _normal(rng, *VEIN_DIAMETER)
    narrowest, widest = (ratio * vein for ratio in ARTERY_TO_VEIN)
    artery = min(max(_normal(rng, *ARTERY_DIAMETER), narrowest), widest)
    arteries = _draw_tree(rng, disc, centre, avascular, artery / 2, ARTERY_EXPONENT, avoid=None)
    veins = _draw_tree(rng, disc, centre, avascular, vein / 2, VEIN_EXPONENT, avoid=arteries)
    eye = Eye(
        side="right",
        disease=disease,
        disc=disc,
        disc_radius=_normal(rng, *DISC_DIAMETER) / 2,
        cup_radius=rng.uniform(*CUP_DIAMETER) / 2,
        avascular_radius=avascular,
        centre=centre,
        arteries=arteries,
        veins=veins,
        lesions=draw_lesions(rng, disease, disc, arteries, veins),
    )
    return eye if rng.random() < 0.5 else _mirrored(eye)


def _normal(rng: np.random.Generator, mean: float, deviation: float) -> float:
    """Sample a number from a normal distribution. It is clipped at two standard deviations from the mean."""
    return float(mean + deviation * np.clip(rng.normal(), -2, 2))


# --- Trees


def _draw_tree(
    rng: np.random.Generator,
    disc: np.ndarray,
    centre: np.ndarray,
    avascular: float,
    radius: float,
    exponent: float,
    avoid: Tree | None,
) -> Tree:
    """Grow the arteries or the veins: first the trunks, then branches to the tissue, then the finest vessels.

    disc, centre: the centres of the optic disc and of the field of view, (2,) mm.
    avascular: the radius of the foveal avascular zone, mm.
    radius: the radius of the widest trunk near the disc, mm.
    exponent: the exponent x of the law r0^x = r1^x + r2^x at branchings.
    avoid: the arteries if the veins are grown, or None if the arteries are grown. Branches do not grow towards tissue
    near the vessels of `avoid`.
    """

    def allowed(points: np.ndarray) -> np.ndarray:
        inside = np.linalg.norm(points - centre, axis=1) < REACH
        return inside & (np.linalg.norm(points, axis=1) > 1.15 * avascular)

    points, parents = _trunks(rng, disc, centre)
    trunk_nodes = len(points)
    for spacing, growth in _BRANCHES:
        tissue = _tissue(rng, centre, spacing, empty=0.55)
        if avoid is not None:  # veins grow to the tissue that is not near an artery
            tissue = tissue[cKDTree(avoid.points[avoid.levels == SEEN_BY_BOTH]).query(tissue)[0] > 0.25]
        points, parents = vessels.grow(points, parents, tissue, growth, allowed, rng)
    points = _warp(rng, vessels.smooth(points, parents, fixed=1))
    points, parents, old = vessels.chosen(points, parents, _valid_nodes(points, parents, avascular))
    trunk = np.flatnonzero((old < trunk_nodes) & (np.linalg.norm(points - disc, axis=1) > 0.9))
    radii = vessels.branching_radii(parents, trunk, radius, exponent)
    coarse = len(points)

    spacing, growth = _FINEST
    tissue = _tissue(rng, centre, spacing, empty=1.2 * avascular)
    points, parents = vessels.grow(points, parents, tissue, growth, allowed, rng)
    points, parents, old = vessels.chosen(points, parents, _valid_nodes(points, parents, avascular))
    fine = rng.uniform(*_FINE_RADIUS, len(points))
    levels = np.where(old < coarse, SEEN_BY_BOTH, FA_ONLY)
    radii = np.where(old < coarse, radii[np.minimum(old, coarse - 1)], fine)
    return Tree(points, parents, radii, levels)


def _valid_nodes(points: np.ndarray, parents: np.ndarray, avascular: float) -> np.ndarray:
    """Return (N,) bool: the nodes to keep, so that no vessel enters the avascular zone or crosses a vessel of its tree.

    points, parents: the nodes of the tree (see `Tree`).
    avascular: the radius of the foveal avascular zone, mm.
    """
    kept = vessels.keep_branches(parents, np.linalg.norm(points, axis=1) < avascular)
    kept_points, kept_parents, old = vessels.chosen(points, parents, kept)
    kept[old] = vessels.without_crossings(kept_points, kept_parents)
    return kept


def _trunks(rng: np.random.Generator, disc: np.ndarray, centre: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return (points, parents) of four trunks from the disc: two temporal arcades (parabolas) and two nasal trunks."""
    root = disc + rng.normal(0, 0.06, 2) + [0.12, 0]  # vessels enter near the nasal edge of the cup
    points, parents = [root], [-1]
    for up in (-1, 1):
        for line in (_arcade(rng, root, up), _nasal(rng, root, up)):
            inside = np.linalg.norm(line - centre, axis=1) < REACH
            last = 0
            for point in line[: len(line) if inside.all() else int(np.argmin(inside))]:
                points.append(point)
                parents.append(last)
                last = len(points) - 1
    return np.array(points), np.array(parents)


def _arcade(rng: np.random.Generator, root: np.ndarray, up: int) -> np.ndarray:
    """Return the points (N, 2) of a temporal arcade: the parabola y^2 = c (x_root - x), flattened on the temporal side.

    root: the start of the arcade in the disc, (2,) mm.
    up: -1 for the upper arcade, 1 for the lower arcade.
    """
    height, flattening = rng.uniform(1.9, 3.3), rng.uniform(0.2, 1.0)
    temporal = np.linspace(0, 1, 400)[1:] ** 2 * (root[0] + REACH + 1)
    opening = np.sqrt(temporal / root[0])
    rise = (1 - flattening) * opening + flattening * np.tanh(1.5 * opening) / np.tanh(1.5)
    line = np.column_stack([root[0] - temporal, up * height * rise])
    line[:, 1] += root[1] * np.clip(1 - temporal / root[0], 0, 1)
    return _resample(line)


def _nasal(rng: np.random.Generator, root: np.ndarray, up: int) -> np.ndarray:
    """Return the points (N, 2) of a nasal trunk: a slightly curved line from `root` away from the macula."""
    angle, bend = np.deg2rad(rng.uniform(30, 75)), rng.normal(0, 0.10)
    along = np.linspace(0, 8, 200)[1:, None]
    direction = np.array([np.cos(angle), up * np.sin(angle)])
    across = np.array([-direction[1], direction[0]])
    return _resample(root + along * direction + bend * along**2 / 2 * across)


def _resample(line: np.ndarray) -> np.ndarray:
    """Resample a line (M, 2) to points (N, 2) that are _STEP mm apart along it."""
    length = np.concatenate([[0], np.cumsum(np.linalg.norm(np.diff(line, axis=0), axis=1))])
    positions = np.arange(_STEP, length[-1], _STEP)
    return np.column_stack([np.interp(positions, length, line[:, axis]) for axis in (0, 1)])


def _tissue(rng: np.random.Generator, centre: np.ndarray, spacing: float, empty: float) -> np.ndarray:
    """Sample points (N, 2), in mm, of the tissue that the vessels must supply with blood.

    centre: the centre of the sampled disk of radius REACH, (2,) mm.
    spacing: the approximate distance of neighbouring points, mm.
    empty: the radius around the fovea in which there are no points, mm.
    """
    ticks = np.arange(-REACH, REACH, spacing)
    grid = np.stack(np.meshgrid(ticks, ticks), axis=-1).reshape(-1, 2)
    points = centre + grid + rng.uniform(-0.5, 0.5, grid.shape) * spacing
    near = np.linalg.norm(points - centre, axis=1) < REACH
    return points[near & (np.linalg.norm(points, axis=1) > empty)]


def _warp(rng: np.random.Generator, points: np.ndarray, amount: float = 1.0) -> np.ndarray:
    """Displace points by a sum of long waves, so that vessels become tortuous without new crossings.

    The displacement decreases to 0 at the fovea. `amount` scales it.
    """
    moved = points.copy()
    amplitude = 1 - np.exp(-(np.linalg.norm(points, axis=1, keepdims=True) ** 2))
    for _ in range(10):
        length, angle = rng.uniform(1.2, 4), rng.uniform(0, 2 * np.pi)
        wave = 2 * np.pi / length * np.array([np.cos(angle), np.sin(angle)])
        shift = rng.normal(0, 0.016 * length, 2)
        moved += amount * amplitude * np.sin(points @ wave + rng.uniform(0, 2 * np.pi))[:, None] * shift
    return moved


def _mirrored(eye: Eye) -> Eye:
    """Return the left eye that is the mirror image of a right eye."""
    flip = np.array([-1.0, 1.0])
    return replace(
        eye,
        side="left",
        disc=eye.disc * flip,
        centre=eye.centre * flip,
        arteries=replace(eye.arteries, points=eye.arteries.points * flip),
        veins=replace(eye.veins, points=eye.veins.points * flip),
        lesions=tuple(lesion.mirrored() for lesion in eye.lesions),
    )
