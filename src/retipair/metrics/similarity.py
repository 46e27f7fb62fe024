"""Measure the similarity of two views, to detect a lack of diversity (mode collapse) of generated pairs."""

import numpy as np
import torch
from PIL import Image
from torchmetrics.functional.image import multiscale_structural_similarity_index_measure

_SIDE = 256  # px: side to which views are reduced; the comparison is four times as fast as at 512 px


def ms_ssim(a: np.ndarray, b: np.ndarray) -> float:
    """Return the multi-scale structural similarity (MS-SSIM) of two grey views (H, W) uint8, in [0, 1].

    The views are reduced to 256 px and compared at five scales (Wang et al. 2003, doi 10.1109/ACSSC.2003.1292216).
    The value is 1 for equal views. Views of different eyes are similar too, in field of view and shading, so compare
    the value with that of real views of different eyes.
    """
    small = (Image.fromarray(view).resize((_SIDE, _SIDE), Image.Resampling.BOX) for view in (a, b))
    first, second = (torch.from_numpy(np.asarray(view, np.float32))[None, None] for view in small)
    return float(multiscale_structural_similarity_index_measure(first, second, data_range=255.0))
