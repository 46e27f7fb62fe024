"""Make the images by which a page compares the two views of a pair, as PNG data URIs, which no server has to store."""

import base64
import io
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from retipair.data.dataset import PairRecord, file_bytes, load_pair
from retipair.data.pair import Pair, chessboard, synthetic_mark_of, write_png
from retipair.metrics.views import prepare_views

CF_ONLY, FA_ONLY, BOTH = (230, 159, 0), (86, 180, 233), (255, 255, 255)
"""Colours (R, G, B) of vessels in one view only, and in both views; distinguishable by colour-blind readers (Okabe and
Ito 2008)."""
_DIMMED = 0.45
"""Brightness of the CF below the vessels."""


@dataclass(frozen=True)
class ComparedPair:
    """The images of a pair as data URIs. `cf` and `fa` hold the bytes of the files, with their metadata."""

    cf: str
    fa: str
    checkerboard: str
    vessels: str


def compare_pair(record: PairRecord) -> ComparedPair:
    """Load a pair, and make its checkerboard and its vessel overlay.

    Both are marked as synthetic if at least one view is. Raises UserError, naming the file, for a pair that cannot be
    read.
    """
    pair = load_pair(record)
    mark = synthetic_mark_of([record.fa]) or synthetic_mark_of([record.cf])
    return ComparedPair(
        file_uri(record.cf), file_uri(record.fa), image_uri(chessboard(pair.cf, pair.fa), mark), vessel_uri(pair, mark)
    )


def file_uri(path: Path) -> str:
    """Return the content of a PNG file as a data URI."""
    return _uri(file_bytes(path))


def image_uri(image: np.ndarray, mark: Mapping[str, str]) -> str:
    """Return an image (H, W, 3) uint8 as the data URI of a PNG with the texts in `mark` as metadata."""
    stream = io.BytesIO()
    write_png(stream, image, mark, fast=True)
    return _uri(stream.getvalue())


def vessel_uri(pair: Pair, mark: Mapping[str, str]) -> str:
    views = prepare_views(pair)
    return image_uri(overlay_vessels(views.cf.grey, views.cf.vessels, views.fa.vessels), mark)


def overlay_vessels(grey: np.ndarray, cf: np.ndarray, fa: np.ndarray) -> np.ndarray:
    """Draw the vessels of both views over a dimmed image; return (H, W, 3) uint8.

    grey: the image below, (H, W) uint8.
    cf, fa: the vessels of each view, (H, W) bool; see CF_ONLY, FA_ONLY and BOTH for their colours.
    """
    image = np.repeat((grey * _DIMMED).astype(np.uint8)[..., None], 3, axis=2)
    for vessels, colour in ((cf, CF_ONLY), (fa, FA_ONLY), (cf & fa, BOTH)):
        image[vessels] = colour
    return image


def _uri(png: bytes) -> str:
    return "data:image/png;base64," + base64.b64encode(png).decode()
