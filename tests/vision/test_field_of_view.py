import numpy as np
import pytest

from retipair.vision.field_of_view import contains, erode, field_of_view

SIZE = 400


def _aperture(height: int = SIZE, width: int = SIZE) -> np.ndarray:
    """A circle clipped at top and bottom, (height, width) bool."""
    rows, columns = np.mgrid[:height, :width]
    circle = np.hypot(rows - height / 2, columns - width / 2) < 0.47 * width
    return circle & (abs(rows - height / 2) < 0.4 * height)


def _agreement(mask: np.ndarray, truth: np.ndarray) -> float:
    return float((mask & truth).sum() / (mask | truth).sum())


@pytest.fixture
def aperture() -> np.ndarray:
    return _aperture()


def _view(aperture: np.ndarray, seed: int = 0) -> np.ndarray:
    texture = np.random.default_rng(seed).integers(90, 130, aperture.shape)
    return np.where(aperture, texture, 0).astype(np.uint8)


def test_dark_fovea_and_haemorrhage_are_no_holes(aperture):
    view = _view(aperture)
    view[180:260, 160:280] = 0
    assert _agreement(field_of_view(view), aperture) > 0.97


def test_a_haemorrhage_at_the_rim_is_field(aperture):
    view = _view(aperture)
    view[150:230, 330:] = 0
    assert field_of_view(view)[190, 370]


def test_a_notch_is_no_field(aperture):
    view = _view(aperture)
    view[190:210, 380:398] = 120
    assert not field_of_view(view)[200, 396]


def test_colour_and_grey_views_agree(aperture):
    view = _view(aperture)
    colour = np.stack([view, view // 2, view // 4], axis=-1)
    assert np.array_equal(field_of_view(colour), field_of_view(view))


def test_a_noisy_border_is_out(aperture):
    noise = np.random.default_rng(1).integers(0, 9, aperture.shape).astype(np.uint8)
    assert _agreement(field_of_view(np.maximum(_view(aperture), noise)), aperture) > 0.97


def test_a_painted_grey_border_is_out_even_at_the_fields_own_brightness(aperture):
    view = np.where(aperture, _view(aperture), 110).astype(np.uint8)
    assert _agreement(field_of_view(view), aperture) > 0.95


def test_a_view_without_border_is_valid_everywhere():
    view = np.random.default_rng(0).integers(60, 180, (300, 200)).astype(np.uint8)
    assert field_of_view(view).all()


def test_a_large_view_keeps_its_shape():
    aperture = _aperture(900, 1100)
    assert _agreement(field_of_view(_view(aperture)), aperture) > 0.97


@pytest.mark.parametrize("shape", [(1, 1), (7, 5), (64, 64)])
def test_an_all_black_view_is_valid_nowhere(shape):
    assert not field_of_view(np.zeros(shape, dtype=np.uint8)).any()


def test_erosion_counts_the_frame_as_an_edge():
    inside = erode(np.ones((20, 30), dtype=bool), 4)
    assert inside[4:-4, 4:-4].all()
    assert inside.sum() == 12 * 22


@pytest.mark.parametrize("margin", [0, 1, 7])
def test_points_are_contained_if_their_pixels_are_in_the_eroded_mask(margin):
    aperture = _aperture(60, 80)
    rows, columns = np.mgrid[-3:63, -3:83]
    points = np.column_stack([columns.ravel() + 0.4, rows.ravel() - 0.4])
    expected = np.pad(erode(aperture, margin), 3)
    assert np.array_equal(contains(aperture, points, margin).reshape(expected.shape), expected)


def test_no_point_is_contained_outside_the_image():
    assert not contains(np.ones((4, 4), dtype=bool), np.array([[-9.0, 2.0], [2.0, 99.0]])).any()
    assert contains(np.ones((4, 4), dtype=bool), np.empty((0, 2)), 1).shape == (0,)
