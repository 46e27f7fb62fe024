"""Variants of a pair: CF and FA move together, each within its own half, or their vessels would part."""

from dataclasses import replace

import numpy as np
import pytest

from conftest import VIEW
from eyes import draw_pair
from retipair.data.augmentation import Variant, apply_variant, draw_variant
from retipair.data.layout import Layout

SEED = 5
GEOMETRY = ("flip_horizontal", "flip_vertical", "turn_degrees", "scale", "shift")


@pytest.fixture(scope="module")
def grey() -> np.ndarray:
    return draw_pair(1, VIEW)[1]


def as_cf(view: np.ndarray) -> np.ndarray:
    return np.dstack([view] * 3)


@pytest.mark.parametrize("number", range(1, 9))
def test_both_views_move_together(grey: np.ndarray, number: int) -> None:
    """With the same picture in both views, and without relighting, the views stay the same picture."""
    variant = replace(draw_variant(number, SEED, pair=0), cf_gain=1.0, fa_gain=1.0)
    cf, fa = apply_variant(as_cf(grey), grey, variant)
    assert np.array_equal(cf, as_cf(fa))
    assert not np.array_equal(fa, grey)


def test_variant_0_is_the_pair_itself(grey: np.ndarray) -> None:
    cf, fa = apply_variant(as_cf(grey), grey, draw_variant(0, SEED, pair=3))
    assert np.array_equal(cf, as_cf(grey))
    assert np.array_equal(fa, grey)


def test_variants_are_functions_of_seed_pair_and_number_and_use_the_whole_range() -> None:
    variants = [draw_variant(number, SEED, pair) for pair in range(20) for number in range(1, 9)]
    assert variants == [draw_variant(number, SEED, pair) for pair in range(20) for number in range(1, 9)]
    assert len(set(variants)) == len(variants)
    assert draw_variant(1, SEED, 0) != draw_variant(1, SEED + 1, 0)
    for flip in ("flip_horizontal", "flip_vertical"):
        assert 0.3 < np.mean([getattr(variant, flip) for variant in variants]) < 0.7
    turns = [variant.turn_degrees for variant in variants]
    assert min(turns) < -6
    assert max(turns) > 6
    assert np.abs(turns).max() <= 8
    assert np.corrcoef([v.cf_gain for v in variants], [v.fa_gain for v in variants])[0, 1] < 0.3


@pytest.mark.parametrize(("variant", "axis"), [(Variant(flip_horizontal=True), 1), (Variant(flip_vertical=True), 0)])
def test_a_flip_turns_each_view_over_and_never_swaps_them(variant: Variant, axis: int) -> None:
    cf, fa = draw_pair(2, VIEW)
    flipped = apply_variant(cf, fa, variant)
    assert np.array_equal(flipped[0], np.flip(cf, axis))
    assert np.array_equal(flipped[1], np.flip(fa, axis))
    joint = Layout("side_by_side", VIEW).join(*flipped)
    assert np.array_equal(joint[:, :VIEW], np.flip(cf, axis))  # the colour view is still on the left


def test_brightness_is_each_views_own() -> None:
    cf, fa = draw_pair(2, VIEW)
    brighter, same = apply_variant(cf, fa, Variant(cf_gain=1.1))
    assert np.array_equal(same, fa)
    assert np.array_equal(brighter, np.clip(np.rint(cf * 1.1), 0, 255).astype(np.uint8))
    same, darker = apply_variant(cf, fa, Variant(fa_gain=0.9))
    assert np.array_equal(same, cf)
    assert darker.mean() < fa.mean()


def spot(x: float, y: float) -> np.ndarray:
    rows, columns = np.mgrid[:VIEW, :VIEW]
    return (250 * np.exp(-((columns - x) ** 2 + (rows - y) ** 2) / 18)).round().astype(np.uint8)


def centre_of(view: np.ndarray) -> tuple[float, float]:
    rows, columns = np.mgrid[:VIEW, :VIEW]
    return (view * columns).sum() / view.sum(), (view * rows).sum() / view.sum()


@pytest.mark.parametrize(
    ("variant", "where"),
    [
        (Variant(shift=(0.03, -0.02)), (90 + 0.03 * VIEW, 60 - 0.02 * VIEW)),
        (Variant(scale=1.05), (63.5 + 1.05 * 26.5, 63.5 - 1.05 * 3.5)),
    ],
)
def test_shift_and_scale_put_things_where_they_say(variant: Variant, where: tuple[float, float]) -> None:
    """Pixel centres: the middle of the view, (S - 1) / 2, is what scaling keeps."""
    view = spot(90, 60)
    _, fa = apply_variant(as_cf(view), view, variant)
    assert centre_of(fa) == pytest.approx(where, abs=0.1)


def test_a_turn_keeps_the_middle_and_the_distance_from_it() -> None:
    view, middle = spot(90, 60), (VIEW - 1) / 2
    turned = centre_of(apply_variant(as_cf(view), view, Variant(turn_degrees=8.0))[1])
    arms = [np.subtract(point, middle) for point in ((90, 60), turned)]
    assert np.hypot(*arms[1]) == pytest.approx(np.hypot(*arms[0]), abs=0.05)
    cosine = arms[0] @ arms[1] / np.prod([np.hypot(*arm) for arm in arms])
    assert np.rad2deg(np.arccos(cosine)) == pytest.approx(8, abs=0.2)
    assert centre_of(apply_variant(as_cf(view), spot(middle, middle), Variant(turn_degrees=8.0))[1]) == (
        pytest.approx((middle, middle), abs=0.05)
    )


def test_what_comes_in_from_outside_is_black() -> None:
    white = np.full((VIEW, VIEW), 255, np.uint8)
    cf, fa = apply_variant(as_cf(white), white, Variant(shift=(0.03, 0.0)))
    assert not fa[:, :3].any()
    assert not cf[:, :3].any()
    assert (fa[:, 8:] == 255).all()
