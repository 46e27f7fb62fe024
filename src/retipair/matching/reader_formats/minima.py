"""Write the folders that MINIMA's evaluation on multi-modal images (MMIM) reads.

The format follows the code of LSXI7/MINIMA, commit 398ce84, test_relative_homo_mmim.py:

- {root}/test_list.txt (--choose_model 0) and test_list_2.txt (--choose_model 1) list folders in
  {root}/Multimodal_Image_Matching_Datasets.
- {folder}/list.json maps a group to [mat file, image1, image0], with paths relative to the folder.
- The mat file contains the array T. The transpose of T maps px of image0 to px of image1, both counted from 1; the
  reader converts it to px counted from 0.

The data set itself (StaRainJ/Multi-modality-image-matching-database-metrics-methods) names image1 "Fix" and image0
"Move", and its landmarks confirm this direction: [x_move, y_move, 1] T ~ [x_fix, y_fix, 1].
"""

import io
from collections.abc import Iterable
from pathlib import Path

import numpy as np
from scipy.io import savemat

from retipair.data.manifest import Split
from retipair.matching.reader_formats.common import (
    WrittenForm,
    homography,
    link_or_copy,
    translation,
    without_elastic,
)
from retipair.matching.samples import MatchSample
from retipair.runtime.atomic_io import atomic_write, atomic_write_dir, write_json, write_text

FOLDER = "minima"
DATA_SETS = "Multimodal_Image_Matching_Datasets"
_LISTS: dict[str, Split] = {"test_list.txt": "test", "test_list_2.txt": "val"}
_HEADER = b"MATLAB 5.0 MAT-file, written by retipair".ljust(116)


def write_minima(folder: Path, samples: Iterable[MatchSample]) -> WrittenForm:
    """Write `folder/minima`, the --data_root_dir of MINIMA's script, with a folder of groups for each split.

    The lists name the test split (--choose_model 0) and the validation split (--choose_model 1). The images are hard
    links to those of the samples, or copies where the file system has no hard links. Each gets a name of its own,
    because the script names its figures after the images.
    """
    selected, target = without_elastic(samples), folder / FOLDER

    def fill(partial: Path) -> None:
        for split, chosen in selected.by_split().items():
            groups = partial / DATA_SETS / split
            for sample in chosen:
                mat, image1, image0 = (groups / name for name in _names(sample))
                _write_mat(mat, matlab_transform(homography(sample)))
                link_or_copy(folder / sample.fa, image1)
                link_or_copy(folder / sample.cf, image0)
            write_json(groups / "list.json", {sample.name: _names(sample) for sample in chosen})
        for name, split in _LISTS.items():
            write_text(partial / name, f"{split}/\n" if split in selected.by_split() else "")

    atomic_write_dir(target, fill)
    return WrittenForm(target, len(selected.samples), selected.elastic)


def matlab_transform(h_cf_to_fa: np.ndarray) -> np.ndarray:
    """Convert a homography (3, 3) to MATLAB's convention: row vectors [x, y, 1] T, and px counted from 1."""
    return np.asarray(translation(1, 1) @ h_cf_to_fa @ translation(-1, -1)).T


def _names(sample: MatchSample) -> list[str]:
    return [f"{sample.name}.mat", f"{sample.name}_fa.png", f"{sample.name}_cf.png"]


def _write_mat(path: Path, transform: np.ndarray) -> None:
    """Write a mat file with the array T. Its header has no timestamp, so that exports can be compared byte by byte."""
    stream = io.BytesIO()
    savemat(stream, {"T": transform})
    with atomic_write(path) as file:
        file.write(_HEADER + stream.getvalue()[len(_HEADER) :])
