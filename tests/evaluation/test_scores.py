"""Scores of very many pairs must not depend on the limit from which pairs are subsampled."""

import numpy as np
import pytest

from retipair.evaluation import scores as scoring


def test_the_interval_of_many_values_is_the_one_that_resampling_finds(monkeypatch: pytest.MonkeyPatch) -> None:
    values = np.random.default_rng(0).exponential(size=1500)
    normal = scoring._interval(values)
    monkeypatch.setattr(scoring, "_MAX_RESAMPLED", 2000)
    resampled = scoring._interval(values)
    assert normal
    assert resampled
    width = resampled["high"] - resampled["low"]
    for side in ("low", "high"):
        assert normal[side] == pytest.approx(resampled[side], abs=0.05 * width)


def test_one_or_two_values_have_no_interval_and_none_no_mean() -> None:
    assert scoring._interval(np.zeros(0)) is None
    assert scoring._interval(np.array([1.0, 3.0])) == {"mean": 2.0, "low": None, "high": None, "n": 2}
