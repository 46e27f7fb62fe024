from dataclasses import replace

import numpy as np
import pytest
from scipy import ndimage

from retipair.data.pair import Pair
from retipair.data.phantom.draw import draw_phantom
from retipair.metrics import memorisation
from retipair.metrics.measured import measure
from retipair.metrics.memorisation import COPY, Nearest, authenticity, nearest, pair_print, vessel_print
from retipair.parallel import in_order


def print_of(pair: Pair) -> np.ndarray:
    seen = measure(pair)
    return pair_print(np.stack([vessel_print(view) for view in (seen.cf, seen.fa)]))


@pytest.fixture(scope="module")
def prints(pairs: list[Pair]) -> np.ndarray:
    return np.stack([print_of(pair) for pair in pairs])


def changed(pair: Pair, change) -> Pair:
    return Pair(change(pair.cf), change(pair.fa), change(pair.mask))


def turned(image: np.ndarray) -> np.ndarray:
    return ndimage.rotate(image.astype(np.uint8), 3, reshape=False, order=1).astype(image.dtype)


COPIES = {
    "itself": lambda pair: pair,
    "mirrored": lambda pair: changed(pair, lambda image: image[:, ::-1].copy()),
    "turned": lambda pair: changed(pair, turned),
    "moved": lambda pair: changed(pair, lambda image: np.roll(image, (6, -6), (0, 1))),
    "brighter": lambda pair: replace(pair, cf=np.minimum(pair.cf * 1.3, 255).astype(np.uint8)),
    "noisier": lambda pair: replace(
        pair, fa=np.clip(pair.fa + np.random.default_rng(0).normal(0, 12, pair.fa.shape), 0, 255).astype(np.uint8)
    ),
}


@pytest.mark.parametrize("how", COPIES)
def test_a_copy_is_found_however_it_was_changed(pairs, prints, how):
    for index in (2, 5):
        [found] = nearest(print_of(COPIES[how](pairs[index]))[None], prints)
        assert found.index == index
        assert found.likeness >= COPY


def test_other_eyes_are_no_copies(prints):
    found = nearest(prints[:3], prints[3:])
    assert max(one.likeness for one in found) < COPY


def test_an_eye_is_not_compared_with_itself(prints):
    eyes = np.arange(len(prints))
    assert all(one.index != here for here, one in enumerate(nearest(prints, prints, (eyes, eyes))))
    assert nearest(prints[:1], prints[:1], (eyes[:1], eyes[:1]))[0].likeness == -1


def test_stretches_do_not_matter(prints, monkeypatch):
    eyes = np.arange(len(prints)) // 2
    whole = nearest(prints, prints, (eyes, eyes))
    monkeypatch.setattr(memorisation, "AT_ONCE", 3)
    assert nearest(prints, prints, (eyes, eyes)) == whole


def test_order_and_number_do_not_matter(prints):
    whole = nearest(prints[:4], prints[4:])
    assert [nearest(one[None], prints[4:])[0] for one in prints[:4]] == whole
    backwards = nearest(prints[:4], prints[4:][::-1])
    assert [one.likeness for one in backwards] == pytest.approx([one.likeness for one in whole])


def test_authenticity_of_copies_is_nought_and_of_strangers_one():
    train = [Nearest(1, 0.3), Nearest(0, 0.3)]
    assert authenticity([Nearest(0, 0.9), Nearest(1, 0.8)], train) == 0
    assert authenticity([Nearest(0, 0.1), Nearest(1, 0.2)], train) == 1
    assert authenticity([Nearest(0, 0.1), Nearest(1, 0.8)], train) == 0.5


def test_an_eye_without_vessels_is_like_nothing(black, prints):
    [found] = nearest(print_of(black)[None], prints)
    assert found.likeness == 0


@pytest.mark.slow
def test_planted_copies_of_rendered_eyes_are_found_and_strangers_are_not_accused() -> None:
    """100 eyes trained on; of each a copy, changed in every way at once, and 100 other eyes."""
    known, strangers = (eyes(seed, 100) for seed in (88_000, 88_001))
    prints = np.stack(list(in_order(print_of, known)))
    copies = np.stack(list(in_order(lambda pair: print_of(in_disguise(pair)), known)))
    others = np.stack(list(in_order(print_of, strangers)))
    found = nearest(copies, prints)
    right = [one.index == index and one.likeness >= COPY for index, one in enumerate(found)]
    accused = [one.likeness >= COPY for one in nearest(others, prints)]
    print(f"found {sum(right)} of 100 copies, accused {sum(accused)} of 100 strangers")
    assert sum(right) >= 95
    assert sum(accused) <= 2


def eyes(seed: int, count: int) -> list[Pair]:
    drawn = in_order(lambda number: draw_phantom(seed, number, 512, None, None, None), range(count))
    return [Pair(one.cf, one.fa, one.field) for one in drawn]


def in_disguise(pair: Pair) -> Pair:
    """Mirrored, turned by 3 degrees, shifted by 6 px, brighter and noisier."""
    rng = np.random.default_rng(0)
    moved = changed(
        changed(changed(pair, lambda image: image[:, ::-1]), turned), lambda image: np.roll(image, (6, 6), (0, 1))
    )
    cf, fa = (
        np.clip(view * 1.25 + rng.normal(0, 10, view.shape), 0, 255).astype(np.uint8) for view in (moved.cf, moved.fa)
    )
    return Pair(cf, fa, moved.mask)
