"""Align a vessel map with reference vessel maps, and return their correlation after alignment.

A pose is a combination of mirroring, rotation, scaling and shift. The pose of a map relative to a reference is found by
Fourier-Mellin registration (Reddy and Chatterji 1996, doi 10.1109/83.506761): the magnitude of a Fourier transform does
not depend on shifts, and in log-polar coordinates a rotation or scaling of the image shifts the magnitude. The peak of
the cross-correlation of two log-polar magnitudes thus shows rotation and scale. Rotating an image by 180 degrees does
not change the magnitude. Therefore, both the aligned map and a copy rotated by 180 degrees are correlated with each
reference, over shifts of at most 10 px, and the highest correlation is returned.
"""

from dataclasses import dataclass

import numpy as np
from scipy import fft, ndimage

SIDE = 64
"""px: side of a vessel map. One px of the map corresponds to 8 px of a view 512 px wide."""
MAX_SCALE = 1.25
"""Largest scale that is searched; the smallest is 1 / MAX_SCALE."""
_MAX_SHIFT = 10  # px of a vessel map: largest shift that is searched, in each direction; about 16 % of the side
_PADDED = fft.next_fast_len(SIDE + _MAX_SHIFT, real=True)

# The log-polar grid
_OVERSAMPLED = 2 * SIDE  # px: maps are zero-padded to this size, which makes their spectra smooth enough to interpolate
_ANGLES = 90  # number of angles over 180 degrees; the magnitude has that period
_RADII = np.geomspace(3, 28, 64)  # cycles per map; lower frequencies contain shading, higher ones noise
_LOG_STEP = float(np.log(_RADII[1] / _RADII[0]))
_SCALE_STEPS = int(np.ceil(np.log(MAX_SCALE) / _LOG_STEP))
_PADDED_RADII = fft.next_fast_len(len(_RADII) + _SCALE_STEPS, real=True)


@dataclass(frozen=True)
class Spectra:
    """Fourier transforms of m reference vessel maps, complex64, about 50 KB for each map.

    of_maps: the transform of each map, (m, rows, columns).
    of_magnitudes: the transform of the log-polar magnitude of each map, (m, radii, angles).
    """

    of_maps: np.ndarray
    of_magnitudes: np.ndarray


def spectra(maps: np.ndarray) -> Spectra:
    """Return the transforms of reference vessel maps (m, SIDE, SIDE) float32, which `best_over_poses` needs."""
    return Spectra(
        _transform(maps), _transform_log_polar(np.stack([_log_polar_magnitude(vessel_map) for vessel_map in maps]))
    )


def best_over_poses(vessel_map: np.ndarray, references: Spectra) -> np.ndarray:
    """Return the correlation of a map with each of m reference maps after alignment, (m,) in [-1, 1].

    The map is aligned with each reference by mirroring, any rotation, a scale from 1 / MAX_SCALE to MAX_SCALE, and a
    shift of at most 10 px of the map (about 16 % of its side) in x and in y.

    vessel_map: (SIDE, SIDE).
    references: the transforms of the reference maps, from `spectra`.
    """
    moved = transform_map(vessel_map, _poses(vessel_map, references.of_magnitudes))
    rotated = moved[:, ::-1, ::-1]  # by 180 degrees
    return np.maximum(best_over_shifts(moved, references.of_maps), best_over_shifts(rotated, references.of_maps))


def best_over_shifts(vessel_map: np.ndarray, of_maps: np.ndarray) -> np.ndarray:
    """Return the highest correlation of a shifted map with each of m reference maps, (m,) in [-1, 1].

    All shifts of at most 10 px in x and in y are tried. 10 px are about 16 % of the side of the map.

    vessel_map: one map (SIDE, SIDE) for all references, or one map for each reference, (m, SIDE, SIDE).
    of_maps: the transforms of the reference maps, see `Spectra`.
    """
    correlations = fft.irfft2(np.conj(_transform(vessel_map)) * of_maps, s=(_PADDED, _PADDED), workers=-1)
    near = np.r_[0 : _MAX_SHIFT + 1, _PADDED - _MAX_SHIFT : _PADDED]
    return np.asarray(correlations[:, near][:, :, near].max(axis=(1, 2)))


