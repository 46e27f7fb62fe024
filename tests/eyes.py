"""Synthetic eyes for tests: two views that share only their vessels, and raw folders made of them."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw
from scipy import ndimage
from skimage.transform import ProjectiveTransform, warp

_SUPERSAMPLE = 2

Displacement = Callable[[np.ndarray], np.ndarray]
"""Of points (N, 2) px, (N, 2) px."""


@dataclass(frozen=True)
class RawEye:
    """A CF (H, W, 3), an FA (H, W) seen otherwise, matching points (N, 2) x, y, the true warp (3, 3).

    What the FA shows at x lies in the CF at y + bend(y), where y is x moved by the warp.
    """

    cf: np.ndarray
    fa: np.ndarray
    cf_points: np.ndarray
    fa_points: np.ndarray
    fa_to_cf: np.ndarray
    bend: Displacement

    def on_cf(self, fa_points: np.ndarray) -> np.ndarray:
        """Where points of the FA lie in the CF, (N, 2) -> (N, 2) px."""
        moved = apply(self.fa_to_cf, fa_points)
        return moved + self.bend(moved)


def draw_pair(seed: int = 0, size: int = 512) -> tuple[np.ndarray, np.ndarray]:
    """Two aligned views of one eye: CF (size, size, 3), FA (size, size), uint8, black outside a clipped circle."""
    rng = np.random.default_rng(seed)
    vessels, fine = _tree(rng, size)
    aperture = _aperture(size)
    background = _clouds(rng, size, size / 8)
    cf = np.array([190.0, 100.0, 50.0]) * (1 + 0.12 * background[..., None])
    cf *= 1 - np.array([0.35, 0.5, 0.4]) * vessels[..., None]
    fa = 70 * (1 + 0.25 * _clouds(rng, size, size / 12)) + 130 * np.maximum(vessels, 0.7 * fine)
    fa *= 1 - 0.7 * _spot(rng, size)
    return tuple(_expose(view, aperture, rng) for view in (cf, fa))


def draw_raw(
    seed: int = 0, size: int = 512, points: int = 20, jitter: float = 0.0, wrong: int = 0, bend: float = 0.0
) -> RawEye:
    """One eye photographed twice, points off by `jitter` px (sigma) a view, `wrong` of them nonsense.

    `bend` px at 512: how far a homography must leave some places, as the eye's curvature does.
    """
    rng = np.random.default_rng([seed, 1])
    cf, fa_aligned = draw_pair(seed, size)
    fa_to_cf = _warp(rng, size)
    displacement = _smooth(np.random.default_rng([seed, 2]), size, bend)
    eye = RawEye(cf, fa_aligned, np.empty((0, 2)), np.empty((0, 2)), fa_to_cf, displacement)
    where = eye.on_cf if bend else ProjectiveTransform(fa_to_cf)
    fa = warp(fa_aligned, where, order=3, preserve_range=True).round().astype(np.uint8)
    on_cf = _spread(rng, size, points)
    on_fa = apply(np.linalg.inv(fa_to_cf), _before(on_cf, displacement))
    on_cf, on_fa = (p + rng.normal(0, jitter, p.shape) if jitter else p for p in (on_cf, on_fa))
    on_fa[:wrong] = rng.uniform(0.2, 0.8, (wrong, 2)) * size
    return replace(eye, fa=fa, cf_points=on_cf, fa_points=on_fa)


def write_raw(folder: Path, n: int = 3, size: int = 256, **how: float) -> list[str]:
    """Write `n` eyes in the original layout, ID/ID_01.png and so on; return the ids. `how` is draw_raw's."""
    ids = [f"{number:03d}" for number in range(1, n + 1)]
    for number, name in enumerate(ids):
        write_eye(folder / name, name, draw_raw(seed=number, size=size, **how))  # type: ignore[arg-type]
    return ids


def write_eye(folder: Path, name: str, eye: RawEye) -> None:
    """One eye as NAME_01.png (CF), NAME_02.png (FA) and their points as NAME_01.txt, NAME_02.txt."""
    folder.mkdir(parents=True, exist_ok=True)
    views = ((eye.cf, eye.cf_points), (eye.fa, eye.fa_points))
    for number, (image, points) in enumerate(views, start=1):
        Image.fromarray(image).save(folder / f"{name}_{number:02d}.png")
        np.savetxt(folder / f"{name}_{number:02d}.txt", points, fmt="%.3f")


def apply(homography: np.ndarray, points: np.ndarray) -> np.ndarray:
    """Move points (N, 2) by a homography (3, 3)."""
    moved = np.column_stack([points, np.ones(len(points))]) @ homography.T
    return moved[:, :2] / moved[:, 2:]


def _tree(rng: np.random.Generator, size: int) -> tuple[np.ndarray, np.ndarray]:
    """Vessels, and the finest ones that only the FA shows; both (size, size) in [0, 1]."""
    layers = [Image.new("L", (size * _SUPERSAMPLE,) * 2) for _ in range(2)]
    pens = [ImageDraw.Draw(layer) for layer in layers]
    unit = size * _SUPERSAMPLE / 512
    disc = np.array([0.78 if rng.random() < 0.5 else 0.22, rng.uniform(0.42, 0.58)])
    for angle in rng.uniform(0, 2 * np.pi / 9) + 2 * np.pi * np.arange(9) / 9:
        for line, width in _branches(rng, disc * 512, angle, rng.uniform(5, 8)):
            pens[width < 2].line([tuple(point * unit) for point in line], fill=255, width=max(1, round(width * unit)))
    drawn = [np.asarray(layer.resize((size, size), Image.Resampling.BOX)) / 255 for layer in layers]
    coarse, fine = (ndimage.gaussian_filter(layer, 0.6) for layer in drawn)
    return coarse, fine


