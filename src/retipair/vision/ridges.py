"""Vesselness: vessels are ridges, dark in the CF's green channel and bright in the FA."""

from functools import cache

import numpy as np
from PIL import Image
from scipy.fft import dctn, idctn, idstn
from skimage.feature import hessian_matrix_eigvals

from retipair.vision.field_of_view import erode

MEASURED_AT = 512
"""px: the view width that vessel widths, margins and metrics refer to."""
SIGMAS = (1, 2, 3, 4)
"""px: scales of the ridge filter; vessels are about 2 to 11 px wide."""
_TRUNCATE = 8  # sigmas
_LOCAL_SIGMA = 20.0  # px: of the local mean and deviation
_RIM = 10.0  # px: margin at the field's edge, which is a ridge too


def vesselness(image: np.ndarray, mask: np.ndarray) -> np.ndarray:
    """Return the vesselness of each pixel: CF (H, W, 3) or FA (H, W) uint8, mask bool -> (H, W) float32, >= 0.

    Sato's ridge filter (1998, doi 10.1016/S1361-8415(98)80009-1) on locally normalised brightness.
    Scales are for views about 512 px wide. The mask's edge itself responds as a ridge (see `inside_rim`).
    """
    return np.asarray(vesselness_by_scale(image, mask).max(axis=0))


def vesselness_by_scale(image: np.ndarray, mask: np.ndarray) -> np.ndarray:
    """Return the vesselness at each of SIGMAS, (len(SIGMAS), H, W) float32, >= 0; the maximum is `vesselness`."""
    cosines = dctn(flattened(image, mask))
    return np.stack([_ridges(cosines, sigma) for sigma in SIGMAS])


def flattened(image: np.ndarray, mask: np.ndarray) -> np.ndarray:
    """Remove the shading of a view: CF (H, W, 3) or FA (H, W) uint8, mask bool -> (H, W) float32, vessels bright.

    Uses the inverted green channel of a CF. Values are local standard scores, 0 outside the mask.
    """
    bright = 255.0 - image[..., 1] if image.ndim == 3 else image
    return _normalise(bright.astype(np.float32), mask)


def segment(vesselness: np.ndarray, mask: np.ndarray, share: float = 0.12) -> np.ndarray:
    """Select the fraction `share` of the field with the highest vesselness, (H, W) float and bool -> (H, W) bool.

    Vessels cover about that fraction. As it is the same for every view, two unrelated views overlap with a Dice
    coefficient of about `share`; real pairs reach .41 to .63. The result is empty if the vesselness is constant.
    """
    if not mask.any():
        return np.zeros_like(mask)
    return np.asarray(mask & (vesselness > np.quantile(vesselness[mask], 1 - share)))


def inside_rim(mask: np.ndarray) -> np.ndarray:
    """Return where the field's edge does not affect the vesselness at 512 px width, (H, W) bool -> (H, W) bool."""
    return erode(mask, _RIM)


def vesselness_correlation(cf: np.ndarray, fa: np.ndarray, mask: np.ndarray) -> float:
    """Return the correlation of the vesselness of both views, in [-1, 1].

    CF (H, W, 3) uint8, FA (H, W) uint8, mask (H, W) bool. Pearson correlation of the vesselness maps in the mask
    without its outer 10 px; 0 if no pixel is left. Real pairs reach .40 to .71, the same views mispaired .04 (95th
    percentile). Views are resized to a width of 512 px.
    """
    cf, fa, mask = (resize_to_reference(array) for array in (cf, fa, mask))
    inside = inside_rim(mask)
    if not inside.any():
        return 0.0
    return correlation(vesselness(cf, mask)[inside], vesselness(fa, mask)[inside])


def resize_to_reference(view: np.ndarray) -> np.ndarray:
    """Resize a view (H, W, 3) or (H, W) uint8, or a mask (H, W) bool, to 512 px width, so that metrics are comparable.

    Averages areas to shrink, interpolates bicubically (masks bilinearly) to enlarge.
    """
    height, width = view.shape[:2]
    if width == MEASURED_AT:
        return view
    size = MEASURED_AT, max(1, round(height * MEASURED_AT / width))
    if view.dtype == bool:
        resampling = Image.Resampling.BOX if width > MEASURED_AT else Image.Resampling.BILINEAR
        return np.asarray(Image.fromarray(view.astype(np.uint8) * 255).resize(size, resampling)) > 127
    resampling = Image.Resampling.BOX if width > MEASURED_AT else Image.Resampling.BICUBIC
    return np.asarray(Image.fromarray(view).resize(size, resampling))


