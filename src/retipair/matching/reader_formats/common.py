"""Select the samples that a form can carry, read their masks and landmarks, and link their images."""

import math
import os
import shutil
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from retipair.data.manifest import SPLITS, Split
from retipair.data.pair import load_image
from retipair.matching.samples import MatchSample
from retipair.runtime.errors import DamagedError, FileError


@dataclass(frozen=True)
class WrittenForm:
    """The result of writing a form.

    folder: the folder of the form.
    samples: the number of samples in it.
    elastic: the number of samples that were left out because their transform has a residual field.
    """

    folder: Path
    samples: int
    elastic: int

    def __str__(self) -> str:
        written = f"{self.folder}: {self.samples} samples"
        if not self.elastic:
            return written
        return f"{written}; {self.elastic} elastic samples left out, because this form carries only homographies"


@dataclass(frozen=True)
class Selection:
    """The samples that a form can carry, and the number of elastic samples that were left out."""

    samples: list[MatchSample]
    elastic: int

    def by_split(self) -> Mapping[Split, list[MatchSample]]:
        """Return the samples of each split that has any, in the order of the splits."""
        split_samples = {split: [sample for sample in self.samples if sample.split == split] for split in SPLITS}
        return {split: samples for split, samples in split_samples.items() if samples}


def without_elastic(samples: Iterable[MatchSample]) -> Selection:
    """Select the samples whose transform is a homography, in order."""
    listed = list(samples)
    exact = [sample for sample in listed if sample.field is None]
    return Selection(exact, len(listed) - len(exact))


def homography(sample: MatchSample) -> np.ndarray:
    """Return the homography (3, 3) float64 from px of the CF to px of the moving FA."""
    return np.array(sample.h_cf_to_fa, dtype=np.float64)


def translation(x: float, y: float) -> np.ndarray:
    """Return the homography (3, 3) that moves points by (x, y) px."""
    return np.array([[1, 0, x], [0, 1, y], [0, 0, 1]], dtype=np.float64)


def load_mask(folder: Path, relative: str, size: int) -> np.ndarray:
    """Read a mask, (size, size) bool. Raises UserError, naming the file, if it cannot be read or has another size."""
    mask = load_image(folder / relative, "L") > 127
    if mask.shape != (size, size):
        raise DamagedError(folder / relative, f"must be {size} x {size} px; export the matches again")
    return mask


def read_landmarks(path: Path) -> list[list[str]]:
    """Read the landmarks of a sample. Return the texts [cf_x, cf_y, fa_x, fa_y] of each, as they are in the file.

    Raises UserError, naming the file, if it cannot be read, or, naming file and line, if a line is not four numbers.
    """
    landmarks = []
    for number, line in enumerate(_lines(path), start=1):
        words = line.split()
        if len(words) != 4 or not all(map(_is_number, words)):
            raise FileError(path, "must be 'cf_x cf_y fa_x fa_y'; export the matches again", number)
        landmarks.append(words)
    return landmarks


def _is_number(word: str) -> bool:
    try:
        return math.isfinite(float(word))
    except ValueError:
        return False


def _lines(path: Path) -> list[str]:
    try:
        return path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise DamagedError(path, f"cannot be read ({error}); export the matches again") from None


def link_or_copy(source: Path, target: Path) -> None:
    """Create `target` as a hard link to `source`, or as a copy where the file system has no hard links."""
    target.parent.mkdir(parents=True, exist_ok=True)
    try:
        os.link(source, target)
    except FileNotFoundError:
        raise FileError(source, "no such file; export the matches again") from None
    except OSError:
        shutil.copyfile(source, target)
