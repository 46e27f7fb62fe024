"""Find the rotation, scale and mirroring that lay one vessel map on others, and how well it then correlates with them.

Fourier-Mellin registration (Reddy and Chatterji 1996, doi 10.1109/83.506761). The magnitude of a Fourier transform does
not depend on shifts; resampled to logarithmic polar coordinates, a rotation and a change of scale become shifts, which
one cross-correlation finds. The magnitude of an image equals that of the image rotated by 180 degrees, so both are
compared with each map, over all shifts.
"""

from dataclasses import dataclass

import numpy as np
from scipy import fft, ndimage

SIDE = 64
"""px of a vessel map; one of them is 8 px of a view."""
MAX_SCALE = 1.25
"""Scales from 1 / MAX_SCALE to MAX_SCALE are searched."""
_MAX_SHIFT = 10  # px of a map: 80 px of a view
_PADDED = fft.next_fast_len(SIDE + _MAX_SHIFT, real=True)

# The log-polar grid
_OVERSAMPLED = 2 * SIDE  # px: maps are padded to that, so that their spectra can be interpolated
_ANGLES = 90  # over half a turn: the other half of a magnitude is the same
_RADII = np.geomspace(3, 28, 64)  # cycles per map: below lies shading, above noise
_LOG_STEP = float(np.log(_RADII[1] / _RADII[0]))
_SCALE_STEPS = int(np.ceil(np.log(MAX_SCALE) / _LOG_STEP))
_PADDED_RADII = fft.next_fast_len(len(_RADII) + _SCALE_STEPS, real=True)


@dataclass(frozen=True)
class Spectra:
    """Fourier transforms of m vessel maps, complex64: of each map, and of its log-polar magnitude; 50 KB a map."""

    of_maps: np.ndarray
    of_magnitudes: np.ndarray


def spectra(maps: np.ndarray) -> Spectra:
    """Transform the vessel maps (m, SIDE, SIDE) float32 that others are compared with."""
    return Spectra(_transform(maps), _transform_log_polar(np.stack([_log_polar_magnitude(one) for one in maps])))


def best_over_poses(one: np.ndarray, others: Spectra) -> np.ndarray:
    """Return the correlation of a map (SIDE, SIDE) with each of m others in the pose that fits best, (m,) in [-1, 1].

    Poses are all rotations, mirrored or not, scales from 1 / MAX_SCALE to MAX_SCALE, and shifts up to 80 px of a view.
    """
    moved = transform_map(one, _poses(one, others.of_magnitudes))
    upside_down = moved[:, ::-1, ::-1]
    return np.maximum(best_over_shifts(moved, others.of_maps), best_over_shifts(upside_down, others.of_maps))


def best_over_shifts(one: np.ndarray, of_maps: np.ndarray) -> np.ndarray:
    """Return the highest correlation with each of m maps over shifts up to 80 px of a view, (m,) in [-1, 1].

    one: a map (SIDE, SIDE), or one for each of the m, (m, SIDE, SIDE); of_maps: as in Spectra.
    """
    correlations = fft.irfft2(np.conj(_transform(one)) * of_maps, s=(_PADDED, _PADDED), workers=-1)
    near = np.r_[0 : _MAX_SHIFT + 1, _PADDED - _MAX_SHIFT : _PADDED]
    return np.asarray(correlations[:, near][:, :, near].max(axis=(1, 2)))


def pose_matrices(mirrored: np.ndarray, rotations: np.ndarray, scales: np.ndarray) -> np.ndarray:
    """Return the poses (m, 2, 2) of bool, radians and factors (m,) each: mirror left to right first, then the others.

    Each takes a row and a column of the moved map, counted from its centre, to those of the map.
    """
    cos, sin = np.cos(rotations) / scales, np.sin(rotations) / scales
    across = np.where(mirrored, -1.0, 1.0)
    rows, columns = np.stack([cos, -sin], axis=-1), np.stack([across * sin, across * cos], axis=-1)
    return np.stack([rows, columns], axis=-2)


def transform_map(one: np.ndarray, poses: np.ndarray) -> np.ndarray:
    """Move a map (SIDE, SIDE) about its centre to each of m poses (m, 2, 2), (m, SIDE, SIDE), each of unit length."""
    middle = np.full(2, (SIDE - 1) / 2)
    moved = [ndimage.affine_transform(one, pose, middle - pose @ middle, order=1) for pose in poses]
    return unit(np.stack(moved))


def unit(image: np.ndarray) -> np.ndarray:
    """Return images (..., H, W) float32 with mean 0 and sum of squares 1; all 0 where an image is constant."""
    centred = image - image.mean(axis=(-2, -1), keepdims=True)
    length = np.sqrt((centred**2).sum(axis=(-2, -1), keepdims=True))
    return np.where(length > 1e-6, centred / np.maximum(length, 1e-6), 0).astype(np.float32)


def _transform(maps: np.ndarray) -> np.ndarray:
    """Pad with zeros, so that what is shifted out on one side does not come in on the other."""
    return np.asarray(fft.rfft2(maps, s=(_PADDED, _PADDED), workers=-1))


def _transform_log_polar(magnitudes: np.ndarray) -> np.ndarray:
    """Pad along the radius only: the angle is periodic."""
    return np.asarray(fft.rfft2(magnitudes, s=(_PADDED_RADII, _ANGLES), workers=-1))


def _log_polar_magnitude(one: np.ndarray) -> np.ndarray:
    """Resample the Fourier magnitude of a map (SIDE, SIDE), (radii, angles) float32 of sum of squares 1.

    Each ring has mean 0 and equal weight: that power falls with frequency is common to all eyes.
    """
    magnitude = np.sqrt(np.abs(fft.fftshift(fft.rfft2(one, s=(_OVERSAMPLED, _OVERSAMPLED)), axes=0)))
    angles = np.arange(_ANGLES) * np.pi / _ANGLES - np.pi / 2
    rows, columns = (np.outer(_RADII * (_OVERSAMPLED / SIDE), part) for part in (np.sin(angles), np.cos(angles)))
    places = np.stack([rows + _OVERSAMPLED // 2, columns])
    rings = ndimage.map_coordinates(magnitude, places, np.float32, order=1)
    rings -= rings.mean(axis=1, keepdims=True)
    length = np.sqrt((rings**2).sum(axis=1, keepdims=True) * len(_RADII))
    return rings / np.maximum(length, 1e-6)


def _poses(one: np.ndarray, of_magnitudes: np.ndarray) -> np.ndarray:
    """Return the pose that lays a map (SIDE, SIDE) best on each of m others, up to a shift and half a turn.

    (m, 2, 2): the matrix that takes row and column, from the centre, of the moved map to those of the map.
    """
    views = np.stack([_log_polar_magnitude(view) for view in (one, one[:, ::-1])])
    products = np.conj(_transform_log_polar(views)) * of_magnitudes[:, None]
    near = np.r_[_PADDED_RADII - _SCALE_STEPS : _PADDED_RADII, 0 : _SCALE_STEPS + 1]
    correlations = fft.irfft2(products, s=(_PADDED_RADII, _ANGLES), workers=-1)[:, :, near]  # (m, 2, scales, angles)
    best = correlations.reshape(len(correlations), -1).argmax(axis=1)
    mirrored, scale, angle = np.unravel_index(best, correlations.shape[1:])
    return pose_matrices(mirrored, angle * np.pi / _ANGLES, np.exp((_SCALE_STEPS - scale) * _LOG_STEP))
