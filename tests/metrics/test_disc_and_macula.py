"""Disc and macula are found where rendered eyes have them, and not where they were cut off."""

import numpy as np
import pytest

from retipair.data.pair import Pair
from retipair.metrics.anatomy import Anatomy, anatomy
from retipair.metrics.views import prepare_views
from retipair.phantoms.draw import Phantom, draw_phantom

FAR = 45.0
"""px: a disc has a radius of 36."""


@pytest.fixture(scope="module")
def eyes() -> list[Phantom]:
    return [draw_phantom(77_500, number, 512, None, "healthy", None) for number in range(4)]


def found(drawn: Phantom, view: str, mask: np.ndarray) -> Anatomy:
    return anatomy(getattr(prepare_views(Pair(drawn.cf, drawn.fa, mask)), view))


@pytest.mark.parametrize("view", ["cf", "fa"])
def test_the_disc_is_found_where_it_is_and_the_macula_beside_it(eyes: list[Phantom], view: str) -> None:
    places = [found(eye, view, eye.field) for eye in eyes]
    discs = [np.hypot(*np.subtract(one.disc, eye.disc)) for one, eye in zip(places, eyes, strict=True) if one.disc]
    foveas = [
        np.hypot(*np.subtract(one.macula, eye.fovea)) for one, eye in zip(places, eyes, strict=True) if one.macula
    ]
    assert len(discs) >= 3
    assert np.median(discs) < FAR
    assert len(foveas) >= 2
    assert np.median(foveas) < 2 * FAR


@pytest.mark.parametrize("view", ["cf", "fa"])
def test_where_the_disc_is_cut_off_none_is_found(eyes: list[Phantom], view: str) -> None:
    columns = np.arange(512)
    apart = [abs(columns - eye.disc[0]) > 60 for eye in eyes]
    sides = [away & ((columns < eye.disc[0]) == (eye.disc[0] > 256)) for away, eye in zip(apart, eyes, strict=True)]
    places = [found(eye, view, eye.field & side[None]) for eye, side in zip(eyes, sides, strict=True)]
    assert sum(one.disc is not None for one in places) <= 1


def test_nothing_shows_nothing(black: Pair) -> None:
    assert anatomy(prepare_views(black).fa) == Anatomy(None, None)
