from dataclasses import replace

import numpy as np
import pytest
from scipy import ndimage

from retipair.data.pair import Pair
from retipair.metrics.data_issues import find_duplicate_eyes, find_issues
from retipair.metrics.memorisation import COPY, Nearest
from retipair.metrics.pair_metrics import PairMetrics, compute_pair_metrics
from retipair.metrics.views import prepare_views


def figures(pair: Pair, fa_chroma: float = 0.0) -> PairMetrics:
    metrics = compute_pair_metrics(prepare_views(pair))
    metrics.values["fa.chroma"] = fa_chroma
    return metrics


def kinds(pair: Pair, fa_chroma: float = 0.0) -> list[str]:
    return [issue.kind for issue in find_issues("one", figures(pair, fa_chroma))]


def swapped(pair: Pair) -> Pair:
    return Pair(np.repeat(pair.fa[..., None], 3, axis=2), pair.cf[..., 1], pair.mask)


def test_nothing_speaks_against_a_good_pair(pairs):
    assert kinds(pairs[0]) == []


@pytest.mark.parametrize(
    ("spoilt", "kind"),
    [
        (swapped, "swapped"),
        (lambda pair: replace(pair, fa=pair.fa[:, ::-1]), "turned"),
        pytest.param(lambda pair: replace(pair, fa=pair.fa[::-1]), "turned", marks=pytest.mark.nightly),
        pytest.param(lambda pair: replace(pair, fa=pair.fa[::-1, ::-1]), "turned", marks=pytest.mark.nightly),
        (lambda pair: replace(pair, fa=ndimage.shift(pair.fa, (0, 5), order=1)), "apart"),
        (lambda pair: replace(pair, cf=np.minimum(pair.cf.astype(int) * 2, 255).astype(np.uint8)), "clipped"),
    ],
)
def test_what_is_spoilt_is_found_and_called_by_its_name(pairs, spoilt, kind):
    assert kind in kinds(spoilt(pairs[0]))


@pytest.mark.nightly
def test_a_red_free_photograph_is_not_taken_for_swapped_views(pairs):
    red_free = replace(pairs[0], cf=np.repeat(pairs[0].cf[..., 1:2], 3, axis=2))
    assert kinds(red_free) == []
    assert kinds(red_free, fa_chroma=20.0) == ["swapped"]


def test_two_different_eyes_are_unrelated(pairs):
    assert kinds(replace(pairs[0], fa=pairs[1].fa)) == ["unrelated"]


def test_an_angiogram_in_colour_is_found(pairs):
    assert kinds(pairs[0], fa_chroma=20.0) == ["colour in FA"]


def test_an_eye_under_two_names_is_found_once_and_its_sides_are_told():
    nearest = [Nearest(2, 0.9), Nearest(2, 0.2), Nearest(0, 0.9)]
    [issue] = find_duplicate_eyes(["a", "b", "c"], ["train", "train", "val"], nearest)
    assert issue.id == "a"
    assert "same eye as c" in issue.text
    assert "train and val" in issue.text
    assert find_duplicate_eyes(["a", "b"], ["train"] * 2, [Nearest(1, 0.3), Nearest(0, 0.3)]) == []


def test_of_an_eye_under_three_names_none_goes_unsaid():
    nearest = [Nearest(1, 0.9), Nearest(0, 0.9), Nearest(0, 0.8)]
    assert [issue.id for issue in find_duplicate_eyes(["a", "b", "c"], ["train"] * 3, nearest)] == ["a", "c"]


def test_an_eye_under_two_names_is_found_if_only_one_likeness_reaches_the_threshold():
    for nearest in ([Nearest(1, COPY + 0.01), Nearest(0, COPY - 0.01)], [Nearest(1, COPY - 0.01), Nearest(0, COPY)]):
        assert len(find_duplicate_eyes(["a", "b"], ["train"] * 2, nearest)) == 1
