"""Compute the vesselness of a view: how strongly each pixel resembles a vessel.

Vessels are narrow ridges in brightness: dark in the green channel of a CF, bright in an FA.
"""

from functools import cache

import numpy as np
from PIL import Image
from scipy.fft import dct, dctn, idct, idctn, idstn

from retipair.vision.field_of_view import erode

MEASURED_AT = 512
"""px: width to which views are resized for measurements. Vessel widths, margins and metrics refer to this width."""
SIGMAS = (1, 2, 3, 4)
"""px: scales (sigma of the Gaussian) of the ridge filter, for vessels about 2 to 11 px wide."""
RIM = 10
"""px: margin at the edge of the mask, in a view 512 px wide, where the edge itself looks like a ridge."""
_TRUNCATE = 8  # radius of the Gaussian kernels, in sigmas
_LOCAL_SIGMA = 20.0  # px: sigma of the Gaussian for the local mean and standard deviation


def vesselness(image: np.ndarray, mask: np.ndarray, dark: bool | None = None) -> np.ndarray:
    """Return the vesselness of each pixel of a view, (H, W) float32, >= 0.

    It is the response of the ridge filter of Sato et al. (1998, doi 10.1016/S1361-8415(98)80009-1) to the locally
    normalised brightness. The scales suit views about 512 px wide. The edge of the mask has a high vesselness too; use
    `inside_rim` to exclude it.

    image: a CF (H, W, 3) or FA (H, W), uint8.
    mask: the valid pixels, (H, W) bool.
    dark: as in `flattened`.
    """
    return np.asarray(vesselness_by_scale(image, mask, dark).max(axis=0))


def vesselness_by_scale(image: np.ndarray, mask: np.ndarray, dark: bool | None = None) -> np.ndarray:
    """Return the response of the ridge filter at each of the scales SIGMAS, (len(SIGMAS), H, W) float32, >= 0.

    The maximum over the scales is `vesselness`.
    """
    return ridges_by_scale(flattened(image, mask, dark))


def vesselness_of_flattened(flat: np.ndarray) -> np.ndarray:
    """Return the `vesselness` of a view whose `flattened` brightness (H, W) is known, (H, W) float32, >= 0."""
    return np.asarray(ridges_by_scale(flat).max(axis=0))


def ridges_by_scale(flat: np.ndarray) -> np.ndarray:
    """Return the `vesselness_by_scale` of a view whose `flattened` brightness (H, W) is known."""
    cosines = dctn(flat)
    return np.stack([_ridges(cosines, sigma) for sigma in SIGMAS])


def flattened(image: np.ndarray, mask: np.ndarray, dark: bool | None = None) -> np.ndarray:
    """Return the locally normalised brightness of a view, (H, W) float32, in which vessels are bright.

    The brightness is the green channel of a CF or the one channel of an FA, inverted if vessels are dark in it.
    Subtracting the local mean and dividing by the local standard deviation removes the shading. Values outside the mask
    are 0.

    image: a CF (H, W, 3) or FA (H, W), uint8.
    mask: the valid pixels, (H, W) bool.
    dark: whether vessels are darker than their surroundings; None: yes in three channels (CF), no in one (FA).
    """
    grey = image[..., 1] if image.ndim == 3 else image
    is_dark = image.ndim == 3 if dark is None else dark
    return _normalise((255.0 - grey if is_dark else grey).astype(np.float32), mask)


def segment(vesselness: np.ndarray, mask: np.ndarray, share: float = 0.12) -> np.ndarray:
    """Return the pixels with the highest vesselness, (H, W) bool; none if the vesselness is constant.

    The results for two views of different eyes have a Dice coefficient of about `share`, because each covers that
    fraction of its mask. The results for CF and FA of one real pair reach .41 to .63.

    vesselness: (H, W) float.
    mask: the pixels to choose from, (H, W) bool.
    share: the fraction of the mask to return; vessels cover about 0.12.
    """
    if not mask.any():
        return np.zeros_like(mask)
    return np.asarray(mask & (vesselness > np.quantile(vesselness[mask], 1 - share)))


def inside_rim(mask: np.ndarray) -> np.ndarray:
    """Return the pixels of a mask (H, W) bool, 512 px wide, whose vesselness the edge of the mask does not affect."""
    return erode(mask, RIM)


def vesselness_correlation(
    cf: np.ndarray, fa: np.ndarray, mask: np.ndarray, dark: tuple[bool, bool] = (True, False)
) -> float:
    """Return the Pearson correlation of the vesselness of CF and FA, in [-1, 1].

    The views are resized to a width of 512 px. The outer 10 px of the mask are excluded; the result is 0 if no pixel is
    left. Real pairs reach .40 to .71. If CFs are paired with FAs of other eyes, 95 % of the values are below .04.

    cf: (H, W, 3) uint8.
    fa: (H, W) uint8.
    mask: the region in which both views are valid, (H, W) bool.
    dark: for each view, whether vessels are darker than their surroundings.
    """
    cf, fa, mask = (resize_to_reference(array) for array in (cf, fa, mask))
    inside = inside_rim(mask)
    if not inside.any():
        return 0.0
    return correlation(vesselness(cf, mask, dark[0])[inside], vesselness(fa, mask, dark[1])[inside])


