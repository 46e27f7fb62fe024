"""A dozen eyes are what the literature says eyes are."""

import numpy as np
import pytest

from retipair.phantoms import anatomy
from retipair.phantoms.anatomy import Eye, draw_eye
from retipair.phantoms.lesions import DISEASES
from retipair.phantoms.maps import CHANNELS, draw_maps, frame_of
from retipair.phantoms.vessels import FA_ONLY, SEEN_BY_BOTH, Tree, chosen, crossings


@pytest.fixture(scope="module")
def eyes() -> list[Eye]:
    return [draw_eye(np.random.default_rng([number, 3]), DISEASES[number % 3]) for number in range(12)]


def within(value: float, mean: float, deviation: float) -> bool:
    return bool(abs(value - mean) <= 2 * deviation + 1e-9)


def test_the_disc_lies_nasal_of_the_fovea_and_a_little_above(eyes: list[Eye]) -> None:
    for eye in eyes:
        distance = np.hypot(*eye.disc)
        below = np.rad2deg(np.arctan2(-eye.disc[1], abs(eye.disc[0])))
        assert within(distance, *anatomy.DISC_FOVEA)
        assert within(below, *anatomy.FOVEA_BELOW)
        assert (eye.disc[0] > 0) == (eye.side == "right")
        assert within(2 * eye.disc_radius, *anatomy.DISC_DIAMETER)
        assert within(np.pi * eye.avascular_radius**2, *anatomy.AVASCULAR_AREA)
    assert {eye.side for eye in eyes} == {"left", "right"}


def test_trunks_are_as_wide_as_in_adults_and_arteries_narrower_than_veins(eyes: list[Eye]) -> None:
    for eye in eyes:
        artery, vein = (_trunk_diameter(tree, eye) for tree in (eye.arteries, eye.veins))
        low, high = anatomy.ARTERY_TO_VEIN
        assert within(vein, *anatomy.VEIN_DIAMETER)
        assert low - 1e-9 <= artery / vein <= high + 1e-9


def _trunk_diameter(tree: Tree, eye: Eye) -> float:
    away = np.linalg.norm(tree.points - eye.disc, axis=1) > 0.9
    return 2 * float(tree.radii[away & (tree.levels == SEEN_BY_BOTH)].max())


def test_every_branching_that_both_views_show_obeys_murray(eyes: list[Eye]) -> None:
    branchings = 0
    for eye in eyes:
        for tree, exponent in ((eye.arteries, anatomy.ARTERY_EXPONENT), (eye.veins, anatomy.VEIN_EXPONENT)):
            coarse = tree.levels == SEEN_BY_BOTH
            _, parents, old = chosen(tree.points, tree.parents, coarse)
            flow = tree.radii[old] ** exponent
            child = np.flatnonzero(parents >= 0)
            fed = np.bincount(parents[child], weights=flow[child], minlength=len(parents))
            count = np.bincount(parents[child], minlength=len(parents))
            assert fed[count > 0] == pytest.approx(flow[count > 0], rel=1e-9)
            branchings += int((count > 1).sum())
    assert branchings > 1000


def test_nothing_enters_the_avascular_zone(eyes: list[Eye]) -> None:
    for eye in eyes:
        for tree in (eye.arteries, eye.veins):
            child, parent = tree.segments()
            middles = (tree.points[child] + tree.points[parent]) / 2
            assert np.linalg.norm(tree.points, axis=1).min() >= eye.avascular_radius
            assert np.linalg.norm(middles, axis=1).min() > 0.97 * eye.avascular_radius


def test_no_vessel_crosses_its_own_kind_but_arteries_cross_veins(eyes: list[Eye]) -> None:
    for eye in eyes:
        for tree in (eye.arteries, eye.veins):
            assert len(crossings(tree.points, tree.parents)) == 0
        both = np.concatenate([eye.arteries.points, eye.veins.points])
        veins = eye.veins.parents + np.where(eye.veins.parents >= 0, len(eye.arteries.points), 0)
        assert len(crossings(both, np.concatenate([eye.arteries.parents, veins]))) > 10


def test_the_finest_vessels_grow_from_the_others_and_end_there(eyes: list[Eye]) -> None:
    for eye in eyes:
        for tree in (eye.arteries, eye.veins):
            child, parent = tree.segments()
            assert (tree.parents < np.arange(len(tree.parents))).all()  # parents first
            assert (tree.levels[child] >= tree.levels[parent]).all()  # no coarse vessel on a fine one
            fine = tree.levels == FA_ONLY
            assert fine.mean() > 0.3
            assert tree.radii[fine].max() <= 0.012


def test_the_other_eye_is_the_mirror_image() -> None:
    eye = draw_eye(np.random.default_rng(5), "healthy")
    other = anatomy._mirrored(eye)
    assert {eye.side, other.side} == {"left", "right"}
    here, there = (draw_maps(one, frame_of(one, 128)) for one in (eye, other))
    differing = {name for name, a, b in zip(CHANNELS, here, there.flip(-1), strict=True) if (a - b).abs().max() > 1e-3}
    assert differing <= {"cup"}  # it lies 0.03 mm to the right of the disc's centre in either eye


def test_the_same_seed_is_the_same_eye() -> None:
    one, two = (draw_eye(np.random.default_rng(8), "diabetic") for _ in range(2))
    assert (one.veins.points == two.veins.points).all()
    assert one.lesions == two.lesions
    assert len(draw_eye(np.random.default_rng(9), "diabetic").veins.points) != len(one.veins.points)
