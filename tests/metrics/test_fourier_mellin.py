"""One vessel map is found in another in every pose, and by its pose alone."""

from itertools import product

import numpy as np
import pytest
from scipy import ndimage
from skimage.transform import SimilarityTransform, warp

from retipair.metrics.fourier_mellin import (
    MAX_SCALE,
    SIDE,
    best_over_poses,
    best_over_shifts,
    spectra,
    transform_map,
    unit,
)

DEGREES = range(0, 360, 15)
SCALES = (0.8, 0.9, 1.0, 1.1, 1.2)


def draw_map(seed: int) -> np.ndarray:
    """Random ridges within a circle, which no rotation takes out of the map."""
    ridges = np.abs(ndimage.gaussian_filter(np.random.default_rng(seed).normal(size=(SIDE, SIDE)), 2)) < 0.02
    rows, columns = np.mgrid[:SIDE, :SIDE] - (SIDE - 1) / 2
    return unit(np.where(np.hypot(rows, columns) < 24, ndimage.gaussian_filter(ridges.astype(np.float32), 0.7), 0))


MAPS = [draw_map(seed) for seed in range(6)]


def in_pose(one: np.ndarray, degrees: float, mirrored: bool, scale: float, shift: tuple[float, float]) -> np.ndarray:
    """By skimage, of which the search knows nothing."""
    middle = SimilarityTransform(translation=2 * [-(SIDE - 1) / 2])
    pose = middle + SimilarityTransform(scale=scale, rotation=np.deg2rad(degrees), translation=shift) + middle.inverse
    return unit(warp(one[:, ::-1] if mirrored else one, pose.inverse, order=3))


@pytest.mark.parametrize("scale", SCALES)
@pytest.mark.parametrize("mirrored", [False, True])
def test_a_map_is_found_in_every_pose(mirrored: bool, scale: float) -> None:
    others = spectra(np.stack(MAPS))
    for degrees, shift in zip(DEGREES, list(product((-4, 0, 5), (-5, 0, 4))) * 3, strict=False):
        found = best_over_poses(in_pose(MAPS[2], degrees, mirrored, scale, shift), others)
        assert found.argmax() == 2, (degrees, shift)
        assert found[2] > 0.7 > 0.5 > np.delete(found, 2).max(), (degrees, shift, found)


def test_a_map_is_as_like_itself_as_can_be() -> None:
    assert np.diag([best_over_poses(one, spectra(np.stack(MAPS))) for one in MAPS]) == pytest.approx(1, abs=1e-5)


@pytest.mark.parametrize(
    "turn", [lambda one: one[::-1], lambda one: one[:, ::-1], np.rot90, lambda one: one[::-1, ::-1]]
)
def test_turns_that_keep_the_grid_lose_nothing(turn) -> None:
    [found] = best_over_poses(np.ascontiguousarray(turn(MAPS[0])), spectra(MAPS[0][None]))
    assert found == pytest.approx(1, abs=0.01)


def test_shifts_alone_find_no_other_pose() -> None:
    of_maps = spectra(MAPS[0][None]).of_maps
    assert best_over_shifts(np.roll(MAPS[0], (7, -7), (0, 1)), of_maps)[0] > 0.95
    assert best_over_shifts(MAPS[0][::-1], of_maps)[0] < 0.5


def test_an_empty_map_is_like_nothing() -> None:
    empty = np.zeros((SIDE, SIDE), np.float32)
    assert best_over_poses(empty, spectra(np.stack(MAPS))) == pytest.approx(0)
    assert best_over_poses(MAPS[0], spectra(empty[None])) == pytest.approx(0)


def test_scales_beyond_the_search_are_not_promised() -> None:
    assert max(SCALES) < MAX_SCALE
    assert min(SCALES) >= 1 / MAX_SCALE


def test_moved_maps_have_unit_length() -> None:
    moved = transform_map(MAPS[0], np.stack([np.eye(2), 0.9 * np.eye(2)]))
    assert (moved**2).sum(axis=(1, 2)) == pytest.approx(1, abs=1e-4)
