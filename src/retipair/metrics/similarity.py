"""Measure the similarity of two views: high similarity among all samples indicates mode collapse."""

import numpy as np
import torch
from PIL import Image
from torchmetrics.functional.image import multiscale_structural_similarity_index_measure

_SIDE = 256  # px: large enough to compare eyes, and four times as fast as 512


def ms_ssim(a: np.ndarray, b: np.ndarray) -> float:
    """Return the multi-scale structural similarity of two grey views (H, W) uint8, reduced to 256 px, in [0, 1].

    Five scales (Wang et al. 2003, doi 10.1109/ACSSC.2003.1292216); 1 for equal views. Field of view and shading are
    alike in all eyes, so compare it with the similarity of real pairs of different eyes.
    """
    small = (Image.fromarray(view).resize((_SIDE, _SIDE), Image.Resampling.BOX) for view in (a, b))
    first, second = (torch.from_numpy(np.asarray(view, np.float32))[None, None] for view in small)
    return float(multiscale_structural_similarity_index_measure(first, second, data_range=255.0))