def pose_matrices(mirrored: np.ndarray, rotations: np.ndarray, scales: np.ndarray) -> np.ndarray:
    """Return the matrices (m, 2, 2) of m poses that mirror a map left to right, then rotate it, then scale it.

    A matrix maps a position (row, column) in the moved map to the position in the original map, both relative to the
    centre.

    mirrored: whether each pose mirrors, (m,) bool.
    rotations: the angle of each pose in radians, (m,).
    scales: the scale of each pose, (m,).
    """
    cos, sin = np.cos(rotations) / scales, np.sin(rotations) / scales
    across = np.where(mirrored, -1.0, 1.0)
    rows, columns = np.stack([cos, -sin], axis=-1), np.stack([across * sin, across * cos], axis=-1)
    return np.stack([rows, columns], axis=-2)


def transform_map(vessel_map: np.ndarray, poses: np.ndarray) -> np.ndarray:
    """Return a map in each of m poses, (m, SIDE, SIDE), normalised by `unit`.

    vessel_map: (SIDE, SIDE); its centre stays in place.
    poses: (m, 2, 2), from `pose_matrices`.
    """
    middle = np.full(2, (SIDE - 1) / 2)
    moved = [ndimage.affine_transform(vessel_map, pose, middle - pose @ middle, order=1) for pose in poses]
    return unit(np.stack(moved))


def unit(image: np.ndarray) -> np.ndarray:
    """Normalise images (..., H, W) to mean 0 and sum of squares 1, float32. A constant image becomes all 0."""
    centred = image - image.mean(axis=(-2, -1), keepdims=True)
    length = np.sqrt((centred**2).sum(axis=(-2, -1), keepdims=True))
    return np.where(length > 1e-6, centred / np.maximum(length, 1e-6), 0).astype(np.float32)


def _transform(maps: np.ndarray) -> np.ndarray:
    """Return the Fourier transforms of maps, zero-padded so that shifted maps do not wrap around."""
    return np.asarray(fft.rfft2(maps, s=(_PADDED, _PADDED), workers=-1))


def _transform_log_polar(magnitudes: np.ndarray) -> np.ndarray:
    """Return the Fourier transforms of log-polar magnitudes, zero-padded along the radius (the angle is periodic)."""
    return np.asarray(fft.rfft2(magnitudes, s=(_PADDED_RADII, _ANGLES), workers=-1))


def _log_polar_magnitude(vessel_map: np.ndarray) -> np.ndarray:
    """Return the square root of the Fourier magnitude of a map in log-polar coordinates, (radii, angles) float32.

    Each row is a ring of one frequency. Every ring is normalised to mean 0 and to the same sum of squares, because the
    decrease of power with frequency is similar in all eyes. The sum of squares of the whole array is 1.

    vessel_map: (SIDE, SIDE).
    """
    magnitude = np.sqrt(np.abs(fft.fftshift(fft.rfft2(vessel_map, s=(_OVERSAMPLED, _OVERSAMPLED)), axes=0)))
    angles = np.arange(_ANGLES) * np.pi / _ANGLES - np.pi / 2
    rows, columns = (np.outer(_RADII * (_OVERSAMPLED / SIDE), part) for part in (np.sin(angles), np.cos(angles)))
    places = np.stack([rows + _OVERSAMPLED // 2, columns])
    rings = ndimage.map_coordinates(magnitude, places, np.float32, order=1)
    rings -= rings.mean(axis=1, keepdims=True)
    length = np.sqrt((rings**2).sum(axis=1, keepdims=True) * len(_RADII))
    return rings / np.maximum(length, 1e-6)


def _poses(vessel_map: np.ndarray, of_magnitudes: np.ndarray) -> np.ndarray:
    """Return the mirroring, rotation and scale that align a map with each of m reference maps, (m, 2, 2).

    The matrices have the form of `pose_matrices`. The rotation may differ from the true rotation by 180 degrees.

    vessel_map: (SIDE, SIDE).
    of_magnitudes: the transforms of the reference maps, see `Spectra`.
    """
    magnitudes = np.stack([_log_polar_magnitude(view) for view in (vessel_map, vessel_map[:, ::-1])])
    products = np.conj(_transform_log_polar(magnitudes)) * of_magnitudes[:, None]
    near = np.r_[_PADDED_RADII - _SCALE_STEPS : _PADDED_RADII, 0 : _SCALE_STEPS + 1]
    # (m, 2 for unmirrored and mirrored, scales, angles)
    correlations = fft.irfft2(products, s=(_PADDED_RADII, _ANGLES), workers=-1)[:, :, near]
    best = correlations.reshape(len(correlations), -1).argmax(axis=1)
    mirrored, scale, angle = np.unravel_index(best, correlations.shape[1:])
    return pose_matrices(mirrored, angle * np.pi / _ANGLES, np.exp((_SCALE_STEPS - scale) * _LOG_STEP))
