"""All pairs at a glance: CF, FA and their chessboard, row by row."""

from collections.abc import Iterable, Sequence
from itertools import islice
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw

from retipair.data.manifest import PreparedPair
from retipair.data.pair import Pair, chessboard, load_image, px_at_512

SHEET_NAME = "contact_sheet.png"
MOST_PAIRS = 48  # what a screen can still scroll through
_SIDE = 256  # px of one view on the sheet
_HEAD = 16  # px for the pair's title
_PER_ROW = 2


def contact_sheet(titled: Iterable[tuple[str, Pair]]) -> np.ndarray:
    """The first 48 pairs as (title, pair), two a row, (H, W, 3) uint8; a break in a vessel is a fault of alignment."""
    tiles = [_tile(title, pair) for title, pair in islice(titled, MOST_PAIRS)]
    rows = [_row(tiles[first : first + _PER_ROW]) for first in range(0, len(tiles), _PER_ROW)]
    return np.concatenate(rows)


def titled(folder: Path, record: PreparedPair) -> tuple[str, Pair]:
    """A pair of a prepared folder, with its numbers for a title."""
    cf, fa, mask = (
        load_image(folder / path, mode) for path, mode in ((record.cf, "RGB"), (record.fa, "L"), (record.mask, "L"))
    )
    residual = "" if record.residual_px is None else f"  residual {px_at_512(record.residual_px, record.size):.1f} px"
    title = f"{record.id}  {record.split}{residual}  consistency {record.consistency:.2f}"
    return title, Pair(cf, fa, mask > 0)


def _row(tiles: Sequence[np.ndarray]) -> np.ndarray:
    blanks = [np.zeros_like(tiles[0])] * (_PER_ROW - len(tiles))
    return np.concatenate([*tiles, *blanks], axis=1)


def _tile(title: str, pair: Pair) -> np.ndarray:
    fa = np.repeat(pair.fa[..., None], 3, axis=2)
    sheet = Image.new("RGB", (3 * _SIDE, _HEAD + _SIDE))
    for column, view in enumerate((pair.cf, fa, chessboard(pair.cf, pair.fa))):
        small = Image.fromarray(view).resize((_SIDE, _SIDE), Image.Resampling.BOX)
        sheet.paste(small, (column * _SIDE, _HEAD))
    ImageDraw.Draw(sheet).text((4, 2), title, fill="white")
    return np.asarray(sheet)
