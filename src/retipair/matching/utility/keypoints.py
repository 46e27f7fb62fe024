"""Find keypoints on the vessels of a view, and describe points by the brightness and the ridges around them."""

from dataclasses import dataclass

import numpy as np
from skimage.feature import peak_local_max

from retipair.registration.descriptors import LENGTH, root_sift
from retipair.vision.ridges import flattened, inside_rim, vesselness_of_flattened

DESCRIPTOR_LENGTH = 2 * LENGTH
_CONTRAST = 3.0  # grey levels 255 and 0 are this many local standard deviations from the mean
_BRIGHTEST = 99.5  # percentile of the vesselness that becomes grey level 255


@dataclass(frozen=True)
class ViewMaps:
    """The two maps of a view in which points are described, at a width of 512 px.

    brightness: the locally normalised brightness, (512, 512) uint8; vessels are bright.
    ridges: the vesselness, (512, 512) uint8; 0 outside the field of view and at its rim.
    """

    brightness: np.ndarray
    ridges: np.ndarray


def view_maps(image: np.ndarray, mask: np.ndarray) -> ViewMaps:
    """Compute the maps of a CF (512, 512, 3) or FA (512, 512) uint8 with the valid pixels `mask` (512, 512) bool."""
    brightness = flattened(image, mask)
    ridges = vesselness_of_flattened(brightness) * inside_rim(mask)
    highest = np.percentile(ridges[mask], _BRIGHTEST) if mask.any() else 0.0
    return ViewMaps(_to_grey(brightness, -_CONTRAST, _CONTRAST), _to_grey(ridges, 0.0, float(highest)))


def find_keypoints(ridges: np.ndarray, count: int, distance: int) -> np.ndarray:
    """Return the strongest local maxima of a map of ridges, (N, 2) px with N <= count, at least `distance` px apart."""
    rows_and_columns = peak_local_max(ridges, min_distance=distance, threshold_abs=1, num_peaks=count)
    return rows_and_columns[:, ::-1].astype(float)


def describe(maps: ViewMaps, points: np.ndarray) -> np.ndarray:
    """Return the descriptors of points (N, 2) px, (N, DESCRIPTOR_LENGTH) float32 of norm 1."""
    values = np.hstack([root_sift(maps.brightness, points), root_sift(maps.ridges, points)])
    return np.asarray(values / np.maximum(np.linalg.norm(values, axis=1, keepdims=True), 1e-6))


def _to_grey(values: np.ndarray, lowest: float, highest: float) -> np.ndarray:
    """Map values from [lowest, highest] to [0, 255], uint8; other values are clipped."""
    return np.clip((values - lowest) * (255 / max(highest - lowest, 1e-6)), 0, 255).astype(np.uint8)
