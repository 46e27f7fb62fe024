"""Make the pictures of the README from pairs that `retipair demo` generated.

retipair demo
python docs/make_picture.py demo/results/out_joint_sdxl_cffa_pairs_preds/demo/new 5 4 2 6
python docs/make_picture.py demo/results/out_joint_sdxl_cffa_pairs_preds/demo/angiogram 1 docs/angiogram.png
"""

import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from retipair.data.dataset import load_pair, read_dataset
from retipair.data.pair import Pair, chessboard, synthetic_mark_of

OUT = Path(__file__).parent / "pairs.png"
PER_ROW = 2  # pairs
GAP = 4  # px of white between the views
COLOURS = 256  # a palette makes the file three times smaller


def make_picture(folder: Path, ids: Sequence[str], out: Path = OUT) -> None:
    """Draw generated pairs, each as CF, FA and checkerboard, with the metadata of the first FA.

    Raises ValueError if a pair is missing, or if its FA is not marked as synthetic.
    """
    records = {record.id: record for record in read_dataset(folder)}
    if missing := sorted(set(ids) - set(records)):
        raise ValueError(f"{folder}: has no pair {missing[0]}")
    chosen = [records[name] for name in ids]
    mark = synthetic_mark_of([record.fa for record in chosen])
    if not mark:
        raise ValueError(f"{folder}: contains images that are not marked as synthetic")
    tiles = [_tile(load_pair(record)) for record in chosen]
    rows = [_with_gaps(tiles[start : start + PER_ROW], axis=1) for start in range(0, len(tiles), PER_ROW)]
    picture = _with_gaps(rows, axis=0)
    info = PngInfo()
    for key, text in mark.items():
        info.add_itxt(key, text)
    few = Image.fromarray(picture).quantize(COLOURS, dither=Image.Dither.FLOYDSTEINBERG)
    few.save(out, pnginfo=info, optimize=True)


def _tile(pair: Pair) -> np.ndarray:
    """Return (H, 3 W + gaps, 3) uint8."""
    grey = np.repeat(pair.fa[..., None], 3, axis=2)
    return _with_gaps([pair.cf, grey, chessboard(pair.cf, pair.fa)], axis=1)


def _with_gaps(images: Sequence[np.ndarray], axis: int) -> np.ndarray:
    shape = list(images[0].shape)
    shape[axis] = GAP
    gap = np.full(shape, 255, np.uint8)
    return np.concatenate([part for image in images for part in (gap, image)][1:], axis=axis)


if __name__ == "__main__":
    ids = [word for word in sys.argv[2:] if word.isdigit()]
    make_picture(Path(sys.argv[1]), ids, *map(Path, sys.argv[2 + len(ids) :]))
