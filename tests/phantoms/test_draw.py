"""A rendered pair is what its truth says."""

from functools import cache

import numpy as np
import pytest
import torch
from scipy import ndimage

from eyes import apply
from retipair.phantoms.cameras import BASE_CAMERAS
from retipair.phantoms.clicks import Clicks
from retipair.phantoms.draw import BASE_DISEASES, Phantom, draw_phantom
from retipair.phantoms.lesions import LESION_KINDS
from retipair.phantoms.maps import FIELD
from retipair.phantoms.pose import draw_pose, seen_by_cf_camera, seen_by_fa_camera
from retipair.phantoms.truth import ARTERY, CROSSING, LAYERS, VEIN
from retipair.registration.warp import resample
from retipair.vision.field_of_view import erode
from retipair.vision.ridges import correlation, vesselness, vesselness_correlation

SIZE = 512


@cache
def registered(number: int) -> Phantom:
    return draw_phantom(1, number, SIZE, "amber", "diabetic", None)


@cache
def unregistered(number: int, jitter: float = 1.0) -> Phantom:
    return draw_phantom(1, number, SIZE, "amber", "diabetic", Clicks(points=20, jitter=jitter, wrong=2))


@pytest.mark.parametrize("number", [1, 2, 3])
def test_the_vessels_of_the_truth_are_those_of_both_views(number: int) -> None:
    drawn = registered(number)
    inside = erode(drawn.field, 24)
    vessels = drawn.layers["vessels"] > 0
    for view in (drawn.cf, drawn.fa):
        seen = vesselness(view, drawn.field)
        here = correlation(seen[inside], vessels[inside])
        shifted = [correlation(seen[inside], np.roll(vessels, by, (0, 1))[inside]) for by in ((8, 8), (-8, 8), (0, 12))]
        assert here > 0.3
        assert here > 3 * max(shifted)


def test_fine_vessels_of_the_truth_are_seen_in_the_fa_alone() -> None:
    drawn = registered(1)
    inside = erode(drawn.field, 24) & ~ndimage.binary_dilation(drawn.layers["vessels"] > 0, iterations=4)
    fine = drawn.layers["fine"] > 0
    cf, fa = (correlation(vesselness(view, drawn.field)[inside], fine[inside]) for view in (drawn.cf, drawn.fa))
    assert fa > 0.15
    assert abs(cf) < 0.05


def test_layers_agree_with_one_another_and_with_the_numbers() -> None:
    drawn = registered(1)
    layers = drawn.layers
    assert tuple(layers) == LAYERS
    for layer in layers.values():
        assert layer.shape == (SIZE, SIZE)
        assert layer.dtype == np.uint8
        assert not layer[~drawn.field].any()
    assert (layers["field"] > 0).tolist() == drawn.field.tolist()
    kinds = layers["arteries_veins"]
    assert ((kinds > 0) == (layers["vessels"] > 0)).all()
    assert set(np.unique(kinds)) == {0, ARTERY, VEIN, CROSSING}
    assert not (layers["fine"] & layers["vessels"]).any()
    rows, columns = np.nonzero(layers["disc"])
    assert drawn.disc == pytest.approx([columns.mean(), rows.mean()], abs=0.5)
    widths = [columns.max() - columns.min() + 1, rows.max() - rows.min() + 1]
    assert [2 * radius for radius in drawn.disc_radii] == pytest.approx(widths, abs=2)
    for lesion in drawn.lesions:
        kind = layers["lesions"][round(lesion["y"]), round(lesion["x"])]
        assert 0 < kind <= 1 + LESION_KINDS.index(lesion["kind"])  # where two meet, the first
    assert {LESION_KINDS[kind - 1] for kind in np.unique(layers["lesions"]) if kind} == {
        lesion["kind"] for lesion in drawn.lesions
    }


def test_disc_and_fovea_lie_where_the_views_show_them() -> None:
    drawn = registered(2)
    green = ndimage.gaussian_filter(drawn.cf[..., 1].astype(float), 8)
    fa = ndimage.gaussian_filter(drawn.fa.astype(float), 8)
    (disc_x, disc_y), (fovea_x, fovea_y) = (map(round, place) for place in (drawn.disc, drawn.fovea))
    middle = erode(drawn.field, 60)
    assert green[disc_y, disc_x] > np.quantile(green[middle], 0.97)
    assert fa[fovea_y, fovea_x] < np.quantile(fa[middle], 0.05)
    assert np.hypot(disc_x - fovea_x, disc_y - fovea_y) * FIELD / SIZE == pytest.approx(4.76, abs=0.75)


@pytest.mark.nightly
def test_a_pair_is_a_function_of_seed_and_number_and_its_eye_of_nothing_else() -> None:
    one, two = (draw_phantom(1, 2, 128, None, None, None) for _ in range(2))
    assert (one.cf == two.cf).all()
    assert (one.fa == two.fa).all()
    teal = draw_phantom(1, 2, 128, "teal", one.disease, None)
    both = one.field & teal.field
    for name in set(LAYERS) - {"field"}:
        assert (one.layers[name][both] == teal.layers[name][both]).all()
    assert draw_phantom(1, 3, 128, None, None, None).disc != one.disc
    assert draw_phantom(2, 2, 128, None, None, None).disc != one.disc
    drawn = [draw_phantom(1, number, 64, None, None, None) for number in range(1, 9)]
    assert {one.camera for one in drawn} <= set(BASE_CAMERAS)
    assert len({one.camera for one in drawn}) > 1
    assert {one.disease for one in drawn} == set(BASE_DISEASES)


