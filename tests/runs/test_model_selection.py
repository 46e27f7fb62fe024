"""What makes a step the best."""

import pytest

from retipair.runs.model_selection import Validation, better, reason, validation_of

BEST = Validation(step=2, loss=0.5, consistency=0.4)
LOWER, HIGHER = -0.01, 0.01


@pytest.mark.parametrize(
    ("loss", "consistency", "by"),
    [
        (LOWER, 0.0, {"loss", "both"}),
        (LOWER, -0.1, {"loss"}),
        (0.0, HIGHER, {"consistency", "both"}),
        (HIGHER, HIGHER, {"consistency"}),
        (LOWER, HIGHER, {"loss", "consistency", "both"}),
        (0.0, 0.0, set()),
        (-1e-5, 1e-4, set()),  # no more than noise
    ],
)
def test_a_step_is_better_by_what_was_asked(loss: float, consistency: float, by: set[str]) -> None:
    now = Validation(4, BEST.loss + loss, 0.4 + consistency)
    assert {how for how in ("loss", "consistency", "both") if better(now, BEST, how)} == by  # type: ignore[arg-type]


def test_the_first_is_the_best_so_far() -> None:
    assert better(BEST, None, "both")


@pytest.mark.parametrize("before", [None, BEST])
def test_a_reason_keeps_the_validation(before: Validation | None) -> None:
    assert validation_of(reason(BEST, before, "loss")) == BEST
