from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest
from skimage.draw import line

from retipair.metrics.vessels import VesselTree, fractal_dimension, tortuosity, vessel_tree
from retipair.metrics.views import PairViews, PreparedView


class Drawn(PreparedView):
    """A view whose vessels are given."""

    def __init__(self, vessels: np.ndarray) -> None:
        super().__init__(np.zeros(vessels.shape, np.uint8), np.ones_like(vessels), np.ones_like(vessels))
        self.__dict__ |= {"vessels": vessels, "inside": np.ones_like(vessels)}


def stripes(width: int, apart: int = 64) -> np.ndarray:
    return np.tile((np.arange(512) % apart < width)[:, None], (1, 512))


@pytest.mark.parametrize(("width", "which"), [(1, "thin"), (5, "medium"), (9, "wide")])
def test_each_calibre_counts_the_area_of_its_own_vessels(width, which):
    found = vars(vessel_tree(Drawn(stripes(width))))
    densities = {name: found[f"density_{name}"] for name in ("thin", "medium", "wide")}
    assert densities.pop(which) == pytest.approx(width / 64, rel=0.1)
    assert max(densities.values()) < 0.001  # the ends of skeletons


def test_straight_vessels_are_not_tortuous_and_winding_ones_are():
    x = np.arange(20, 490)

    def drawn(y: np.ndarray) -> np.ndarray:
        image = np.zeros((512, 512), bool)
        points = list(zip(y.round().astype(int), x, strict=True))
        for (y0, x0), (y1, x1) in pairwise(points):
            image[line(y0, x0, y1, x1)] = True
        return image

    waves = [drawn(256 + height * np.sin(x / 15)) for height in (0, 5, 15, 30)]
    found = [tortuosity(one) for one in waves]
    assert found[0] == pytest.approx(1)
    assert found == sorted(found)
    assert found[2] > 1.2


def test_the_dimension_of_a_line_is_one_and_of_a_plane_two():
    line_across, plane = np.zeros((512, 512), bool), np.ones((512, 512), bool)
    line_across[256] = True
    assert fractal_dimension(line_across) == pytest.approx(1, abs=0.01)
    assert fractal_dimension(plane) == pytest.approx(2, abs=0.01)


def test_nothing_has_no_tree(measured):
    assert vessel_tree(Drawn(np.zeros((512, 512), bool))) == VesselTree(0.0, 0.0, 0.0, 0.0, 0.0)


def test_an_eye_has_a_tree_of_which_the_wide_vessels_are_the_least_area_lost(measured: list[PairViews]):
    found = vessel_tree(measured[0].fa)
    assert 1 < found.fractal_dimension < 2
    assert 1 < found.tortuosity < 1.5
    emptied = replace(measured[0].fa, pixels=np.zeros_like(measured[0].fa.pixels))
    assert vessel_tree(emptied) == VesselTree(0.0, 0.0, 0.0, 0.0, 0.0)


def test_the_fractal_dimension_counts_the_boxes_that_lines_hit() -> None:
    lines = np.random.default_rng(0).random((300, 500)) < 0.01
    rows, columns = np.nonzero(lines)
    sides = [2, 4, 8, 16, 32, 64, 128]
    counts = [len(set(zip((rows // side).tolist(), (columns // side).tolist(), strict=True))) for side in sides]
    assert fractal_dimension(lines) == -np.polyfit(np.log(sides), np.log(counts), 1)[0]
