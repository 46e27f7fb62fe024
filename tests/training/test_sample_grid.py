"""The grid of sample pairs shows both views of every pair, and is marked as synthetic."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from retipair.data.pair import save_image
from retipair.training.sample_grid import write_grid

MARK = {"Synthetic": "yes: drawn by a diffusion model", "Seed": "0, pair 0"}


@pytest.mark.parametrize(("number", "rows"), [(1, 1), (3, 2), (4, 2)])
def test_each_pair_has_its_place(number: int, rows: int, tmp_path: Path) -> None:
    for pair in range(number):
        save_image(tmp_path / f"pair_{pair:02d}/cf.png", np.full((64, 64, 3), 10 + pair, np.uint8), MARK)
        save_image(tmp_path / f"pair_{pair:02d}/fa.png", np.full((64, 64), 100 + pair, np.uint8), MARK)
    grid = write_grid(tmp_path)
    assert grid.shape == (64 * rows, 256, 3)
    for pair in range(2 * rows):
        row, column = divmod(pair, 2)
        cf, fa = (grid[64 * row + 32, 128 * column + x].tolist() for x in (32, 96))
        assert cf == [10 + pair] * 3 if pair < number else [0] * 3
        assert fa == [100 + pair] * 3 if pair < number else [0] * 3
    with Image.open(tmp_path / "grid.png") as image:
        assert image.text["Synthetic"].startswith("yes")  # type: ignore[attr-defined]
        assert np.array_equal(np.asarray(image), grid)


def test_large_views_are_reduced(tmp_path: Path) -> None:
    save_image(tmp_path / "pair_00/cf.png", np.zeros((512, 512, 3), np.uint8), MARK)
    save_image(tmp_path / "pair_00/fa.png", np.zeros((512, 512), np.uint8), MARK)
    assert write_grid(tmp_path).shape == (256, 1024, 3)
