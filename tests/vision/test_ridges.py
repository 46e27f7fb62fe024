import numpy as np
import pytest
from scipy.ndimage import gaussian_filter
from skimage.filters import sato

from eyes import draw_pair
from retipair.vision.ridges import (
    MEASURED_AT,
    SIGMAS,
    _neighbourhood,
    _normalise,
    inside_rim,
    resize_to_reference,
    segment,
    vesselness,
    vesselness_by_scale,
    vesselness_correlation,
)


@pytest.fixture(scope="module")
def pair() -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    cf, fa = draw_pair(seed=1, size=256)
    return cf, fa, fa > 0


def test_views_of_one_eye_correlate_and_ever_less_the_further_one_is_shifted(pair):
    cf, fa, _ = pair
    mask = np.ones(fa.shape, dtype=bool)
    scores = [vesselness_correlation(cf, np.roll(fa, shift, axis=1), mask) for shift in (0, 2, 4, 8)]
    assert scores[0] > 0.4
    assert scores == sorted(scores, reverse=True)


def test_views_of_two_eyes_do_not_correlate(pair):
    cf, fa, _ = pair
    other = draw_pair(seed=2, size=256)[1]
    mask = np.ones(fa.shape, dtype=bool)
    assert vesselness_correlation(cf, other, mask) < 0.25 * vesselness_correlation(cf, fa, mask)


def test_vessels_are_dark_in_cf_and_bright_in_fa():
    line = np.full((64, 64), 100, dtype=np.uint8)
    line[:, 31:34] = 140
    everywhere = np.ones((64, 64), dtype=bool)
    cf = np.repeat(200 - line[..., None], 3, axis=2).astype(np.uint8)
    for view in (line, cf):
        ridge = vesselness(view, everywhere)
        assert ridge[20:44, 32].min() > 10 * ridge[20:44, 15].max()


@pytest.mark.parametrize("size", [16, 64, 600])
@pytest.mark.parametrize("level", [0, 7, 255])
def test_nothing_to_compare_gives_zero(size, level):
    cf, fa = np.full((size, size, 3), level, np.uint8), np.full((size, size), level, np.uint8)
    everywhere = np.ones((size, size), dtype=bool)
    assert vesselness_correlation(cf, fa, everywhere) == 0.0


def test_an_empty_mask_gives_zero(pair):
    cf, fa, _ = pair
    assert vesselness_correlation(cf, fa, np.zeros(fa.shape, dtype=bool)) == 0.0


def test_large_views_are_measured_at_512():
    cf, fa = draw_pair(seed=3, size=512)
    doubled = [np.kron(view, np.ones((2, 2, 1) if view.ndim == 3 else (2, 2), np.uint8)) for view in (cf, fa)]
    score = vesselness_correlation(cf, fa, np.ones((512, 512), dtype=bool))
    assert vesselness_correlation(*doubled, np.ones((1024, 1024), dtype=bool)) == pytest.approx(score)


def test_a_view_is_measured_at_one_width_whatever_its_own():
    for size in (64, 256, 512, 900):
        mask = np.zeros((size, size), dtype=bool)
        mask[: size // 2] = True
        resized = resize_to_reference(mask)
        assert resized.dtype == bool
        assert resized.mean() == pytest.approx(0.5, abs=0.01)
        for view in (np.full((size, size, 3), 90, np.uint8), np.full((size, size), 90, np.uint8)):
            assert resize_to_reference(view).shape == (MEASURED_AT, MEASURED_AT, *view.shape[2:])
            assert (resize_to_reference(view) == 90).all()
    assert resize_to_reference(np.zeros((300, 400), np.uint8)).shape == (384, 512)


def test_vesselness_is_its_strongest_scale_and_thick_vessels_have_a_large_one():
    rows = np.arange(128)
    thin, thick = (np.tile(np.where(abs(rows - 64) < width, 180, 80).astype(np.uint8), (128, 1)) for width in (1, 5))
    everywhere = np.ones((128, 128), dtype=bool)
    strongest = []
    for view in (thin, thick):
        scales = vesselness_by_scale(view, everywhere)
        assert np.array_equal(scales.max(axis=0), vesselness(view, everywhere))
        strongest.append(SIGMAS[scales[:, 64, 64].argmax()])
    assert strongest == [1, 4]


def test_ridges_are_scikit_images_at_every_scale():
    """Away from the frame's edge, where the library takes a slope to go on as it was."""
    noise = np.random.default_rng(0).integers(0, 256, (96, 131), dtype=np.uint8)
    away = (slice(24, -24),) * 2
    everywhere = np.ones(noise.shape, dtype=bool)
    flat = _normalise(noise.astype(np.float32), everywhere)
    for sigma, ours in zip(SIGMAS, vesselness_by_scale(noise, everywhere), strict=True):
        np.testing.assert_allclose(ours[away], sato(flat, sigmas=[sigma], black_ridges=False)[away], atol=1e-5)


@pytest.mark.parametrize("shape", [(96, 128), (61, 512)])
def test_the_neighbourhood_is_scipys_gaussian(shape):
    noise = np.random.default_rng(0).uniform(0, 255, shape)
    np.testing.assert_allclose(_neighbourhood(noise), gaussian_filter(noise, 20.0), atol=0.01)
    assert _neighbourhood(np.zeros(shape)).min() == 0


@pytest.mark.parametrize("share", [0.05, 0.12, 0.3])
def test_the_segmented_share_is_of_the_field(pair, share):
    cf, fa, mask = pair
    for view in (cf, fa):
        vessels = segment(vesselness(view, mask), mask, share)
        assert not (vessels & ~mask).any()
        assert vessels.sum() == pytest.approx(share * mask.sum(), abs=2)


def test_what_is_segmented_are_the_vessels_and_in_a_blank_view_there_are_none():
    view = np.full((200, 200), 80, dtype=np.uint8)
    view[:, 60:64] = view[:, 140:144] = 160
    everywhere = np.ones(view.shape, dtype=bool)
    vessels = segment(vesselness(view, everywhere), everywhere, share=0.04)
    assert vessels[:, 60:64].mean() > 0.95
    assert vessels[:, 140:144].mean() > 0.95
    assert not segment(np.zeros(view.shape), everywhere).any()
    assert not segment(np.ones(view.shape), ~everywhere).any()


def test_the_rim_is_ten_pixels_wide():
    assert inside_rim(np.ones((60, 80), dtype=bool)).sum() == 40 * 60
