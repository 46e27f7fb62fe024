"""How alike two views look: samples that all look alike are a model that draws one eye."""

import numpy as np
import torch
from PIL import Image
from torchmetrics.functional.image import multiscale_structural_similarity_index_measure

_SIDE = 256  # px: what makes two eyes look alike is seen at that size, in a quarter of the time


def ms_ssim(a: np.ndarray, b: np.ndarray) -> float:
    """Multi-scale structural similarity of two grey views (H, W) uint8, both reduced to 256 px, in [0, 1].

    Five scales (Wang et al. 2003, doi 10.1109/ACSSC.2003.1292216). 1 for equal views; fields of view and shading are
    alike in all, so read it beside that of real pairs of different eyes.
    """
    small = (Image.fromarray(view).resize((_SIDE, _SIDE), Image.Resampling.BOX) for view in (a, b))
    one, other = (torch.from_numpy(np.asarray(view, np.float32))[None, None] for view in small)
    return float(multiscale_structural_similarity_index_measure(one, other, data_range=255.0))
