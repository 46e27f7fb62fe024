"""Scores as dataclasses say what scores.json says; means of very many pairs are those of resampling."""

import json

import numpy as np
import pytest

from judging import Evaluated
from retipair.evaluation import means
from retipair.evaluation.means import Mean, mean_with_interval
from retipair.evaluation.scores import Scores, read_scores
from retipair.runtime.errors import UserError
from retipair.runtime.schema import json_sha256


def test_scores_are_read_from_their_file_and_give_its_content(evaluated: Evaluated) -> None:
    scores, values = read_scores(evaluated.out), json.loads((evaluated.out / "scores.json").read_text())
    assert scores.to_json() == values
    assert list(scores.to_json()) == list(values), "in the same order"
    assert scores.copies == ("1",)
    assert scores.closest[0].similarity == values["memorisation"]["closest"][0]["likeness"]
    assert scores.texture["cf"].slope["train"] == Mean(**values["texture"]["cf"]["slope"]["train"])
    assert scores.layouts.rows[0].texture["slope"] == values["layouts"]["rows"][0]["texture.slope"]
    assert scores.training
    assert scores.training.validation[-1].values["t200_cf"] == 0.5


def test_scores_of_an_earlier_version_without_later_keys_are_read(evaluated: Evaluated) -> None:
    values = read_scores(evaluated.out).to_json()
    del values["withheld"], values["memorisation"]["variations"], values["training"]["trained_on_real"]
    del values["drawn_views"], values["memorisation"]["given"]
    scores = Scores.from_json(signed(values))
    assert (scores.withheld, scores.drawn_views) == ((), {})
    assert scores.memorisation
    assert (scores.memorisation.variations, scores.memorisation.given) == (0, 0)


@pytest.mark.parametrize(
    ("key", "value", "said"),
    [
        ("sizes", {"train": "many"}, "sizes cannot be"),
        ("colours", {}, "unknown key 'colours'"),
        ("headline", 3, "headline cannot be 3"),
        ("verdict", [{"level": "good", "about": "copies"}], "key 'advice' is missing"),
        ("schema", "retipair.scores/1", "another version"),
    ],
)
def test_scores_of_another_form_are_refused(evaluated: Evaluated, key: str, value: object, said: str) -> None:
    values = read_scores(evaluated.out).to_json() | {key: value}
    with pytest.raises(UserError, match=f"^here: .*{said}"):
        Scores.from_json(signed(values), "here")
    with pytest.raises(UserError, match="edited or damaged|another version"):
        Scores.from_json(values)


def signed(values: dict) -> dict:
    """Return the values with the hash of their content, as scores.json has it."""
    content = {key: value for key, value in values.items() if key != "sha256"}
    return {**content, "sha256": json_sha256(content)}


def test_the_interval_of_many_values_is_the_one_that_resampling_finds(monkeypatch: pytest.MonkeyPatch) -> None:
    values = np.random.default_rng(0).exponential(size=1500)
    normal = mean_with_interval(values)
    monkeypatch.setattr(means, "_MAX_RESAMPLED", 2000)
    resampled = mean_with_interval(values)
    assert normal
    assert resampled
    tolerance = 0.05 * (resampled.upper - resampled.lower)
    assert normal.lower == pytest.approx(resampled.lower, abs=tolerance)
    assert normal.upper == pytest.approx(resampled.upper, abs=tolerance)


def test_one_or_two_values_have_no_interval_and_none_no_mean() -> None:
    assert mean_with_interval(np.zeros(0)) is None
    two = mean_with_interval(np.array([1.0, 3.0]))
    assert two == Mean(2.0, None, None, 2)
    assert (two.lower, two.upper) == (2.0, 2.0)
