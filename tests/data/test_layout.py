"""Two views become one joint image and come back: exactly, or by one bilinear resampling each way."""

import numpy as np
import pytest
from PIL import Image

from conftest import VIEW
from eyes import draw_pair
from retipair.data.layout import Layout, to_grey

Views = tuple[np.ndarray, np.ndarray]


@pytest.fixture(scope="module")
def views() -> Views:
    return draw_pair(3, VIEW)


def test_side_by_side_keeps_every_pixel_and_split_undoes_join(views: Views) -> None:
    layout = Layout("side_by_side", VIEW)
    joint = layout.join(*views)
    assert joint.shape == (*layout.joint_size, 3) == (VIEW, 2 * VIEW, 3)
    assert np.array_equal(joint[:, :VIEW], views[0])
    assert np.array_equal(joint[:, VIEW:], np.dstack([views[1]] * 3))
    cf, fa = layout.split(joint)
    assert np.array_equal(cf, views[0])
    assert np.array_equal(to_grey(fa)[0], views[1])


def test_squeezed_halves_widths_and_brings_them_back_bilinearly(views: Views) -> None:
    layout = Layout("squeezed", VIEW)
    joint = layout.join(*views)
    assert joint.shape == (*layout.joint_size, 3) == (VIEW, VIEW, 3)
    half = VIEW // 2
    for place, view in enumerate((views[0], np.dstack([views[1]] * 3))):
        narrow = Image.fromarray(view).resize((half, VIEW), Image.Resampling.BILINEAR)
        assert np.array_equal(joint[:, place * half : (place + 1) * half], np.asarray(narrow))
        wide = narrow.resize((VIEW, VIEW), Image.Resampling.BILINEAR)
        assert np.array_equal(layout.split(joint)[place], np.asarray(wide))


def test_squeezing_loses_detail_but_no_position(views: Views) -> None:
    """A slow ramp survives both ways: nothing is shifted by the half pixel that a wrong convention costs."""
    layout = Layout("squeezed", VIEW)
    ramp = np.broadcast_to(np.linspace(20, 220, VIEW), (VIEW, VIEW)).round().astype(np.uint8)
    _, fa = layout.split(layout.join(np.dstack([ramp] * 3), ramp))
    inner = slice(4, -4)
    assert np.abs(fa[:, inner, 0].astype(int) - ramp[:, inner]).max() <= 1
    cf, _ = layout.split(layout.join(*views))
    assert 0 < np.abs(cf.astype(int) - views[0]).mean() < 15


@pytest.mark.parametrize("name", ["side_by_side", "squeezed"])
def test_neither_half_reaches_into_the_other(name: str) -> None:
    layout = Layout(name, VIEW)  # type: ignore[arg-type]
    white, black = np.full((VIEW, VIEW), 255, np.uint8), np.zeros((VIEW, VIEW), np.uint8)
    cf, fa = layout.split(layout.join(np.dstack([black] * 3), white))
    assert not cf.any()
    assert (fa == 255).all()


def test_chroma_is_what_turning_grey_removes() -> None:
    grey = np.arange(64, dtype=np.uint8).reshape(8, 8)
    image, chroma = to_grey(np.dstack([grey] * 3))
    assert np.array_equal(image, grey)
    assert chroma == 0
    tinted = np.dstack([grey + 10, grey, grey + 2])
    image, chroma = to_grey(tinted)
    assert chroma == 10
    assert np.array_equal(image, grey + 4)
    half = np.concatenate([tinted, np.dstack([grey] * 3)])
    assert to_grey(half)[1] == 5  # a mean over pixels
    assert to_grey(np.full((2, 2, 3), 255, np.uint8))[0].max() == 255
