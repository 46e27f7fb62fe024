from pathlib import Path

import numpy as np
import pytest

from retipair.data.augmentation import Variant, apply_variant, draw_variant
from retipair.data.pair import Pair
from retipair.metrics import memorisation
from retipair.metrics.memorisation import COPY, Nearest, authenticity, nearest, pair_descriptor, view_descriptors
from retipair.metrics.views import prepare_views
from retipair.phantoms.draw import draw_phantom
from retipair.runtime.parallel import parallel_map
from retipair.vision.field_of_view import field_of_view


def descriptor_of(pair: Pair) -> np.ndarray:
    return pair_descriptor(view_descriptors(prepare_views(pair)))


@pytest.fixture(scope="module")
def descriptors(pairs: list[Pair]) -> np.ndarray:
    return np.stack([descriptor_of(pair) for pair in pairs])


def in_pose(pair: Pair, variant: Variant) -> Pair:
    """A pair seen so; what is valid is found in the views, as it is of a generated pair."""
    cf, fa = apply_variant(pair.cf, pair.fa, variant)
    return Pair(cf, fa, field_of_view(cf) & field_of_view(fa))


def noisier(pair: Pair) -> Pair:
    """Brighter, too."""
    rng = np.random.default_rng(0)
    cf, fa = (np.clip(view * 1.25 + rng.normal(0, 10, view.shape), 0, 255) for view in (pair.cf, pair.fa))
    return Pair(cf.astype(np.uint8), fa.astype(np.uint8), pair.mask)


def is_found(copy: Pair, index: int, descriptors: np.ndarray) -> bool:
    [found] = nearest(descriptor_of(copy)[None], descriptors)
    return found.index == index and found.similarity >= COPY


