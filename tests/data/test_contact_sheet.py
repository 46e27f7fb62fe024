import numpy as np

from retipair.data.contact_sheet import MAX_PAIRS, contact_sheet
from retipair.data.pair import Pair, chessboard

HEAD, BOARD, SMALL = 16, 512, 256


def _pair(level: int) -> Pair:
    return Pair(np.full((64, 64, 3), level, np.uint8), np.full((64, 64), 255, np.uint8), np.ones((64, 64), dtype=bool))


def test_two_pairs_a_row_each_with_cf_above_fa_and_chessboard():
    sheet = contact_sheet([("a", _pair(100)), ("b", _pair(50)), ("c", _pair(10))])
    height, width = HEAD + BOARD, SMALL + BOARD
    assert sheet.shape == (2 * height, 2 * width, 3)
    for number, level in enumerate((100, 50, 10)):
        top, left = (number // 2) * height + HEAD, (number % 2) * width
        assert set(np.unique(sheet[top : top + SMALL, left : left + SMALL])) == {level}
        assert set(np.unique(sheet[top + SMALL : top + BOARD, left : left + SMALL])) == {255}
        assert set(np.unique(sheet[top : top + BOARD, left + SMALL : left + width])) == {level, 255}
    assert not sheet[height:, width:].any()


def test_the_chessboard_of_512_px_is_shown_pixel_by_pixel():
    """Or a shift of 5 px would be 2 px, which nobody sees."""
    rng = np.random.default_rng(0)
    cf, fa = rng.integers(0, 256, (512, 512, 3), np.uint8), rng.integers(0, 256, (512, 512), np.uint8)
    sheet = contact_sheet([("a", Pair(cf, fa, np.ones((512, 512), dtype=bool)))])
    assert np.array_equal(sheet[HEAD : HEAD + BOARD, SMALL : SMALL + BOARD], chessboard(cf, fa))


def test_many_pairs_do_not_make_the_sheet_endless():
    few, many = (contact_sheet((f"{n}", _pair(n)) for n in range(count)) for count in (MAX_PAIRS, MAX_PAIRS + 9))
    assert np.array_equal(few, many)
