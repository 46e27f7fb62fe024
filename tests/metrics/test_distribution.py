from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest
from scipy import ndimage

from retipair.data.pair import Pair
from retipair.metrics import distribution
from retipair.metrics.distribution import (
    evenly_spaced_indices,
    feature_names,
    features,
    frechet,
    mmd2,
    null_mmd2,
    prdc,
    relative_improvement,
    robust_standardize,
    unbiased_mmd2,
)
from retipair.metrics.views import PairViews, prepare_views


@pytest.fixture(scope="session")
def real(measured: list[PairViews]) -> np.ndarray:
    return np.array([features(one) for one in measured])


def of(pairs: list[Pair], change: Callable[[Pair], Pair]) -> np.ndarray:
    return np.array([features(prepare_views(change(pair))) for pair in pairs])


# --- Features


def test_every_feature_has_a_name_of_its_own(real):
    assert real.shape[1] == len(feature_names()) == len(set(feature_names()))
    assert real.dtype == np.float64
    assert {name.split(".")[0] for name in feature_names()} == {"field", "cf", "fa"}


def named(values: np.ndarray) -> dict[str, float]:
    return dict(zip(feature_names(), values, strict=True))


def test_colour_and_field_are_those_of_a_view_made_by_hand(measured):
    cf, fa = np.zeros((512, 512, 3), np.uint8), np.full((512, 512), 51, np.uint8)
    cf[..., 0], cf[..., 1] = 255, 102
    fa[:, :256] = 153
    mask = np.zeros((512, 512), bool)
    mask[128:384] = True
    views = {name: replace(getattr(measured[0], name), pixels=pixels) for name, pixels in (("cf", cf), ("fa", fa))}
    found = named(features(replace(measured[0], **views, mask=mask, inside=mask)))
    assert (found["field.share"], found["field.height"], found["field.width"]) == (0.5, 0.5, 1.0)
    assert found["cf.colour.red.mean"] == 1
    assert found["cf.colour.green.q50"] == pytest.approx(0.4)
    assert found["cf.colour.blue.deviation"] == 0
    assert found["fa.colour.grey.mean"] == pytest.approx(0.4)
    assert found["fa.colour.grey.deviation"] == pytest.approx(0.2)


def test_a_wave_stands_out_in_the_ring_of_its_frequency(measured):
    wave = 128 + 60 * np.sin(2 * np.pi * 30 * np.arange(512) / 256)  # 30 cycles over 256 px
    fa = replace(measured[0].fa, pixels=np.tile(wave, (512, 1)).astype(np.uint8))
    found = named(features(replace(measured[0], fa=fa)))
    rings = {name: value for name, value in found.items() if name.startswith("fa.spectrum")}
    assert max(rings, key=rings.__getitem__) == "fa.spectrum.k027"  # 27 to 34


def test_thicker_and_denser_vessels_are_seen_as_such(measured):
    rows = np.arange(512)

    def stripes(width: int, apart: int) -> dict[str, float]:
        fa = np.where(rows % apart < width, 200, 80).astype(np.uint8)
        pair = Pair(np.zeros((512, 512, 3), np.uint8), np.tile(fa, (512, 1)), np.ones((512, 512), bool))
        return named(features(prepare_views(pair)))

    thin, thick, sparse = stripes(3, 48), stripes(8, 48), stripes(3, 96)
    assert thin["fa.vessels.calibre"] < 0.8 * thick["fa.vessels.calibre"]
    assert sparse["fa.vessels.density"] < 0.7 * thin["fa.vessels.density"]
    assert thin["fa.vessels.q99"] > 1
    assert thin["cf.vessels.mean"] == 0


def test_features_are_finite_even_of_nothing(black):
    assert np.isfinite(features(prepare_views(black))).all()


# --- Distance


def test_a_distance_worked_out_by_hand():
    """D = 1, k(x, y) = (x y + 1)^3: within x k(0, 1) = 1, within y k(1, 2) = 27, across (1 + 1 + 8 + 27) / 4."""
    x, y = np.array([[0.0], [1.0]]), np.array([[1.0], [2.0]])
    assert unbiased_mmd2(x, y) == pytest.approx(1 + 27 - 2 * 37 / 4)


def test_the_kernel_is_divided_by_the_number_of_features():
    x, y = np.array([[0.0], [1.0]]), np.array([[1.0], [2.0]])
    assert unbiased_mmd2(np.repeat(x, 5, axis=1), np.repeat(y, 5, axis=1)) == pytest.approx(unbiased_mmd2(x, y))


def test_it_is_unbiased():
    rng = np.random.default_rng(0)
    values = [unbiased_mmd2(rng.normal(size=(6, 4)), rng.normal(size=(9, 4))) for _ in range(2000)]
    assert np.mean(values) == pytest.approx(0, abs=3 * np.std(values) / 2000**0.5)
    assert min(values) < 0


