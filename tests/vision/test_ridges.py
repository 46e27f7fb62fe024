import numpy as np
import pytest

from eyes import draw_pair
from retipair.vision.ridges import vesselness, vesselness_correlation


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
