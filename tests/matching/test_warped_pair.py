from dataclasses import replace

import numpy as np
import pytest
from scipy import ndimage

from eyes import apply
from retipair.data.pair import Pair
from retipair.matching.appearance import randomise
from retipair.matching.warped_pair import SegmentedPair, Variation, warp_pair
from retipair.matching.warps import NARROW, WIDE, Warp, sample_warp
from retipair.registration.warp import transform_points
from segmented import draw_segmented

SIZE = 192


def blobs(size: int, places: np.ndarray) -> np.ndarray:
    """An image (size, size) with a bright blob at each place (x, y)."""
    rows, columns = np.mgrid[:size, :size]
    squared = [(columns - x) ** 2 + (rows - y) ** 2 for x, y in places]
    return np.asarray(np.exp(-0.5 * np.array(squared) / 3**2).sum(axis=0) * 200, dtype=np.uint8)


def centroid(image: np.ndarray, near: np.ndarray) -> np.ndarray:
    x, y = np.rint(near).astype(int)
    window = image[y - 13 : y + 14, x - 13 : x + 14].astype(float)
    row, column = ndimage.center_of_mass(window)
    return np.array([x - 13 + column, y - 13 + row])


@pytest.mark.parametrize(("elastic", "limit"), [(0.0, 0.05), (8.0, 0.06)])
def test_the_transform_says_where_each_place_is_in_the_moving_picture(elastic: float, limit: float) -> None:
    grid = np.arange(32, SIZE - 31, 32.0)
    places = np.array([(x + 0.25, y - 0.4) for x in grid for y in grid])
    mask = np.ones((SIZE, SIZE), dtype=bool)
    image = blobs(SIZE, places)
    source = SegmentedPair(Pair(np.repeat(image[..., None], 3, 2), image, mask), mask, places)
    errors = []
    for seed in range(3):
        warped = warp_pair(source, sample_warp(NARROW, elastic, mask, np.random.default_rng(seed)))
        inside = ((warped.landmarks[:, 2:] > 16) & (warped.landmarks[:, 2:] < SIZE - 16)).all(axis=1)
        before = np.array([centroid(image, place) for place in warped.landmarks[inside, :2]])
        after = np.array([centroid(warped.fa, place) for place in warped.landmarks[inside, 2:]])
        errors += [after - warped.warp.transform(before)]
    distances = np.linalg.norm(np.concatenate(errors), axis=1)
    assert np.median(distances) < 0.025
    assert distances.max() < limit


@pytest.mark.parametrize("elastic", [0.0, 8.0])
def test_masks_are_true_exactly_where_the_transform_says(elastic: float) -> None:
    source = draw_segmented(0, SIZE)
    warp = sample_warp(WIDE, elastic, source.pair.mask, np.random.default_rng(1))
    warped = warp_pair(source, warp)
    positions = warp.source_positions(SIZE)
    expected = ndimage.map_coordinates(source.pair.mask.astype(float), positions[..., ::-1].transpose(2, 0, 1), order=1)
    clear = abs(expected - 0.5) > 0.05  # OpenCV rounds positions to 1/32 px
    np.testing.assert_array_equal(warped.valid_fa[clear], expected[clear] > 0.5)
    assert clear.mean() > 0.98
    assert not warped.fa[~warped.valid_fa].any()
    assert not (warped.vessels_fa & ~warped.valid_fa).any()


def test_the_identity_changes_no_pixel() -> None:
    source = draw_segmented(0, SIZE)
    warped = warp_pair(source, Warp(np.eye(3)))
    for before, after in (
        (source.pair.fa, warped.fa),
        (source.pair.mask, warped.valid_fa),
        (source.vessels, warped.vessels_fa),
    ):
        np.testing.assert_array_equal(before, after)
    np.testing.assert_array_equal(warped.landmarks[:, :2], warped.landmarks[:, 2:])


def test_landmarks_are_partners_and_valid_in_both_views() -> None:
    source = draw_segmented(0, SIZE)
    for number in range(5):
        warped = Variation(WIDE).make(source, "a", number, appearance=True)
        np.testing.assert_allclose(
            apply(warped.warp.homography, warped.landmarks[:, :2]), warped.landmarks[:, 2:], atol=1e-6
        )
        for mask, points in ((warped.valid_cf, warped.landmarks[:, :2]), (warped.valid_fa, warped.landmarks[:, 2:])):
            columns, rows = np.rint(points).astype(int).T
            assert mask[rows, columns].all()
    assert len(source.landmarks) > 5


def test_landmarks_lie_where_vessels_branch() -> None:
    """Far from the branchings of the vessels that were drawn, there are none; most of those are found."""
    source = draw_segmented(0, 512)
    on_vessels = ndimage.distance_transform_edt(~source.vessels)
    columns, rows = np.rint(source.landmarks).astype(int).T
    assert (on_vessels[rows, columns] <= 3).all()


def test_a_variant_depends_on_seed_id_and_number_alone() -> None:
    source = draw_segmented(0, SIZE)
    variation = Variation(WIDE, elastic=3.0, seed=5)
    first = variation.make(source, "a", 2)
    variation.make(source, "b", 1)
    again = variation.make(source, "a", 2, appearance=True)
    np.testing.assert_array_equal(first.warp.homography, again.warp.homography)
    np.testing.assert_array_equal(first.fa, variation.make(source, "a", 2).fa)
    others = [
        variation.make(source, "b", 2),
        variation.make(source, "a", 3),
        replace(variation, seed=6).make(source, "a", 2),
    ]
    assert all(not np.array_equal(first.warp.homography, other.warp.homography) for other in others)


def test_a_random_appearance_keeps_places_and_is_black_outside() -> None:
    source = draw_segmented(0, SIZE)
    changed = 0
    for seed in range(20):
        image, mask = randomise(source.pair.fa, source.pair.mask, np.random.default_rng(seed))
        assert image.dtype == np.uint8
        assert not image[~mask].any()
        assert not (mask & ~source.pair.mask).any()
        changed += int(not np.array_equal(image, source.pair.fa))
    assert changed > 15
    colour, _ = randomise(source.pair.cf, source.pair.mask, np.random.default_rng(0))
    assert colour.shape == source.pair.cf.shape


def test_transform_with_and_without_displacement() -> None:
    source = draw_segmented(0, SIZE)
    warp = sample_warp(WIDE, 6.0, source.pair.mask, np.random.default_rng(0))
    points = source.landmarks
    columns, rows = np.rint(points).astype(int).T
    whole = np.column_stack([columns, rows]).astype(float)
    by_field = transform_points(warp.homography, whole) + warp.residual(SIZE)[rows, columns]
    np.testing.assert_allclose(warp.transform(whole), by_field, atol=1e-9)
