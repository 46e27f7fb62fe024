from dataclasses import replace

import numpy as np
import pytest
from PIL import Image
from scipy import ndimage

from retipair.data.pair import Pair
from retipair.metrics.consistency import Consistency, cl_dice, consistency, dice, mean, set_consistency, shift_of
from retipair.metrics.views import PairViews, prepare_views
from retipair.vision.ridges import vesselness_correlation

NOTHING = Consistency(correlation=0.0, dice=0.0, cl_dice=0.0, shift_px=0.0, field=0.0)


def test_it_is_the_correlation_that_manifests_record(pairs, measured):
    pair = pairs[0]
    assert consistency(measured[0]).correlation == vesselness_correlation(pair.cf, pair.fa, pair.mask)


def shifted(pair: Pair, right: int, down: int = 0) -> PairViews:
    return prepare_views(replace(pair, fa=ndimage.shift(pair.fa, (down, right), order=1)))


def test_every_figure_falls_the_further_one_view_is_shifted(pairs):
    scores = [consistency(shifted(pairs[0], by)) for by in (0, 2, 4, 8)]
    for figure in ("correlation", "dice", "cl_dice", "field"):
        values = [getattr(score, figure) for score in scores]
        assert values == sorted(values, reverse=True), figure
        assert values[0] > values[1]
    for figure in ("correlation", "dice", "cl_dice"):
        assert getattr(scores[3], figure) < 0.7 * getattr(scores[0], figure)


@pytest.mark.parametrize(
    ("right", "down"), [(-6, 5), *(pytest.param(*shift, marks=pytest.mark.nightly) for shift in ((2, 0), (0, -4)))]
)
def test_the_shift_is_found_with_its_direction(pairs, measured, right, down):
    for pair, as_it_is in zip(pairs[:2], measured, strict=False):
        seen = shifted(pair, right, down)
        before, after = (shift_of(one.cf.vesselness, one.fa.vesselness, one.inside) for one in (as_it_is, seen))
        assert np.subtract(after, before) == pytest.approx((down, right), abs=0.3)
        assert consistency(seen).shift_px == pytest.approx(np.hypot(*after))


def test_cl_dice_of_lines_worked_out_by_hand():
    line, double = np.zeros((20, 20), bool), np.zeros((20, 20), bool)
    line[10, 2:18] = double[9:12, 2:18] = True
    beside = np.roll(line, 4, axis=0)
    assert cl_dice(line, line) == 1
    assert cl_dice(line, double) == pytest.approx(1, abs=0.05)  # a vessel's width does not count, but at its ends
    assert cl_dice(line, beside) == 0
    half = line.copy()
    half[:, 10:] = False
    assert cl_dice(line, half) == pytest.approx(2 / 3)  # half of one is found, all of the other
    assert cl_dice(line, np.zeros_like(line)) == 0


@pytest.mark.nightly
def test_matched_pairs_agree_and_mispaired_ones_as_chance_has_it(measured):
    found = set_consistency(measured)
    assert len(found.matched) == len(found.mispaired) == len(measured)
    matched, mispaired = mean(found.matched), mean(found.mispaired)
    assert matched.correlation > 0.4
    assert matched.dice > 0.4
    assert mispaired.correlation == pytest.approx(0, abs=0.08)
    assert mispaired.dice == pytest.approx(0.12, abs=0.04)


def test_every_cf_meets_the_next_fa_and_the_last_one_the_first(measured):
    three = [replace(one, inside=measured[0].inside) for one in measured[:3]]
    turned = [replace(one, fa=three[i - 1].fa) for i, one in enumerate(three)]
    assert set_consistency(turned).mispaired == set_consistency(three).matched


def test_mispaired_views_are_compared_where_both_are_valid(measured):
    upper, lower = (np.zeros_like(measured[0].inside) for _ in range(2))
    upper[:300], lower[200:] = True, True
    first, second = replace(measured[0], inside=upper), replace(measured[1], inside=lower)
    both = replace(first, fa=second.fa, inside=upper & lower)
    assert set_consistency([first, second]).mispaired[0] == consistency(both)


def test_a_set_may_be_a_stream_but_not_a_single_pair(measured):
    assert set_consistency(iter(measured[:2])) == set_consistency(measured[:2])
    with pytest.raises(AssertionError, match="single pair"):
        set_consistency(measured[:1])


@pytest.mark.nightly
def test_a_pair_scores_nearly_the_same_at_half_its_size(pairs, measured):
    def halved(view: np.ndarray) -> np.ndarray:
        return np.asarray(Image.fromarray(view).resize((256, 256), Image.Resampling.BOX))

    smaller = [prepare_views(Pair(halved(p.cf), halved(p.fa), p.mask[::2, ::2])) for p in pairs[:2]]
    full, half = (mean(consistency(one) for one in some) for some in (measured[:2], smaller))
    assert half.correlation == pytest.approx(full.correlation, abs=0.06)
    assert half.dice == pytest.approx(full.dice, abs=0.06)


def test_a_pair_without_a_field_scores_zero(black, measured):
    nothing: PairViews = prepare_views(black)
    assert consistency(nothing) == NOTHING
    assert set_consistency([nothing, measured[0]]).mispaired == (NOTHING,) * 2


def test_dice_of_known_masks():
    a, b = (np.array(values, dtype=bool) for values in ([1, 1, 1, 0, 0], [0, 1, 1, 1, 1]))
    assert dice(a, b) == pytest.approx(4 / 7)
    assert dice(a, a) == 1
    assert dice(a, ~a) == 0
    assert dice(a & ~a, a & ~a) == 0
