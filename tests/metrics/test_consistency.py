from dataclasses import replace

import numpy as np
import pytest
from PIL import Image

from retipair.data.pair import Pair
from retipair.metrics.consistency import Consistency, consistency, dice, mean, set_consistency
from retipair.metrics.measured import Measured, measure
from retipair.vision.ridges import vesselness_correlation


def test_it_is_the_correlation_that_manifests_record(pairs, measured):
    pair = pairs[0]
    assert consistency(measured[0]).correlation == vesselness_correlation(pair.cf, pair.fa, pair.mask)


def test_both_figures_fall_the_further_one_view_is_shifted(pairs):
    def shifted(shift: int) -> Consistency:
        return mean(consistency(measure(replace(p, fa=np.roll(p.fa, shift, axis=1)))) for p in pairs[:2])

    scores = [shifted(shift) for shift in (0, 2, 4, 8)]
    for figure in ("correlation", "dice"):
        values = [getattr(score, figure) for score in scores]
        assert values == sorted(values, reverse=True)
        assert values[0] > values[1] + 0.01
        assert values[3] < 0.7 * values[0]


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
    turned = [replace(one, fa_ridges=three[i - 1].fa_ridges) for i, one in enumerate(three)]
    assert set_consistency(turned).mispaired == set_consistency(three).matched


def test_mispaired_views_are_compared_where_both_are_valid(measured):
    upper, lower = (np.zeros_like(measured[0].inside) for _ in range(2))
    upper[:300], lower[200:] = True, True
    first, second = replace(measured[0], inside=upper), replace(measured[1], inside=lower)
    both = replace(first, fa_ridges=second.fa_ridges, inside=upper & lower)
    assert set_consistency([first, second]).mispaired[0] == consistency(both)


def test_a_set_may_be_a_stream_but_not_a_single_pair(measured):
    assert set_consistency(iter(measured[:2])) == set_consistency(measured[:2])
    with pytest.raises(AssertionError, match="single pair"):
        set_consistency(measured[:1])


def test_a_pair_scores_nearly_the_same_at_half_its_size(pairs, measured):
    def halved(view: np.ndarray) -> np.ndarray:
        return np.asarray(Image.fromarray(view).resize((256, 256), Image.Resampling.BOX))

    smaller = [measure(Pair(halved(p.cf), halved(p.fa), p.mask[::2, ::2])) for p in pairs]
    full, half = (mean(consistency(one) for one in some) for some in (measured, smaller))
    assert half.correlation == pytest.approx(full.correlation, abs=0.06)
    assert half.dice == pytest.approx(full.dice, abs=0.06)


def test_a_pair_without_a_field_scores_zero(black, measured):
    nothing: Measured = measure(black)
    assert consistency(nothing) == Consistency(0.0, 0.0)
    assert set_consistency([nothing, measured[0]]).mispaired == (Consistency(0.0, 0.0),) * 2


def test_dice_of_known_masks():
    a, b = (np.array(values, dtype=bool) for values in ([1, 1, 1, 0, 0], [0, 1, 1, 1, 1]))
    assert dice(a, b) == pytest.approx(4 / 7)
    assert dice(a, a) == 1
    assert dice(a, ~a) == 0
    assert dice(a & ~a, a & ~a) == 0
