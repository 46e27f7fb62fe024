"""Resample images and masks for warped pairs, with scikit-image.

OpenCV, which `registration` uses, is not used here for two reasons. It hangs in a forked process, such as a worker
of a torch DataLoader, if it has used several threads before the fork. And its bicubic kernel (a = -0.75) moves
structures by up to 0.05 px. The kernels used here (Catmull-Rom, and cubic splines for elastic warps) move them by up to
0.004 px.
"""

import numpy as np
from scipy.ndimage import gaussian_filter
from skimage.transform import warp


def resample_image(image: np.ndarray, inverse: np.ndarray) -> np.ndarray:
    """Resample an image (S, S) uint8 bicubically. The result is black outside the image.

    inverse: the transform from px of the result to px of `image`: a homography (3, 3), or the position (row, column) in
        `image` of each pixel of the result, (2, S, S).
    """
    moved = warp(image.astype(np.float32), inverse, order=3, mode="constant", preserve_range=True)
    return np.rint(moved).clip(0, 255).astype(np.uint8)


def resample_mask(mask: np.ndarray, inverse: np.ndarray) -> np.ndarray:
    """Resample a mask (S, S) bool bilinearly, with a threshold of 0.5. `inverse` is that of `resample_image`."""
    return np.asarray(warp(mask.astype(np.float32), inverse, order=1, mode="constant", preserve_range=True) > 0.5)


def blur(image: np.ndarray, sigma: float) -> np.ndarray:
    """Blur an image (H, W) or (H, W, 3) by a Gaussian of `sigma` px."""
    return np.asarray(gaussian_filter(image, (sigma, sigma, 0)[: image.ndim], mode="nearest"))
