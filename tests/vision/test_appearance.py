"""The appearance of a view: what is measured, and that another view can be given it."""

import numpy as np
import pytest
from scipy.ndimage import gaussian_filter

from eyes import draw_pair
from retipair.vision.appearance import Appearance, appearance, match_appearance, mean_appearance
from retipair.vision.field_of_view import erode, field_of_view
from retipair.vision.ridges import vesselness_correlation

OTHER = Appearance([120.0, 70.0, 40.0], [20.0, 12.0, 8.0], [12.0, 9.0, 6.0])


@pytest.fixture(scope="module")
def view() -> tuple[np.ndarray, np.ndarray]:
    cf, _ = draw_pair(0, 256)
    return cf, field_of_view(cf)


def test_a_view_is_given_the_wanted_appearance_and_keeps_its_vessels(view: tuple[np.ndarray, np.ndarray]) -> None:
    cf, mask = view
    matched = match_appearance(cf, mask, OTHER)
    assert (matched.dtype, matched.shape) == (np.uint8, cf.shape)
    assert not matched[~mask].any()
    got = appearance(matched, mask)
    assert np.allclose(got.mean, OTHER.mean, atol=1)
    assert np.allclose(got.shading, OTHER.shading, rtol=0.1)
    assert np.allclose(got.contrast, OTHER.contrast, rtol=0.1)
    assert vesselness_correlation(cf, 255 - matched[..., 1], mask) > 0.9


def test_its_own_appearance_does_not_change_the_green_channel(view: tuple[np.ndarray, np.ndarray]) -> None:
    cf, mask = view
    same = match_appearance(cf, mask, appearance(cf, mask))
    assert np.abs(same[mask].astype(int) - cf[mask])[:, 1].max() <= 1


def test_detail_of_the_red_and_blue_channels_is_replaced_by_that_of_the_green_channel(
    view: tuple[np.ndarray, np.ndarray],
) -> None:
    """As in a photograph whose red channel shows the choroid."""
    cf, mask = view
    texture = np.random.default_rng(0).normal(0, 20, cf.shape) * [1, 0, 1]
    matched = match_appearance(np.clip(cf + texture, 0, 255).astype(np.uint8), mask, OTHER)
    inner = erode(mask, 8)
    detail = (matched - np.stack([gaussian_filter(matched[..., c].astype(float), 3) for c in range(3)], -1))[inner]
    assert np.corrcoef(detail.T).min() > 0.9


def test_an_angiogram_has_one_channel() -> None:
    _, fa = draw_pair(1, 256)
    mask = field_of_view(fa)
    wanted = Appearance([90.0], [10.0], [30.0])
    matched = match_appearance(fa, mask, wanted)
    assert matched.shape == fa.shape
    assert appearance(matched, mask).mean == pytest.approx([90], abs=3)  # a few pixels are clipped


def test_a_flat_view_is_not_divided_by_zero() -> None:
    flat, mask = np.full((64, 64, 3), 80, np.uint8), np.ones((64, 64), bool)
    assert np.array_equal(match_appearance(flat, mask, OTHER)[0, 0], [120, 70, 40])


def test_what_is_outside_the_mask_has_no_influence(view: tuple[np.ndarray, np.ndarray]) -> None:
    cf, mask = view
    framed = np.where(mask[..., None], cf, 255).astype(np.uint8)
    assert appearance(framed, mask) == appearance(cf, mask)


def test_the_mean_of_several_is_rounded() -> None:
    mean = mean_appearance([OTHER, Appearance([121.0, 70.0, 40.33], OTHER.shading, OTHER.contrast)])
    assert mean.mean == [120.5, 70.0, 40.2]
    assert mean.contrast == OTHER.contrast
