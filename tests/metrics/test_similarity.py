"""The MS-SSIM is that of torchmetrics."""

import numpy as np
import pytest
import torch
from torchmetrics.functional.image import multiscale_structural_similarity_index_measure

from eyes import draw_pair
from retipair.metrics.similarity import ms_ssim


@pytest.mark.parametrize("others", [(1, 2), (3, 3)])
def test_ms_ssim_is_that_of_torchmetrics(others: tuple[int, int]) -> None:
    views = [draw_pair(seed, 256)[1] for seed in others]
    first, second = (torch.from_numpy(view.astype(np.float32))[None, None] for view in views)
    expected = multiscale_structural_similarity_index_measure(first, second, data_range=255.0)
    assert ms_ssim(*views) == pytest.approx(float(expected), abs=1e-6)


def test_views_with_opposite_structure_have_no_similarity() -> None:
    view = draw_pair(1, 256)[1]
    assert ms_ssim(view, 255 - view) == 0