def test_a_set_is_no_distance_from_itself_and_order_does_not_matter(real):
    rng = np.random.default_rng(0)
    itself = mmd2(real, rng.permutation(real), real)
    assert itself <= 0
    assert itself == pytest.approx(mmd2(real, real, real))
    x, y = real[:4], real[4:]
    assert mmd2(x, y, real) == pytest.approx(mmd2(y[::-1], x[::-1], rng.permutation(real)))
    assert abs(mmd2(x, y, real)) < 1.5 * null_mmd2(real)


@pytest.mark.parametrize(
    "change",
    [
        pytest.param(
            lambda pair, by: replace(pair, cf=np.clip(pair.cf + np.array([20 * by, -10 * by, 0]), 0, 255)),
            id="colour",
            marks=pytest.mark.nightly,
        ),
        pytest.param(
            lambda pair, by: replace(
                pair, cf=ndimage.gaussian_filter(pair.cf, (by, by, 0)), fa=ndimage.gaussian_filter(pair.fa, by)
            ),
            id="blur",
            marks=pytest.mark.nightly,
        ),
        pytest.param(lambda pair, by: replace(pair, fa=pair.fa // (1 + by)), id="dim FA"),
    ],
)
def test_the_more_views_are_spoilt_the_further_they_are(pairs, real, change):
    def spoilt(pair: Pair, by: float) -> Pair:
        changed = change(pair, by)
        return Pair(changed.cf.astype(np.uint8), changed.fa.astype(np.uint8), pair.mask)

    sets = [real[:3], *(of(pairs[:3], lambda pair, by=by: spoilt(pair, by)) for by in (1, 2, 4))]
    distances = [mmd2(one, real, real) for one in sets]
    assert distances == sorted(distances)
    assert distances[0] < null_mmd2(real) < distances[3]


def test_normalising_is_by_the_reference_and_survives_constants_and_outliers():
    reference = np.column_stack([np.linspace(-1, 1, 101), np.full(101, 7.0)])
    assert robust_standardize(np.array([[0.0, 7.0]]), reference).tolist() == [[0, 0]]
    assert robust_standardize(np.array([[0.68, 7.01]]), reference) == pytest.approx(np.arcsinh([[1.0, 1.0]]), rel=1e-6)
    spoilt = reference.copy()
    spoilt[0, 0] = 1e9
    assert robust_standardize(reference, spoilt)[1:] == pytest.approx(
        robust_standardize(reference, reference)[1:], abs=0.1
    )
    assert np.isfinite(mmd2(spoilt, reference, spoilt))


def test_the_floor_is_what_real_sets_have_among_themselves():
    rng = np.random.default_rng(0)
    reference = rng.normal(size=(60, 12))
    least = null_mmd2(reference)
    assert least > 0
    assert least == null_mmd2(reference)
    fresh = [mmd2(rng.normal(size=(30, 12)), rng.normal(size=(30, 12)), reference) for _ in range(40)]
    assert np.mean(np.array(fresh) < least) > 0.8
    assert mmd2(rng.normal(0.8, size=(30, 12)), reference, reference) > least


def test_rows_are_compared_a_stretch_at_a_time_to_the_same_end(monkeypatch):
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=(50, 12)), rng.normal(0.3, size=(40, 12))
    whole = unbiased_mmd2(x, y), prdc(x, y)
    monkeypatch.setattr(distribution, "AT_ONCE", 7 * 40)
    assert unbiased_mmd2(x, y) == pytest.approx(whole[0])
    assert prdc(x, y) == whole[1]


def test_places_are_all_or_spread_evenly():
    assert evenly_spaced_indices(3, 5).tolist() == [0, 1, 2]
    assert evenly_spaced_indices(101, 3).tolist() == [0, 50, 100]
    assert evenly_spaced_indices(0, 3).tolist() == []
    assert len(set(evenly_spaced_indices(1001, 1000))) == 1000


def test_how_much_of_a_distance_is_gone():
    assert relative_improvement(before=10.5, after=2.5, real=0.5) == pytest.approx(0.8)
    assert relative_improvement(before=10.5, after=0.2, real=0.5) == 1
    assert relative_improvement(before=2.5, after=4.5, real=0.5) == -1
    assert relative_improvement(before=0.3, after=0.2, real=0.5) == 0


# --- FID's distance


def test_frechet_of_gaussians_worked_out_by_hand():
    """Along axes: the squared difference of means, and of the deviations."""
    rng = np.random.default_rng(0)
    x = rng.normal(size=(20_000, 3)) * (1, 2, 3) + (0, 0, 5)
    y = rng.normal(size=(20_000, 3)) * (2, 2, 1) + (1, 0, 5)
    assert frechet(x, y) == pytest.approx(1 + 1 + 0 + 4, rel=0.05)
    assert frechet(x, x) == pytest.approx(0, abs=1e-6)


def test_frechet_is_larger_the_fewer_there_are():
    rng = np.random.default_rng(0)
    few, many = (frechet(*rng.normal(size=(2, n, 16))) for n in (24, 2000))
    assert few > 5 * many
