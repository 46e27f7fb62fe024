"""Show the sample pairs of a validation in one image, to follow a training at a glance."""

from pathlib import Path

import numpy as np
from PIL import Image

from retipair.data.contact_sheet import in_rows
from retipair.data.pair import load_image, save_image, synthetic_mark_of

GRID_NAME = "grid.png"
_SIDE = 256  # px: largest side of a view in the grid


def write_grid(folder: Path) -> np.ndarray:
    """Write grid.png, which shows CF and FA of all sample pairs in a folder. Return the image, (H, W, 3) uint8.

    The grid has two pairs in each row. Its metadata mark it as synthetic.
    """
    pairs = sorted(folder.glob("pair_*/"))
    grid = in_rows([_tile(pair) for pair in pairs])
    save_image(folder / GRID_NAME, grid, synthetic_mark_of([pairs[0] / "cf.png"]))
    return grid


def _tile(pair: Path) -> np.ndarray:
    """Return CF and FA of a pair side by side, (S, 2 S, 3) uint8, S at most 256 px."""
    views = [Image.fromarray(load_image(pair / f"{name}.png", "RGB")) for name in ("cf", "fa")]
    side = min(_SIDE, views[0].width)
    return np.concatenate([np.asarray(view.resize((side, side), Image.Resampling.BOX)) for view in views], axis=1)
