"""The parts of `utility`: the descriptor, the arms, the test and the statistics have the properties they must have."""

import numpy as np
import pytest
import torch

from eyes import draw_pair
from retipair.data.pair import Pair
from retipair.matching.utility.arms import exchange_fa, invert_green, shift_fa
from retipair.matching.utility.keypoints import describe, find_keypoints, view_maps
from retipair.matching.utility.report import sentence
from retipair.matching.utility.scores import (
    HARD,
    TOLERANCE,
    ImageScore,
    LandmarkPair,
    Level,
    make_test_image,
    score_image,
)
from retipair.matching.utility.statistics import ArmScore, Interval, auc, bootstrap, difference, recall, summarise
from retipair.matching.utility.training import ResidualDescriptor, make_variant, train_descriptor, training_pair
from retipair.matching.warps import WarpRanges
from retipair.vision.ridges import flattened, vesselness, vesselness_of_flattened

STILL = Level("still", WarpRanges((0.0, 0.0), (1.0, 1.0), (0.0, 0.0), (0.0, 0.0)), appearance=False)


@pytest.fixture(scope="module")
def pair() -> Pair:
    cf, fa = draw_pair(3, 512)
    return Pair(cf, fa, cf.max(axis=2) > 0)


@pytest.fixture(scope="module")
def landmarks(pair: Pair) -> LandmarkPair:
    points = find_keypoints(view_maps(pair.cf, pair.mask).ridges, 20, 40)
    return LandmarkPair("a", "A", pair, points, points)


def test_ridges_of_flattened_brightness_are_the_vesselness(pair: Pair) -> None:
    assert np.array_equal(vesselness_of_flattened(flattened(pair.fa, pair.mask)), vesselness(pair.fa, pair.mask))


def test_descriptors_move_with_the_image(pair: Pair) -> None:
    maps = view_maps(pair.fa, pair.mask)
    moved = type(maps)(*(np.roll(values, 8, axis=1) for values in (maps.brightness, maps.ridges)))
    points = np.random.default_rng(0).uniform(150, 350, (10, 2))
    before, after = describe(maps, points), describe(moved, points + np.array([8, 0]))
    assert np.allclose(before, after, atol=1e-5)
    assert np.allclose(np.linalg.norm(before, axis=1), 1, atol=1e-5)
    assert describe(maps, np.empty((0, 2))).shape == (0, before.shape[1])


def test_a_new_descriptor_changes_nothing() -> None:
    raw = torch.nn.functional.normalize(torch.rand(5, 768), dim=1)
    with torch.no_grad():
        assert torch.allclose(ResidualDescriptor()(raw), raw, atol=1e-6)


def test_training_fits_its_pairs_and_is_exact(pair: Pair) -> None:
    source = training_pair("a", 0, pair)
    variants = [make_variant(source, HARD, number, 0) for number in range(2)]
    models = [train_descriptor(variants, 8, 0) for _ in range(2)]
    for one, other in zip(*(model.parameters() for model in models), strict=True):
        assert torch.equal(one, other)

    def margin(model: ResidualDescriptor) -> float:
        """How much more similar true partners are than others."""
        with torch.no_grad():
            cf, fa = (model(torch.from_numpy(side.astype(np.float32))) for side in (variants[0].cf, variants[0].fa))
        similarity = cf @ fa.T
        return float(similarity.diagonal().mean() - similarity.mean())

    assert margin(models[0]) > margin(ResidualDescriptor())


def test_arms_change_only_the_fa(pair: Pair) -> None:
    other = Pair(pair.cf, 255 - pair.fa, pair.mask)
    for changed in (invert_green(pair), exchange_fa(pair, other), shift_fa(pair)):
        inside = changed.mask
        assert np.array_equal(changed.cf[inside], pair.cf[inside])
        assert not changed.fa[~inside].any()
        assert not np.array_equal(changed.fa, pair.fa)
    inverted = invert_green(pair)
    assert np.array_equal(inverted.fa[pair.mask], 255 - pair.cf[pair.mask][:, 1])
    shifted = shift_fa(pair)
    assert np.array_equal(shifted.fa[shifted.mask], np.roll(pair.fa, 4, axis=1)[shifted.mask])


