"""Write the lists of pairs that the dataset `image_pairs` of glue-factory reads.

The format follows the code of cvg/glue-factory, commit 2d17e3b:

- gluefactory/datasets/image_pairs.py: a line is split at single spaces into name0, name1 and, with
  `extra_data: homography`, the nine numbers of H_0to1, row by row, in px of the image files.
- gluefactory/utils/image.py, ImagePreprocessor: an image is resized with pixel areas aligned, and points are scaled by
  diag(s_x, s_y, 1); the dataset applies this to H on both sides.
- gluefactory/models/extractors (superpoint_open, disk_kornia, grid_extractor, sift with pycolmap) and
  gluefactory_nonfree/superpoint.py: the centre of the top-left pixel is (0.5, 0.5), as in COLMAP.

H is therefore written for coordinates in which pixel centres are half-integers. There, scaling by diag(s) is exact at
all sizes. With a homography for integer pixel centres, points would be wrong by |(A - 1) (0.5, 0.5)| px, where A is the
local derivative (2, 2) of the homography: by 0.54 px for a rotation by 45 degrees.
"""

from collections.abc import Iterable
from pathlib import Path

import numpy as np

from retipair.matching.reader_formats.common import WrittenForm, homography, translation, without_elastic
from retipair.matching.samples import SAMPLES_NAME, MatchSample
from retipair.runtime.atomic_io import atomic_write_dir, write_text
from retipair.runtime.errors import FileError

FOLDER = "glue_factory"


def write_glue_factory(folder: Path, samples: Iterable[MatchSample]) -> WrittenForm:
    """Write `folder/glue_factory/pairs_{split}.txt` for each split, with image paths relative to `folder`.

    Raises UserError if the path of an image contains white space, at which glue-factory splits the line.
    """
    selected, target = without_elastic(samples), folder / FOLDER
    texts = {
        f"pairs_{split}.txt": "".join(_line(sample, folder) for sample in chosen)
        for split, chosen in selected.by_split().items()
    }

    def fill(partial: Path) -> None:
        for name, text in texts.items():
            write_text(partial / name, text)

    atomic_write_dir(target, fill)
    return WrittenForm(target, len(selected.samples), selected.elastic)


def _line(sample: MatchSample, folder: Path) -> str:
    for name in (sample.cf, sample.fa):
        if len(name.split()) != 1:
            raise FileError(folder / SAMPLES_NAME, f"path {name!r} has white space, which glue-factory cannot read")
    numbers = " ".join(repr(float(value)) for value in for_half_integer_centres(homography(sample)).flat)
    return f"{sample.cf} {sample.fa} {numbers}\n"


def for_half_integer_centres(h_cf_to_fa: np.ndarray) -> np.ndarray:
    """Convert a homography (3, 3) to coordinates in which the centre of the top-left pixel is (0.5, 0.5)."""
    return np.asarray(translation(0.5, 0.5) @ h_cf_to_fa @ translation(-0.5, -0.5))
