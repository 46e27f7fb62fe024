"""Sample random transforms from the fixed CF to the moving FA.

A transform is a homography, optionally preceded by a smooth displacement. In coordinates relative to the image centre,
in units of the image width, the homography is the product of three transforms, applied in this order: a perspective
[[1, 0, 0], [0, 1, 0], [p_x, p_y, 1]], a rotation and scaling about the centre, and a shift.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from retipair.registration.warp import transform_points

_MIN_OVERLAP = 0.3  # least fraction of the valid CF that the moving FA must show
_MAX_DRAWS = 50
_GRID_STEP = 1 / 32  # of the width: step of the points at which the overlap is measured
_INVERSION_STEPS = 8  # the inverse of a displacement of 20 px at 512 px is then exact to .001 px
_WAVES = 4  # number of cosine waves in a smooth displacement
_WAVE_CYCLES = (0.3, 1.0)  # cycles per image width; distortions by the eye's curvature and the lens vary slowly


@dataclass(frozen=True)
class WarpRanges:
    """The distributions of the parameters of a homography, each given by equally spaced quantiles.

    (a, b) is the uniform distribution from a to b. With more values, each interval between neighbouring quantiles has
    the same probability, and the distribution is uniform within it.

    rotation: the absolute angle, degrees. Its sign is random.
    scale: the factor by which structures are larger in the FA than in the CF.
    shift: the distance by which the image centre moves, as a fraction of the image width. Its direction is random.
    perspective: the length of (h20, h21), per px of an image 512 px wide. Its direction is random.
    """

    rotation: tuple[float, ...]
    scale: tuple[float, ...]
    shift: tuple[float, ...]
    perspective: tuple[float, ...]


TYPICAL = WarpRanges(rotation=(0.0, 3.0), scale=(0.88, 1.03), shift=(0.0, 0.22), perspective=(0.0, 7e-5))
"""The approximate ranges of seven real pairs of four eyes."""
NARROW = WarpRanges(rotation=(0.0, 5.0), scale=(0.95, 1.05), shift=(0.0, 0.05), perspective=(0.0, 1e-5))
WIDE = WarpRanges(rotation=(0.0, 45.0), scale=(0.8, 1.25), shift=(0.0, 0.25), perspective=(0.0, 5e-4))


@dataclass(frozen=True)
class Displacement:
    """A smooth displacement: a sum of cosine waves, each with a direction of displacement of its own.

    amplitudes: the displacement (x, y) at the crest of each wave, (K, 2) px.
    frequencies: the wave vectors, (K, 2) radians per px.
    phases: (K,) radians.
    """

    amplitudes: np.ndarray
    frequencies: np.ndarray
    phases: np.ndarray

    def at(self, points: np.ndarray) -> np.ndarray:
        """Return the displacements (N, 2) px at points (N, 2) px."""
        return np.asarray(np.cos(points @ self.frequencies.T + self.phases) @ self.amplitudes)


@dataclass(frozen=True)
class Warp:
    """The transform from CF px to px of the moving FA: x -> homography(x + displacement(x)).

    Coordinates refer to pixel centres: the centre of the top-left pixel is (0, 0).

    homography: (3, 3) float64; its last element is 1.
    displacement: the smooth part, or None for a pure homography.
    """

    homography: np.ndarray
    displacement: Displacement | None = None

    def transform(self, points: np.ndarray) -> np.ndarray:
        """Map points (N, 2) of the CF to the moving FA, px."""
        moved = points if self.displacement is None else points + self.displacement.at(points)
        return transform_points(self.homography, moved)

    def inverse(self, size: int) -> np.ndarray:
        """Return the transform from px of the moving FA to px of the aligned FA.

        It is a homography (3, 3). With a displacement, it is the position (row, column) in the aligned FA of each pixel
        of the moving FA, (2, size, size). A displacement is inverted by fixed-point iteration, which converges because
        the displacement varies slowly across the image.
        """
        inverse = np.linalg.inv(self.homography)
        if self.displacement is None:
            return inverse
        points = target = transform_points(inverse, pixel_centres(size))
        for _ in range(_INVERSION_STEPS):
            points = target - self.displacement.at(points)
        return points.T[::-1].reshape(2, size, size)

    def residual(self, size: int) -> np.ndarray:
        """Return the residual field, (size, size, 2) px; the last axis is (x, y).

        It is the position to which the transform maps each CF pixel minus that to which the homography alone maps it.
        """
        points = pixel_centres(size)
        return (self.transform(points) - transform_points(self.homography, points)).reshape(size, size, 2)


def pixel_centres(size: int, step: int = 1) -> np.ndarray:
    """Return the coordinates (x, y) of the pixels of a square image in raster order, (N, 2) float64.

    step: only the pixels in every `step`-th row and column are returned.
    """
    rows, columns = np.mgrid[0:size:step, 0:size:step]
    return np.column_stack([columns.ravel(), rows.ravel()]).astype(float)


def sample_warp(ranges: WarpRanges, elastic: float, mask: np.ndarray, rng: np.random.Generator) -> Warp:
    """Sample a warp that, if possible, keeps at least 30 % of the valid CF visible in the moving FA.

    Up to 50 homographies are sampled. The first that keeps 30 % visible is used; if none does, that which keeps most.

    ranges: the distributions of the parameters of the homography.
    elastic: the maximum length of the smooth displacement, px in an image 512 px wide; 0 for a pure homography.
    mask: the pixels that are valid in both CF and aligned FA, (S, S) bool.
    """
    size = len(mask)
    displacement = _sample_displacement(elastic * size / 512, size, rng) if elastic else None
    best, most = Warp(np.eye(3)), -1.0
    for _ in range(_MAX_DRAWS):
        warp = Warp(_sample_homography(ranges, size, rng), displacement)
        if (overlap := _overlap(warp, mask)) > most:
            best, most = warp, overlap
        if most >= _MIN_OVERLAP:
            break
    return best


def _sample_homography(ranges: WarpRanges, size: int, rng: np.random.Generator) -> np.ndarray:
    angle = np.radians(_sample(ranges.rotation, rng)) * rng.choice([-1.0, 1.0])
    scale = _sample(ranges.scale, rng)
    shift = _sample(ranges.shift, rng) * _direction(rng)
    tilt = _sample(ranges.perspective, rng) * 512 * _direction(rng)  # per image width
    return compose(angle, scale, shift, tilt, size)


def compose(angle: float, scale: float, shift: np.ndarray, tilt: np.ndarray, size: int) -> np.ndarray:
    """Return the homography (3, 3) of an image of `size` px; see the docstring of the module.

    angle: radians.
    shift: (2,) in units of the image width.
    tilt: the perspective (2,), per image width.
    """
    cosine, sine = scale * np.cos(angle), scale * np.sin(angle)
    similarity = np.array([[cosine, -sine, shift[0]], [sine, cosine, shift[1]], [0, 0, 1]])
    perspective = np.array([[1, 0, 0], [0, 1, 0], [*tilt, 1]])
    to_centred = centred(size, size)
    homography = np.linalg.inv(to_centred) @ similarity @ perspective @ to_centred
    return np.asarray(homography / homography[2, 2])


def decompose(homography: np.ndarray) -> tuple[float, float, np.ndarray, np.ndarray]:
    """Return the arguments (angle, scale, shift, tilt) of `compose` for a homography (3, 3) in centred coordinates.

    A homography may also have a shear and different scales in two directions; both are ignored. See `centred`.
    """
    matrix = homography / homography[2, 2]
    shift, tilt = matrix[:2, 2], matrix[2, :2]
    linear = matrix[:2, :2] - np.outer(shift, tilt)
    angle = float(np.arctan2(linear[1, 0] - linear[0, 1], linear[0, 0] + linear[1, 1]))
    return angle, float(np.sqrt(abs(np.linalg.det(linear)))), shift, tilt


def centred(width: float, height: float) -> np.ndarray:
    """Return the transform (3, 3) from px to coordinates relative to the image centre, in units of the width."""
    return np.array([[1 / width, 0, (1 - width) / 2 / width], [0, 1 / width, (1 - height) / 2 / width], [0, 0, 1]])


def _sample(quantiles: Sequence[float], rng: np.random.Generator) -> float:
    return float(np.interp(rng.random(), np.linspace(0, 1, len(quantiles)), quantiles))


def _direction(rng: np.random.Generator) -> np.ndarray:
    angle = rng.uniform(0, 2 * np.pi)
    return np.array([np.cos(angle), np.sin(angle)])


def _sample_displacement(longest: float, size: int, rng: np.random.Generator) -> Displacement:
    """Sample a displacement whose longest vector in the image is between `longest` / 2 and `longest` px long."""
    amplitudes = np.array([rng.normal() * _direction(rng) for _ in range(_WAVES)])
    frequencies = np.array([rng.uniform(*_WAVE_CYCLES) * _direction(rng) for _ in range(_WAVES)]) * 2 * np.pi / size
    displacement = Displacement(amplitudes, frequencies, rng.uniform(0, 2 * np.pi, _WAVES))
    lengths = np.linalg.norm(displacement.at(pixel_centres(size, max(1, size // 64))), axis=1)
    factor = longest * rng.uniform(0.5, 1) / max(float(lengths.max()), 1e-9)
    return Displacement(amplitudes * factor, frequencies, displacement.phases)


def _overlap(warp: Warp, mask: np.ndarray) -> float:
    """Return the fraction, in [0, 1], of the valid CF pixels whose corresponding points lie in the moving FA.

    Only a grid of pixels is tested. Valid CF pixels are also valid in the aligned FA, because both have one mask.
    """
    size = len(mask)
    step = max(1, round(size * _GRID_STEP))
    points = pixel_centres(size, step)[mask[::step, ::step].ravel()]
    moved = warp.transform(points)
    return float((((moved >= 0) & (moved <= size - 1)).all(axis=1)).mean()) if len(points) else 0.0