def correlation(a: np.ndarray, b: np.ndarray) -> float:
    """Return the Pearson correlation of two arrays of equal shape, in [-1, 1]; 0 if either is constant."""
    a, b = (np.ravel(values - values.mean(dtype=np.float64)) for values in (a, b))
    # Not `a @ b`: its last bits depend on the number of threads, and can change the result of a search.
    aa, bb, ab = (float(np.einsum("i,i", x, y)) for x, y in ((a, a), (b, b), (a, b)))
    scale = np.sqrt(aa * bb)
    return float(np.clip(ab / scale, -1, 1)) if scale > 1e-9 else 0.0


def _ridges(cosines: np.ndarray, sigma: float) -> np.ndarray:
    """Filter bright ridges of one scale, from a view's cosine transform, (H, W) float32 -> (H, W) float32, >= 0.

    Equals skimage.filters.sato to five digits except at the frame's edge, in a fifth of the time. As in that function,
    a second derivative is computed as two first derivatives of Gaussians of sigma / sqrt(2).
    """
    (smooth_r, slope_r), (smooth_c, slope_c) = (_responses(side, sigma / np.sqrt(2)) for side in cosines.shape)
    rr = idctn(cosines * np.outer(slope_r**2, smooth_c**2))
    cc = idctn(cosines * np.outer(smooth_r**2, slope_c**2))
    # A derivative along each axis turns cosines into sines.
    sines = cosines * np.outer(slope_r * smooth_r, slope_c * smooth_c)
    rc = -idstn(np.pad(sines[1:, 1:], ((0, 1), (0, 1))))
    return np.asarray(sigma**2 * np.maximum(hessian_matrix_eigvals([rr, rc, cc])[0], 0))


@cache
def _responses(side: int, sigma: float) -> tuple[np.ndarray, np.ndarray]:
    """Return the gain of a sampled Gaussian and its derivative for each cosine over `side` px, (side,) float32 each."""
    x = np.arange(int(_TRUNCATE * sigma + 0.5) + 1)
    kernel = np.exp(-0.5 * (x / sigma) ** 2)
    kernel /= 2 * kernel.sum() - kernel[0]
    phases = np.outer(np.pi * np.arange(side) / side, x)
    smooth, slope = 2 * np.cos(phases) @ kernel - kernel[0], 2 * np.sin(phases) @ (x / sigma**2 * kernel)
    return smooth.astype(np.float32), slope.astype(np.float32)


def _normalise(brightness: np.ndarray, mask: np.ndarray) -> np.ndarray:
    """Subtract the local mean and divide by the local standard deviation, both inside the mask; 0 outside."""
    inside = mask.astype(np.float64)
    weight = _neighbourhood(inside) + 1e-6
    mean = _neighbourhood(brightness * inside) / weight
    difference = (brightness - mean) * inside
    deviation = np.sqrt(_neighbourhood(difference**2).clip(min=0) / weight)
    # A deviation of half a grey level or less is noise, which must not be amplified into vessels.
    return np.asarray(difference / (deviation + 0.5), dtype=np.float32)


def _neighbourhood(image: np.ndarray) -> np.ndarray:
    """Smooth by a Gaussian of sigma _LOCAL_SIGMA, mirrored at the edges, (H, W) float64 -> (H, W) float64.

    Equals scipy.ndimage.gaussian_filter, whose kernel would be 161 px wide; cosine transforms take a quarter of the
    time. Uses double precision, because rounding could make small means negative.
    """
    gains = (np.exp(-0.5 * (_LOCAL_SIGMA * np.pi * np.arange(side) / side) ** 2) for side in image.shape)
    return np.asarray(idctn(dctn(image) * np.outer(*gains)))
