"""Find the rotation, scale and mirroring that align a vessel map with others, and the correlation after alignment.

Fourier-Mellin registration (Reddy and Chatterji 1996, doi 10.1109/83.506761). The magnitude of a Fourier transform does
not depend on shifts. In logarithmic polar coordinates, rotating or scaling the image shifts the magnitude, and one
cross-correlation finds that shift. An image and the same image rotated by 180 degrees have equal magnitudes, so the
aligned image is compared with each map in both rotations, each over all shifts, and the higher correlation is returned.
"""

from dataclasses import dataclass

import numpy as np
from scipy import fft, ndimage

SIDE = 64
"""px: side of a vessel map; one px is 8 px of a view."""
MAX_SCALE = 1.25
"""Scales from 1 / MAX_SCALE to MAX_SCALE are searched."""
_MAX_SHIFT = 10  # px of a vessel map: 80 px of a view
_PADDED = fft.next_fast_len(SIDE + _MAX_SHIFT, real=True)

# The log-polar grid
_OVERSAMPLED = 2 * SIDE  # px: maps are zero-padded to this size, so that their spectra can be interpolated
_ANGLES = 90  # over 180 degrees: a magnitude repeats after that
_RADII = np.geomspace(3, 28, 64)  # cycles per map: shading lies below, noise above
_LOG_STEP = float(np.log(_RADII[1] / _RADII[0]))
_SCALE_STEPS = int(np.ceil(np.log(MAX_SCALE) / _LOG_STEP))
_PADDED_RADII = fft.next_fast_len(len(_RADII) + _SCALE_STEPS, real=True)


@dataclass(frozen=True)
class Spectra:
    """Fourier transforms of m vessel maps, complex64: of each map, and of its log-polar magnitude; 50 KB a map."""

    of_maps: np.ndarray
    of_magnitudes: np.ndarray


def spectra(maps: np.ndarray) -> Spectra:
    """Transform reference vessel maps (m, SIDE, SIDE) float32 for `best_over_poses`."""
    return Spectra(
        _transform(maps), _transform_log_polar(np.stack([_log_polar_magnitude(vessel_map) for vessel_map in maps]))
    )


def best_over_poses(vessel_map: np.ndarray, others: Spectra) -> np.ndarray:
    """Return the correlation of a map (SIDE, SIDE) with each of m others in the pose that fits best, (m,) in [-1, 1].

    Poses are all rotations, mirrored or not, scales from 1 / MAX_SCALE to MAX_SCALE, and shifts up to 80 px of a view.
    """
    moved = transform_map(vessel_map, _poses(vessel_map, others.of_magnitudes))
    rotated = moved[:, ::-1, ::-1]  # by 180 degrees
    return np.maximum(best_over_shifts(moved, others.of_maps), best_over_shifts(rotated, others.of_maps))


def best_over_shifts(vessel_map: np.ndarray, of_maps: np.ndarray) -> np.ndarray:
    """Return the highest correlation with each of m maps over shifts up to 80 px of a view, (m,) in [-1, 1].

    vessel_map: (SIDE, SIDE), or (m, SIDE, SIDE) for a different one per reference; of_maps: as in Spectra.
    """
    correlations = fft.irfft2(np.conj(_transform(vessel_map)) * of_maps, s=(_PADDED, _PADDED), workers=-1)
    near = np.r_[0 : _MAX_SHIFT + 1, _PADDED - _MAX_SHIFT : _PADDED]
    return np.asarray(correlations[:, near][:, :, near].max(axis=(1, 2)))


def pose_matrices(mirrored: np.ndarray, rotations: np.ndarray, scales: np.ndarray) -> np.ndarray:
    """Return the matrices (m, 2, 2) that mirror left to right, then rotate, then scale.

    mirrored (m,) bool; rotations (m,) in radians; scales (m,). A matrix maps (row, column) of the moved map,
    relative to its centre, to (row, column) of the original map.
    """
    cos, sin = np.cos(rotations) / scales, np.sin(rotations) / scales
    across = np.where(mirrored, -1.0, 1.0)
    rows, columns = np.stack([cos, -sin], axis=-1), np.stack([across * sin, across * cos], axis=-1)
    return np.stack([rows, columns], axis=-2)


def transform_map(vessel_map: np.ndarray, poses: np.ndarray) -> np.ndarray:
    """Move a map (SIDE, SIDE) about its centre to each of m poses (m, 2, 2) -> (m, SIDE, SIDE), each of unit norm."""
    middle = np.full(2, (SIDE - 1) / 2)
    moved = [ndimage.affine_transform(vessel_map, pose, middle - pose @ middle, order=1) for pose in poses]
    return unit(np.stack(moved))


def unit(image: np.ndarray) -> np.ndarray:
    """Return images (..., H, W) float32 with mean 0 and sum of squares 1; all 0 where an image is constant."""
    centred = image - image.mean(axis=(-2, -1), keepdims=True)
    length = np.sqrt((centred**2).sum(axis=(-2, -1), keepdims=True))
    return np.where(length > 1e-6, centred / np.maximum(length, 1e-6), 0).astype(np.float32)


def _transform(maps: np.ndarray) -> np.ndarray:
    """Transform zero-padded maps: without padding, shifts would wrap around."""
    return np.asarray(fft.rfft2(maps, s=(_PADDED, _PADDED), workers=-1))


def _transform_log_polar(magnitudes: np.ndarray) -> np.ndarray:
    """Transform magnitudes, zero-padded along the radius only: the angle is periodic."""
    return np.asarray(fft.rfft2(magnitudes, s=(_PADDED_RADII, _ANGLES), workers=-1))


def _log_polar_magnitude(vessel_map: np.ndarray) -> np.ndarray:
    """Resample the Fourier magnitude of a map (SIDE, SIDE) to log-polar coordinates, (radii, angles) float32.

    The sum of squares is 1. Each ring has mean 0 and equal weight, because the decrease of power with frequency is
    common to all eyes.
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
    """Return the pose of a map (SIDE, SIDE) that fits each of m others best, up to a shift and 180 degrees.

    (m, 2, 2), as from `pose_matrices`.
    """
    magnitudes = np.stack([_log_polar_magnitude(view) for view in (vessel_map, vessel_map[:, ::-1])])
    products = np.conj(_transform_log_polar(magnitudes)) * of_magnitudes[:, None]
    near = np.r_[_PADDED_RADII - _SCALE_STEPS : _PADDED_RADII, 0 : _SCALE_STEPS + 1]
    correlations = fft.irfft2(products, s=(_PADDED_RADII, _ANGLES), workers=-1)[:, :, near]  # (m, 2, scales, angles)
    best = correlations.reshape(len(correlations), -1).argmax(axis=1)
    mirrored, scale, angle = np.unravel_index(best, correlations.shape[1:])
    return pose_matrices(mirrored, angle * np.pi / _ANGLES, np.exp((_SCALE_STEPS - scale) * _LOG_STEP))