def test_another_camera_sees_the_same_eye_and_cf() -> None:
    one, two = registered(1), unregistered(1)
    assert np.abs(one.cf.astype(int) - two.cf).mean() < 0.1
    for name in LAYERS:
        assert (one.layers[name] == two.layers[name]).mean() > 0.999, name
    assert (one.fa_to_cf == np.eye(3)).all()


@pytest.mark.parametrize("number", [1, 2, 3])
def test_the_true_homography_aligns_the_views(number: int) -> None:
    drawn = unregistered(number)
    seen = resample(drawn.fa > 0, drawn.fa_to_cf, SIZE) & drawn.field
    aligned = vesselness_correlation(drawn.cf, resample(drawn.fa, drawn.fa_to_cf, SIZE), seen)
    assert aligned > 0.3
    assert vesselness_correlation(drawn.cf, drawn.fa, drawn.field & (drawn.fa > 0)) < 0.3 * aligned
    nearly = drawn.fa_to_cf + np.array([[0, 0, 3.0], [0, 0, 3.0], [0, 0, 0]])
    assert vesselness_correlation(drawn.cf, resample(drawn.fa, nearly, SIZE), seen) < 0.8 * aligned
    registered_pair = registered(number)
    assert aligned == pytest.approx(
        vesselness_correlation(registered_pair.cf, registered_pair.fa, registered_pair.field), abs=0.1
    )


def test_maps_move_by_the_homography_between_pixel_centres() -> None:
    size, margin = 96, 16
    y, x = torch.meshgrid(*[torch.arange(size + 2 * margin)] * 2, indexing="ij")
    spots = np.array([[40.3, 30.8], [60.6, 70.1]])  # in the CF's frame
    wide = torch.stack([torch.exp(-((x - margin - sx) ** 2 + (y - margin - sy) ** 2) / 18) for sx, sy in spots])
    fa_to_cf = draw_pose(np.random.default_rng(4), size)
    assert np.abs(fa_to_cf - np.eye(3)).max() > 1
    for maps, expected in (
        (seen_by_cf_camera(wide, size), spots),
        (seen_by_fa_camera(wide, size, fa_to_cf), apply(np.linalg.inv(fa_to_cf), spots)),
        (seen_by_fa_camera(wide, size, np.eye(3)), spots),
    ):
        weights = maps.numpy()[:, None] * np.stack(np.meshgrid(np.arange(size), np.arange(size)))
        found = weights.sum((2, 3)) / maps.numpy().sum((1, 2))[:, None]
        assert found == pytest.approx(expected, abs=0.05)


def test_no_pose_looks_beyond_what_was_drawn() -> None:
    for size in (64, 512):
        wide = torch.zeros(1, *[size + 2 * int(size / 6)] * 2)
        for seed in range(40 if size == 64 else 4):  # `seen_by_fa_camera` asserts it
            seen_by_fa_camera(wide, size, draw_pose(np.random.default_rng(seed), size))


def test_points_are_vessels_that_both_views_show_spread_over_the_field() -> None:
    drawn = unregistered(1, jitter=0.0)
    assert drawn.landmarks is not None
    columns, rows = np.rint(drawn.landmarks.cf).astype(int).T
    assert ndimage.binary_dilation(drawn.layers["vessels"] > 0)[rows, columns].all()
    assert len(columns) == 20
    apart = np.linalg.norm(drawn.landmarks.cf[:, None] - drawn.landmarks.cf, axis=2) + SIZE * np.eye(20)
    assert apart.min() > 0.08 * SIZE
    assert np.ptp(drawn.landmarks.cf, axis=0).min() > 0.6 * SIZE


@pytest.mark.nightly
def test_points_match_within_their_jitter_but_for_the_wrong_ones() -> None:
    errors = []
    for number, jitter in ((1, 0.0), (1, 1.0), (2, 1.0), (3, 1.0)):
        drawn = unregistered(number, jitter)
        assert drawn.landmarks is not None
        distance = apply(drawn.fa_to_cf, drawn.landmarks.fa) - drawn.landmarks.cf
        wrong = np.isin(np.arange(20), drawn.wrong_points)
        assert wrong.sum() == 2
        assert (np.linalg.norm(distance, axis=1)[wrong] > 0.08 * SIZE).all()
        if jitter:
            errors.append(distance[~wrong])
        else:
            assert np.abs(distance[~wrong]).max() < 1e-6
    usual = 2**0.5 * SIZE / 512  # a px at 512 in either view
    assert np.concatenate(errors).std() == pytest.approx(usual, rel=0.25)
    assert np.abs(errors).max() < 4 * usual