POSES = {
    "itself": Variant(),
    "mirrored": Variant(flip_horizontal=True),
    "upside down": Variant(flip_vertical=True),
    "turned by 180 degrees": Variant(flip_horizontal=True, flip_vertical=True),
    "shifted by 80 px": Variant(shift=(80 / 512, 0)),
    "smaller": Variant(scale=0.8),
    "larger": Variant(scale=1.2),
    "everything": Variant(flip_horizontal=True, turn_degrees=100, scale=1.15, shift=(0.03, -0.03)),
} | {
    f"turned by {degrees} degrees": Variant(
        flip_vertical=degrees % 30 == 0, turn_degrees=degrees, scale=(0.8, 0.9, 1.0, 1.1, 1.2)[degrees // 15 % 5]
    )
    for degrees in range(15, 360, 15)
}


@pytest.mark.parametrize("pose", POSES)
def test_a_copy_is_found_in_every_pose(pairs, descriptors, pose):
    assert is_found(in_pose(pairs[2], POSES[pose]), 2, descriptors)


def test_a_brighter_and_noisier_copy_is_found(pairs, descriptors):
    assert is_found(noisier(in_pose(pairs[5], POSES["everything"])), 5, descriptors)


@pytest.mark.nightly
@pytest.mark.parametrize("index", [0, 1, 2, 3])
def test_whatever_training_shows_of_an_eye_is_found_as_its_copy(pairs, descriptors, index):
    """A new kind of augmentation that the search does not know fails here."""
    variants = [draw_variant(number, 0, index) for number in range(9)]
    assert len({(one.flip_horizontal, one.flip_vertical) for one in variants}) == 4
    assert [is_found(in_pose(pairs[index], one), index, descriptors) for one in variants] == [True] * 9


@pytest.mark.nightly
@pytest.mark.parametrize("number", [0, 1])
def test_variants_of_a_rendered_eye_are_found_among_other_eyes(descriptors, number):
    eye = drawn_eye(88_002, number)
    among = np.concatenate([descriptors, descriptor_of(eye)[None]])
    for variant in (draw_variant(1 + at, 1, number) for at in range(6)):
        assert is_found(in_pose(eye, variant), len(descriptors), among), variant


FAILED_VIEWS = {
    "black": np.zeros_like,
    "flat": lambda view: np.full_like(view, 128),
    "nearly black": lambda view: (view // 20).astype(np.uint8),
}


def with_failed_view(pair: Pair, copied: str, failed: str) -> Pair:
    """One view as it is, in place of the other what a model may draw that fails at it."""
    cf = pair.cf if copied == "cf" else FAILED_VIEWS[failed](pair.cf)
    fa = pair.fa if copied == "fa" else FAILED_VIEWS[failed](pair.fa)
    return Pair(cf, fa, field_of_view(cf) & field_of_view(fa))


@pytest.mark.parametrize("copied", ["cf", "fa"])
@pytest.mark.parametrize(
    "failed", ["black", *(pytest.param(f, marks=pytest.mark.nightly) for f in ("flat", "nearly black"))]
)
def test_one_copied_view_is_enough_where_the_other_shows_no_eye(pairs, descriptors, copied, failed):
    for variant in (draw_variant(number, 0, 2) for number in range(3)):
        assert is_found(with_failed_view(in_pose(pairs[2], variant), copied, failed), 2, descriptors), variant
    [found] = nearest(
        descriptor_of(with_failed_view(pairs[2], copied, failed))[None], np.delete(descriptors, 2, axis=0)
    )
    assert found.similarity < COPY, "another eye"


def test_other_eyes_are_no_copies(descriptors):
    found = nearest(descriptors[:3], descriptors[3:])
    assert max(one.similarity for one in found) < COPY


def test_an_eye_is_not_compared_with_itself(descriptors):
    eyes = np.arange(len(descriptors))
    assert all(one.index != here for here, one in enumerate(nearest(descriptors, descriptors, (eyes, eyes))))
    assert nearest(descriptors[:1], descriptors[:1], (eyes[:1], eyes[:1]))[0].similarity == -1


def test_stretches_do_not_matter(descriptors, monkeypatch):
    eyes = np.arange(len(descriptors)) // 2
    whole = nearest(descriptors, descriptors, (eyes, eyes))
    monkeypatch.setattr(memorisation, "AT_ONCE", 3)
    assert nearest(descriptors, descriptors, (eyes, eyes)) == whole


def test_order_and_number_do_not_matter(descriptors):
    whole = nearest(descriptors[:4], descriptors[4:])
    assert [nearest(one[None], descriptors[4:])[0] for one in descriptors[:4]] == whole
    backwards = nearest(descriptors[:4], descriptors[4:][::-1])
    assert [one.similarity for one in backwards] == pytest.approx([one.similarity for one in whole])


def test_authenticity_of_copies_is_nought_and_of_strangers_one():
    train = [Nearest(1, 0.3), Nearest(0, 0.3)]
    assert authenticity([Nearest(0, 0.9), Nearest(1, 0.8)], train) == 0
    assert authenticity([Nearest(0, 0.1), Nearest(1, 0.2)], train) == 1
    assert authenticity([Nearest(0, 0.1), Nearest(1, 0.8)], train) == 0.5


def test_texts_name_the_threshold():
    root = Path(__file__).parents[2]
    assert (
        f"A generated pair with {COPY:.2f} or more counts as a copy".replace("0.", ".")
        in (root / "docs/metrics.md").read_text()
    )
    for name in ("README.md", "README.zh-CN.md"):
        assert f"--max_copy {COPY}`" in (root / name).read_text(encoding="utf-8")
    assert f"Try {COPY}." in (root / "src/retipair/config/generation.py").read_text(encoding="utf-8")


def test_an_eye_without_vessels_is_like_nothing(black, descriptors):
    [found] = nearest(descriptor_of(black)[None], descriptors)
    assert found.similarity == 0


@pytest.mark.slow
def test_copies_of_rendered_eyes_in_any_pose_are_found_and_other_eyes_are_not_accused() -> None:
    """100 eyes trained on; of each a copy, changed in every way at once, and 100 other eyes."""
    known, strangers = ([drawn_eye(seed, number) for number in range(100)] for seed in (88_000, 88_001))
    descriptors = np.stack(list(parallel_map(descriptor_of, known)))
    copies = np.stack(list(parallel_map(descriptor_of, map(in_disguise, known, range(100)))))
    others = np.stack(list(parallel_map(descriptor_of, strangers)))
    found = nearest(copies, descriptors)
    right = [one.index == index and one.similarity >= COPY for index, one in enumerate(found)]
    accused = [one.similarity >= COPY for one in nearest(others, descriptors)]
    print(f"found {sum(right)} of 100 copies, accused {sum(accused)} of 100 strangers")
    assert sum(right) >= 95
    assert sum(accused) <= 2


def drawn_eye(seed: int, number: int) -> Pair:
    one = draw_phantom(seed, number, 512, None, None, None)
    return Pair(one.cf, one.fa, one.field)


def in_disguise(pair: Pair, number: int) -> Pair:
    """In any pose, brighter and noisier."""
    rng = np.random.default_rng(number)
    variant = Variant(
        flip_horizontal=bool(rng.integers(2)),
        turn_degrees=float(rng.uniform(0, 360)),
        scale=float(rng.uniform(0.8, 1.2)),
        shift=(float(rng.uniform(-0.06, 0.06)), float(rng.uniform(-0.06, 0.06))),
    )
    return noisier(in_pose(pair, variant))
