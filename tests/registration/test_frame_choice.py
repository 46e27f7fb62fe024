"""The frame is chosen in which a registration finds the vessels of the photograph."""

import numpy as np
import pytest
from scipy.ndimage import gaussian_filter

from eyes import draw_raw
from retipair.registration.align import Limits, align
from retipair.registration.frame_choice import LoadView, choose_views
from retipair.registration.warp import View

SIZE = 256


def frames(fa: np.ndarray, fillings: list[float]) -> list[np.ndarray]:
    """Frames of an angiogram whose vessels are filled to these degrees, with noise and small movements of the eye."""
    rng, shading = np.random.default_rng(0), gaussian_filter(fa.astype(float), 6)
    filled = [shading + filling * (fa - shading) + rng.normal(0, 4, fa.shape) * (fa > 8) for filling in fillings]
    moved = [np.roll(frame, rng.integers(-6, 7, 2), axis=(0, 1)) for frame in filled]
    return [np.clip(frame, 0, 255).round().astype(np.uint8) for frame in moved]


def loads(images: list[np.ndarray]) -> list[LoadView]:
    return [lambda image=image: View(image) for image in images]  # type: ignore[misc]


@pytest.mark.nightly
def test_the_filled_vessels_and_the_right_photograph_are_chosen() -> None:
    eye, other = draw_raw(seed=1, size=SIZE), draw_raw(seed=2, size=SIZE)
    assert choose_views(loads([other.cf, eye.cf]), loads(frames(eye.fa, [0.1, 1]))) == (1, 1)


@pytest.mark.nightly
@pytest.mark.parametrize("seed", range(3))
def test_the_choice_is_that_of_a_full_registration(seed: int) -> None:
    """Or a frame whose consistency is less than 0.03 lower, as those of two frames of the filled phase may be."""
    eye = draw_raw(seed=seed, size=SIZE)
    given = frames(eye.fa, [0, 0.2, 0.6, 1, 0.5, 0.1])
    _, chosen = choose_views(loads([eye.cf]), loads(given))
    scores = [align(eye.cf, frame, None, "features", 512, Limits()).consistency for frame in given]
    assert scores[chosen] > max(scores) - 0.03


def test_views_without_vessels_are_no_error() -> None:
    blank = np.zeros((64, 64), np.uint8)
    assert choose_views(loads([np.zeros((64, 64, 3), np.uint8)]), loads([blank])) == (0, 0)
