"""Which pixels are vessels, held against rendered eyes whose every vessel is known, and that nobody trained on."""

from functools import cache

import numpy as np
import pytest

from retipair.metrics.consistency import dice
from retipair.phantoms.cameras import CAMERAS
from retipair.phantoms.draw import Phantom, draw_phantom
from retipair.vision.ridges import inside_rim
from retipair.vision.segmentation import vessel_probability, vessels

SEED = 99_000


@cache
def eye(number: int, camera: str) -> Phantom:
    return draw_phantom(SEED, number, 512, camera, None, None)


def agreement(view: np.ndarray, drawn: Phantom) -> float:
    inside = inside_rim(drawn.field)
    return dice(vessels(view, drawn.field) & inside, (drawn.layers["vessels"] > 0) & inside)


@pytest.mark.nightly
def test_it_finds_the_vessels_of_every_camera_also_of_one_that_it_never_saw() -> None:
    eyes = [eye(number, camera) for number, camera in enumerate(CAMERAS)]
    cf, fa = ([agreement(getattr(one, view), one) for one in eyes] for view in ("cf", "fa"))
    assert np.mean(cf) >= 0.80
    assert np.mean(fa) >= 0.85


def test_nothing_lies_outside_the_mask_or_where_there_is_no_view() -> None:
    drawn = eye(0, "amber")
    half = drawn.field & (np.arange(512) < 256)
    assert not (vessels(drawn.fa, half) & ~half).any()
    assert not vessels(np.zeros((512, 512), np.uint8), np.ones((512, 512), bool)).any()


@pytest.mark.parametrize("shape", [(96, 130), (65, 47)])
def test_views_of_any_shape_have_an_answer_of_that_shape(shape: tuple[int, int]) -> None:
    drawn = eye(0, "amber")
    part = (slice(200, 200 + shape[0]), slice(200, 200 + shape[1]))
    found = vessel_probability(drawn.fa[part], drawn.field[part])
    assert found.shape == shape
    assert 0 <= found.min() <= found.max() <= 1


def test_a_mirrored_view_has_mirrored_vessels() -> None:
    drawn = eye(0, "amber")
    straight, mirrored = vessels(drawn.fa, drawn.field), vessels(drawn.fa[:, ::-1], drawn.field[:, ::-1])[:, ::-1]
    assert dice(straight, mirrored) > 0.95