def _branches(
    rng: np.random.Generator, start: np.ndarray, angle: float, width: float
) -> Iterator[tuple[list[np.ndarray], float]]:
    """One vessel that wanders and forks, as (points, width), at 512 px."""
    if width < 1.2:
        return
    line, bend = [start], rng.normal(0, 0.02)
    for _ in range(int(rng.integers(12, 20))):
        angle += bend + rng.normal(0, 0.06)
        line.append(line[-1] + 6 * np.array([np.cos(angle), np.sin(angle)]))
    yield line, width
    for side, share in ((1, rng.uniform(0.75, 0.9)), (-1, rng.uniform(0.45, 0.75))):
        yield from _branches(rng, line[-1], angle + side * rng.uniform(0.2, 0.6), width * share)


def _aperture(size: int) -> np.ndarray:
    rows, columns = np.mgrid[:size, :size] - (size - 1) / 2
    return (np.hypot(rows, columns) < 0.485 * size) & (abs(rows) < 0.44 * size)


def _clouds(rng: np.random.Generator, size: int, sigma: float) -> np.ndarray:
    """Smooth noise (size, size) of mean 0 and deviation 1."""
    clouds = ndimage.gaussian_filter(rng.normal(size=(size, size)), sigma, mode="wrap")
    return (clouds - clouds.mean()) / clouds.std()


def _spot(rng: np.random.Generator, size: int) -> np.ndarray:
    """A dark fovea in [0, 1]."""
    rows, columns = np.mgrid[:size, :size] / size - rng.uniform(0.45, 0.55, (2, 1, 1))
    return np.exp(-(rows**2 + columns**2) / (2 * 0.05**2))


def _expose(view: np.ndarray, aperture: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    noisy = np.clip(view + rng.normal(0, 2.5, view.shape), 16, 255)
    return np.where(aperture.reshape(aperture.shape + (1,) * (view.ndim - 2)), noisy, 0).astype(np.uint8)


def _warp(rng: np.random.Generator, size: int) -> np.ndarray:
    """A camera that moved, turned and tilted a little, (3, 3) px."""
    angle, scale = rng.uniform(-0.1, 0.1), rng.uniform(0.93, 1.07)
    turn = scale * np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
    centre = np.full(2, (size - 1) / 2)
    matrix = np.eye(3)
    matrix[:2, :2] = turn
    matrix[:2, 2] = centre - turn @ centre + rng.uniform(-0.05, 0.05, 2) * size
    tilt = np.eye(3)
    tilt[2, :2] = rng.uniform(-0.03, 0.03, 2) / size
    return matrix @ tilt


def _smooth(rng: np.random.Generator, size: int, most: float) -> Displacement:
    """A random cubic displacement of at most `most` px at 512 within the field, of which homographies fit nothing."""
    centre = (size - 1) / 2
    field = np.argwhere(_aperture(size)[::8, ::8])[:, ::-1] * 8 / centre - 1
    homographies = _small_homographies(field)
    weights = rng.normal(size=(10, 2))
    inside = (_cubic(field) @ weights).ravel()
    fitted = np.linalg.lstsq(homographies, inside, rcond=None)[0]
    left = (inside - homographies @ fitted).reshape(-1, 2)
    scale = most * size / 512 / np.linalg.norm(left, axis=1).max()

    def displace(points: np.ndarray) -> np.ndarray:
        places = points / centre - 1
        return scale * (_cubic(places) @ weights - (_small_homographies(places) @ fitted).reshape(-1, 2))

    return displace


def _cubic(places: np.ndarray) -> np.ndarray:
    """All products of x and y up to the third degree, (N, 2) -> (N, 10)."""
    x, y = places.T
    return np.column_stack([x**i * y**j for i in range(4) for j in range(4 - i)])


def _small_homographies(places: np.ndarray) -> np.ndarray:
    """What each of a homography's eight parameters adds to x and y, (N, 2) -> (2 N, 8)."""
    x, y = places.T
    one, no = np.ones_like(x), np.zeros_like(x)
    on_x = np.column_stack([one, x, y, no, no, no, x * x, x * y])
    on_y = np.column_stack([no, no, no, one, x, y, x * y, y * y])
    return np.stack([on_x, on_y], axis=1).reshape(-1, 8)


def _before(places: np.ndarray, displacement: Displacement) -> np.ndarray:
    """What is displaced to these places, (N, 2) px -> (N, 2) px."""
    before = places
    for _ in range(20):
        before = places - displacement(before)
    return before


def _spread(rng: np.random.Generator, size: int, count: int) -> np.ndarray:
    """Points (count, 2) all over the middle of the field."""
    radius = 0.36 * size * np.sqrt(rng.uniform(0.02, 1, count))
    angle = rng.uniform(0, 2 * np.pi, count)
    return (size - 1) / 2 + radius[:, None] * np.column_stack([np.cos(angle), np.sin(angle)])
