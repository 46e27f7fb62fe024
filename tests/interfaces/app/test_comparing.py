"""The images that compare two views: known pixels, the bytes of the files, and marks as synthetic."""

import base64
import io
from pathlib import Path

import numpy as np
from PIL import Image

from eyes import draw_pair
from retipair.data.dataset import read_dataset
from retipair.data.pair import save_image
from retipair.interfaces.app.comparing import BOTH, CF_ONLY, FA_ONLY, compare_pair, overlay_vessels

MARK = {"Synthetic": "yes: in a test"}


def image_of(uri: str) -> Image.Image:
    return Image.open(io.BytesIO(base64.b64decode(uri.removeprefix("data:image/png;base64,"))))


def test_vessels_of_each_view_have_their_colours() -> None:
    grey = np.full((2, 2), 200, np.uint8)
    cf, fa = np.array([[True, True], [False, False]]), np.array([[True, False], [True, False]])
    image = overlay_vessels(grey, cf, fa)
    assert [tuple(image[place]) for place in ((0, 0), (0, 1), (1, 0))] == [BOTH, CF_ONLY, FA_ONLY]
    assert tuple(image[1, 1]) == (90, 90, 90)


def test_views_are_the_bytes_of_their_files_and_mistakes_are_visible(prepared: Path) -> None:
    record = read_dataset(prepared)[0]
    compared = compare_pair(record)
    assert base64.b64decode(compared.cf.partition(",")[2]) == record.cf.read_bytes()
    assert base64.b64decode(compared.fa.partition(",")[2]) == record.fa.read_bytes()
    board = np.asarray(image_of(compared.checkerboard))
    assert np.array_equal(board[:16, :16], np.asarray(Image.open(record.cf))[:16, :16])
    assert np.array_equal(board[:16, 16:32, 0], np.asarray(Image.open(record.fa))[:16, 16:32])
    vessels = np.asarray(image_of(compared.vessels))
    assert vessels.shape == (512, 512, 3)
    assert (vessels == BOTH).all(axis=-1).sum() > 1000  # the views of this pair agree


def test_made_images_are_marked_synthetic_if_a_view_is(tmp_path: Path, prepared: Path) -> None:
    [record, *_] = read_dataset(prepared)
    assert "Synthetic" not in image_of(compare_pair(record).checkerboard).info
    for name, view in zip(("cf", "fa"), draw_pair(0, 128), strict=True):
        save_image(tmp_path / f"{name}.png", view, MARK if name == "fa" else None)
    mixed = type(record)(*("x", "x", "train", tmp_path, "cf.png", "fa.png", None, None, 128))
    compared = compare_pair(mixed)
    for uri in (compared.checkerboard, compared.vessels, compared.fa):
        assert image_of(uri).info["Synthetic"] == MARK["Synthetic"]
    assert "Synthetic" not in image_of(compared.cf).info
