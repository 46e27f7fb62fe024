"""Draw a contact sheet: one image that shows CF, FA and a chessboard of both for many pairs, to check the alignment.

The chessboards are large enough to see a misalignment of 5 px in views of 512 px.
"""

from collections.abc import Iterable, Sequence
from itertools import islice
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw

from retipair.data.manifest import PreparedPair
from retipair.data.pair import Pair, chessboard, load_image, px_at_512, synthetic_mark_of

SHEET_NAME = "contact_sheet.png"
MAX_PAIRS = 48  # limits the sheet's height and the size of its file, which is about 16 MB for photographs
_BOARD = 512  # px, the side of the chessboard; views of 512 px are shown in it at full resolution
_SIDE = _BOARD // 2  # px, the side of CF and of FA
_TITLE_HEIGHT = 16  # px, the height of the line above each pair
_PER_ROW = 2


def contact_sheet(pairs: Iterable[tuple[str, Pair]]) -> np.ndarray:
    """Return the contact sheet of the first 48 pairs, two per row, as (H, W, 3) uint8.

    pairs: the title and the views of each pair.
    In a chessboard of misaligned views, vessels are broken at the edges of the tiles.
    """
    return in_rows([_tile(title, pair) for title, pair in islice(pairs, MAX_PAIRS)])


def load_titled(folder: Path, record: PreparedPair, doubt: str | None = None) -> tuple[str, Pair]:
    """Load a pair of a prepared folder; return (title, pair) for `contact_sheet`.

    The title states the id, the split, the residual and the consistency.
    doubt: the reason why a user should check the pair, or None. The reason is added to the title.
    """
    cf, fa, mask = (
        load_image(folder / path, mode) for path, mode in ((record.cf, "RGB"), (record.fa, "L"), (record.mask, "L"))
    )
    residual = "" if record.residual_px is None else f"  residual {px_at_512(record.residual_px, record.size):.1f} px"
    title = f"{record.id}  {record.split}{residual}  consistency {record.consistency:.2f}"
    title += f"  CHECK: {doubt}" if doubt else ""
    return title, Pair(cf, fa, mask > 0)


def sheet_mark(folder: Path, records: Sequence[PreparedPair]) -> dict[str, str]:
    """Return the PNG text metadata of a contact sheet: a mark if any view in the sheet is synthetic, else {}.

    folder: the prepared folder of the pairs.
    records: all pairs in the order in which they were given to `contact_sheet`, which shows the first 48.
    """
    shown = records[:MAX_PAIRS]
    count = sum(any(synthetic_mark_of([folder / path]) for path in (record.cf, record.fa)) for record in shown)
    return {"Synthetic": f"yes: {count} of {len(shown)} pairs are synthetic; not for clinical use"} if count else {}


def in_rows(tiles: Sequence[np.ndarray]) -> np.ndarray:
    """Return one image of tiles (h, w, 3) of equal size, two per row; the last row is filled with black."""
    filled = [*tiles, *[np.zeros_like(tiles[0])] * (-len(tiles) % _PER_ROW)]
    rows = (filled[start : start + _PER_ROW] for start in range(0, len(filled), _PER_ROW))
    return np.concatenate([np.concatenate(row, axis=1) for row in rows])


def _tile(title: str, pair: Pair) -> np.ndarray:
    sheet = Image.new("RGB", (_SIDE + _BOARD, _TITLE_HEIGHT + _BOARD))
    places = ((pair.cf, 0, 0, _SIDE), (pair.fa, 0, _SIDE, _SIDE), (chessboard(pair.cf, pair.fa), _SIDE, 0, _BOARD))
    for view, x, y, side in places:
        resized = Image.fromarray(view).resize((side, side), Image.Resampling.BOX)
        sheet.paste(resized, (x, _TITLE_HEIGHT + y))
    ImageDraw.Draw(sheet).text((4, 2), title, fill="white")
    return np.asarray(sheet)