def test_an_fa_that_is_the_cf_is_matched_without_error(landmarks: LandmarkPair) -> None:
    same = LandmarkPair("a", "A", invert_green(landmarks.pair), landmarks.cf_points, landmarks.fa_points)
    score = score_image(make_test_image(same, STILL, 0, 0), lambda raw: raw)
    assert score.found == score.landmarks == len(landmarks.cf_points)
    assert score.error_px < 0.1


def test_warps_are_harder_and_reproducible(landmarks: LandmarkPair) -> None:
    still = score_image(make_test_image(landmarks, STILL, 0, 0), lambda raw: raw)
    hard = [score_image(make_test_image(landmarks, HARD, number, 0), lambda raw: raw) for number in (0, 0, 1)]
    assert hard[0] == hard[1] != hard[2]
    assert recall([still]) > recall(hard)


def test_partners_that_are_exchanged_are_not_found(landmarks: LandmarkPair) -> None:
    exchanged = LandmarkPair("a", "A", landmarks.pair, landmarks.cf_points, landmarks.fa_points[::-1])
    distances = np.linalg.norm(exchanged.cf_points - exchanged.fa_points, axis=1)
    assert (distances > TOLERANCE).mean() > 0.9
    assert recall([score_image(make_test_image(exchanged, STILL, 0, 0), lambda raw: raw)]) < 0.2


def image_score(eye: str, id: str, found: int, error: float = 1e6) -> ImageScore:
    return ImageScore(id, eye, "hard", found, 10, error)


def test_eyes_count_the_same_however_many_pairs_they_have() -> None:
    scores = [image_score("A", "a", 10), image_score("B", "b", 0), image_score("B", "c", 4), image_score("B", "c", 0)]
    summary = summarise([scores, [image_score("A", "a", 0), image_score("B", "b", 1)]], "hard", recall)
    assert summary.by_eye == pytest.approx({"A": 0.5, "B": 0.1})
    assert summary.interval.mean == pytest.approx(0.3)
    assert summary.seed_sd == pytest.approx(np.std([0.55, 0.05], ddof=1))


def test_auc_is_the_area_under_the_errors() -> None:
    errors = [5.0, 15.0, 1e6]
    grid = np.linspace(0, 20, 20001)
    area = np.mean([(np.array(errors) < limit).mean() for limit in grid])
    assert auc([image_score("A", "a", 0, error) for error in errors]) == pytest.approx(area, abs=1e-3)


def test_intervals_narrow_with_more_eyes_and_pair_the_eyes() -> None:
    few, many = bootstrap([0.0, 0.2, 0.4]), bootstrap([0.0, 0.2, 0.4] * 10)
    assert few.mean == pytest.approx(many.mean) == pytest.approx(0.2)
    assert few.low < many.low < 0.2 < many.high < few.high
    arm, other = (
        ArmScore(bootstrap(values), dict(zip("ABC", values, strict=True)), None)
        for values in ([0.1, 0.3, 0.5], [0.0, 0.2, 0.4])
    )
    assert difference(arm, other) == Interval(*[pytest.approx(0.1)] * 3)


@pytest.mark.parametrize(
    ("hard", "extreme", "eyes", "said"),
    [
        ((0.05, 0.01, 0.09), (0.02, 0.01, 0.03), 8, "better than no training: recall@1 +.05 [+.01, +.09] (hard)"),
        ((0.05, 0.01, 0.09), (0.02, -0.01, 0.03), 8, "better than no training under hard warps only"),
        ((0.05, 0.01, 0.09), (0.02, 0.01, 0.03), 4, "in these 4 eyes, which are too few to conclude this"),
        (
            (0.05, -0.01, 0.09),
            (0.02, 0.0, 0.03),
            4,
            'No difference between "generated pairs" and "no training" could be',
        ),
        ((-0.05, -0.09, -0.01), (0.0, -0.1, 0.1), 8, "worse than no training under hard warps only"),
        ((-0.05, -0.09, -0.01), (0.1, 0.1, 0.1), 8, "Mixed"),
    ],
)
def test_sentences_say_no_more_than_the_intervals(
    hard: tuple[float, float, float], extreme: tuple[float, float, float], eyes: int, said: str
) -> None:
    assert said in sentence(
        "generated", "untrained", "recall@1", {"hard": Interval(*hard), "extreme": Interval(*extreme)}, eyes
    )