def resize_to_reference(view: np.ndarray) -> np.ndarray:
    """Resize a view (H, W, 3) or (H, W) uint8, or a mask (H, W) bool, to a width of 512 px.

    Metrics of views of different sizes are then comparable. Views are reduced by averaging areas, and enlarged by
    bicubic interpolation (masks: bilinear).
    """
    height, width = view.shape[:2]
    if width == MEASURED_AT:
        return view
    size = MEASURED_AT, max(1, round(height * MEASURED_AT / width))
    if view.dtype == bool:
        return _resized_mask(view, size)
    resampling = Image.Resampling.BOX if width > MEASURED_AT else Image.Resampling.BICUBIC
    return np.asarray(Image.fromarray(view).resize(size, resampling))


def resize_mask(mask: np.ndarray, size: int) -> np.ndarray:
    """Resize a square mask (S, S) bool to (size, size) bool."""
    return mask if len(mask) == size else _resized_mask(mask, (size, size))


def _resized_mask(mask: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    resampling = Image.Resampling.BOX if mask.shape[1] > size[0] else Image.Resampling.BILINEAR
    return np.asarray(Image.fromarray(mask.astype(np.uint8) * 255).resize(size, resampling)) > 127


def correlation(a: np.ndarray, b: np.ndarray) -> float:
    """Return the Pearson correlation of two arrays of equal shape, in [-1, 1]; 0 if either is constant."""
    a, b = (np.ravel(values - values.mean(dtype=np.float64)) for values in (a, b))
    # `a @ b` is not used: its rounding depends on the number of threads, which can change the result of a registration.
    aa, bb, ab = (float(np.einsum("i,i", x, y)) for x, y in ((a, a), (b, b), (a, b)))
    scale = np.sqrt(aa * bb)
    return float(np.clip(ab / scale, -1, 1)) if scale > 1e-9 else 0.0


def _ridges(cosines: np.ndarray, sigma: float) -> np.ndarray:
    """Return the response of the ridge filter at one scale to bright ridges, (H, W) float32, >= 0.

    It equals that of skimage.filters.sato to five digits, except at the edge of the image, and is five times as fast.
    As in skimage, a second derivative is computed by applying the first derivative of a Gaussian of sigma / sqrt(2)
    twice.

    cosines: the cosine transform of the view, (H, W) float32.
    sigma: the scale, px.
    """
    (smooth_r, slope_r), (smooth_c, slope_c) = (_responses(side, sigma / np.sqrt(2)) for side in cosines.shape)
    rr = idctn(cosines * np.outer(slope_r**2, smooth_c**2))
    cc = idctn(cosines * np.outer(smooth_r**2, slope_c**2))
    # The derivative of a cosine is a sine, so a mixed derivative needs the sine transform.
    sines = cosines * np.outer(slope_r * smooth_r, slope_c * smooth_c)
    rc = idstn(np.pad(sines[1:, 1:], ((0, 1), (0, 1))))  # up to its sign
    largest_eigenvalue = (rr + cc) / 2 + np.sqrt(rc**2 + ((rr - cc) / 2) ** 2)
    return np.asarray(sigma**2 * np.maximum(largest_eigenvalue, 0))


@cache
def _responses(side: int, sigma: float) -> tuple[np.ndarray, np.ndarray]:
    """Return the frequency responses of a sampled Gaussian and of its derivative, (side,) float32 each.

    The frequencies are those of the cosine transform over `side` px.
    """
    x = np.arange(int(_TRUNCATE * sigma + 0.5) + 1)
    kernel = np.exp(-0.5 * (x / sigma) ** 2)
    kernel /= 2 * kernel.sum() - kernel[0]
    phases = np.outer(np.pi * np.arange(side) / side, x)
    smooth, slope = 2 * np.cos(phases) @ kernel - kernel[0], 2 * np.sin(phases) @ (x / sigma**2 * kernel)
    return smooth.astype(np.float32), slope.astype(np.float32)


def _normalise(brightness: np.ndarray, mask: np.ndarray) -> np.ndarray:
    """Subtract the local mean inside the mask, and divide by the local standard deviation; the result is 0 outside."""
    inside = mask.astype(np.float64)
    weight = _neighbourhood(inside) + 1e-6
    mean = _neighbourhood(brightness * inside) / weight
    difference = (brightness - mean) * inside
    deviation = np.sqrt(_neighbourhood(difference**2).clip(min=0) / weight)
    # Adding half a grey level prevents noise in uniform regions from being amplified and looking like vessels.
    return np.asarray(difference / (deviation + 0.5), dtype=np.float32)


def _neighbourhood(image: np.ndarray) -> np.ndarray:
    """Smooth an image (H, W) float64 by a Gaussian of sigma _LOCAL_SIGMA, mirrored at the edges.

    The result equals that of scipy.ndimage.gaussian_filter. Its kernel would be 161 px wide, so cosine transforms take
    an eighth of its time; only those low frequencies are computed that pass the filter. Double precision is needed:
    rounding could make small means negative.
    """
    (height, width), (row_gains, column_gains) = image.shape, map(_gains, image.shape)
    spectrum = dct(dct(image, axis=1)[:, : len(column_gains)], axis=0)[: len(row_gains)]
    filtered = spectrum * np.outer(row_gains, column_gains)
    return np.asarray(idct(idct(filtered, n=height, axis=0), n=width, axis=1))


@cache
def _gains(side: int) -> np.ndarray:
    """Return the gains of the Gaussian of sigma _LOCAL_SIGMA at the frequencies of the cosine transform over `side` px.

    Those below the precision of float64, at the high frequencies, are left out.
    """
    gains = np.exp(-0.5 * (_LOCAL_SIGMA * np.pi * np.arange(side) / side) ** 2)
    return gains[gains > np.finfo(np.float64).eps / 10]
