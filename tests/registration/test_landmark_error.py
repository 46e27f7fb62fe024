import numpy as np
import pytest

from retipair.registration.landmark_error import FAILURE_PX, error_auc, landmark_errors
from retipair.registration.landmarks import Landmarks


@pytest.mark.parametrize(
    ("errors", "expected"),
    [
        ([0.0], [1.0, 1.0, 1.0]),
        ([FAILURE_PX], [0.0, 0.0, 0.0]),
        ([2.0], [1 - 2 / 10, 1 - 2 / 20, 1 - 2 / 40]),
        ([7.0, 1.0, FAILURE_PX, 2.0], [2.0 / 5, 5.875 / 10, 13.375 / 20]),  # areas of trapezoids, by hand
        ([], [0.0, 0.0, 0.0]),
    ],
)
def test_the_area_under_the_curve_is_that_of_the_papers(errors: list[float], expected: list[float]) -> None:
    assert error_auc(errors) == pytest.approx(expected)


def test_the_area_is_the_mean_height_of_the_curve() -> None:
    """The curve through the sorted errors, sampled finely instead of by trapezoids."""
    errors = np.random.default_rng(0).uniform(0, 15, 20)
    x = np.linspace(0, 10, 200_001)
    below = np.sort(errors[errors < 10])
    curve = np.interp(x, [0, *below], np.arange(len(below) + 1) / 20)
    assert error_auc(errors.tolist(), [10]) == pytest.approx([curve.mean()], abs=1e-4)


def test_errors_are_scaled_to_a_cf_512_px_wide() -> None:
    points = np.array([[10.0, 20.0], [30.0, 5.0]])
    shift = np.array([[1.0, 0, 6], [0, 1, 8], [0, 0, 1]])
    assert landmark_errors(shift, Landmarks(points, points), 1024) == pytest.approx([5.0, 5.0])
    assert landmark_errors(shift, Landmarks(points + np.array([6, 8]), points), 1024) == pytest.approx([0.0, 0.0])
