import numpy as np

from retipair.data.contact_sheet import MOST_PAIRS, contact_sheet
from retipair.data.pair import Pair


def _pair(level: int) -> Pair:
    return Pair(np.full((64, 64, 3), level, np.uint8), np.full((64, 64), 255, np.uint8), np.ones((64, 64), dtype=bool))


def test_two_pairs_a_row_each_with_cf_fa_and_chessboard():
    sheet = contact_sheet([("a", _pair(100)), ("b", _pair(50)), ("c", _pair(10))])
    height, width = sheet.shape[0] // 2, sheet.shape[1] // 6
    middles = [int(sheet[height // 2, column * width + width // 4, 0]) for column in range(6)]
    assert middles[0] == 100
    assert middles[1] == middles[4] == 255
    assert middles[3] == 50
    board = sheet[16:height, 2 * width : 3 * width]
    assert set(np.unique(board)) == {100, 255}
    assert not sheet[height:, 3 * width :].any()


def test_many_pairs_do_not_make_the_sheet_endless():
    few, many = (contact_sheet((f"{n}", _pair(n)) for n in range(count)) for count in (MOST_PAIRS, MOST_PAIRS + 9))
    assert np.array_equal(few, many)
