from dataclasses import replace

import numpy as np
import pytest
from scipy import ndimage

from retipair.metrics.spectrum import BANDS, power_spectrum, radial_power
from retipair.metrics.texture import Texture, texture
from retipair.metrics.views import PairViews, PreparedView


def of(view: PreparedView, change) -> Texture:
    return texture(replace(view, pixels=np.clip(change(view.pixels.astype(float)), 0, 255).astype(np.uint8)))


@pytest.fixture
def fa(measured: list[PairViews]) -> PreparedView:
    return measured[0].fa


def test_blur_lowers_every_figure_of_detail_the_more_the_wider(fa):
    found = [of(fa, lambda pixels, s=sigma: ndimage.gaussian_filter(pixels, s)) for sigma in (0.01, 1, 2, 4)]
    for figure in ("fine_share", "laplacian_variance", "noise", "slope"):
        values = [getattr(one, figure) for one in found]
        assert values == sorted(values, reverse=True), figure
        assert values[0] > values[-1]


def test_noise_is_measured_in_grey_levels_and_flattens_the_spectrum():
    rng = np.random.default_rng(0)
    flat, inside = np.full((512, 512), 128.0), np.ones((512, 512), bool)

    def noisy(sigma: float) -> Texture:
        pixels = np.clip(flat + rng.normal(0, sigma, flat.shape), 0, 255).round().astype(np.uint8)
        return texture(PreparedView(pixels, inside, inside))

    for sigma in (4.0, 12.0):
        found = noisy(sigma)
        assert found.noise == pytest.approx(sigma, rel=0.05)
        assert found.slope == pytest.approx(0, abs=0.1)
        assert found.laplacian_variance == pytest.approx(20 * sigma**2, rel=0.05)  # weights 1 1 -4 1 1, squared


def test_the_slope_of_a_power_law_is_its_exponent():
    rng = np.random.default_rng(0)
    frequencies = np.hypot(*np.meshgrid(np.fft.fftfreq(512), np.fft.fftfreq(512)))
    spectrum = np.fft.fft2(rng.normal(size=(512, 512))) / np.maximum(frequencies, 1 / 512) ** 1.5
    image = np.fft.ifft2(spectrum).real
    image = (128 + 110 * image / abs(image).max()).round().astype(np.uint8)
    inside = np.ones((512, 512), bool)
    found = texture(PreparedView(image, inside, inside))
    assert found.slope == pytest.approx(-3, abs=0.15)  # of power, the square of amplitude


def test_a_wave_has_all_its_power_in_the_ring_of_its_frequency():
    wave = 0.5 + 0.4 * np.sin(2 * np.pi * 30 * np.arange(512) / 256)
    rings = radial_power(power_spectrum(np.tile(wave, (512, 1))))
    assert BANDS[rings.argmax()] <= 30 < BANDS[rings.argmax() + 1]
    assert rings.max() > 100 * np.sort(rings)[-2]
