"""Write numbered folders, the layout of raw pairs that `retipair prepare` and the original scripts read."""

import csv
import io
from collections.abc import Iterable
from pathlib import Path

from retipair.data.sources import EYES_TABLE
from retipair.matching.reader_formats.common import WrittenForm, link_or_copy, read_landmarks, without_elastic
from retipair.matching.samples import MatchSample
from retipair.runtime.atomic_io import atomic_write_dir, write_text

FOLDER = "numbered"
_MIN_LANDMARKS = 4  # `retipair prepare` refuses files with fewer points


def write_numbered(folder: Path, samples: Iterable[MatchSample]) -> WrittenForm:
    """Write `folder/numbered/{name}/{name}_01.png` (CF), `_02.png` (moving FA), `_01.txt`, `_02.txt` and `eyes.csv`.

    name: "{id}-{variant}".
    The images are hard links to those of the samples, or copies where the file system has no hard links. The text
    files have one landmark "x y" per line, in px with integer pixel centres. Samples with fewer than 4 landmarks have
    no text files.
    `eyes.csv` keeps the variants of one eye in one split.
    """
    selected, target = without_elastic(samples), folder / FOLDER

    def fill(partial: Path) -> None:
        for sample in selected.samples:
            _write_sample(partial / sample.name, folder, sample)
        write_text(partial / EYES_TABLE, _eyes(selected.samples))

    atomic_write_dir(target, fill)
    return WrittenForm(target, len(selected.samples), selected.elastic)


def _write_sample(target: Path, folder: Path, sample: MatchSample) -> None:
    link_or_copy(folder / sample.cf, target / f"{sample.name}_01.png")
    link_or_copy(folder / sample.fa, target / f"{sample.name}_02.png")
    landmarks = read_landmarks(folder / sample.landmarks)
    if len(landmarks) >= _MIN_LANDMARKS:
        write_text(target / f"{sample.name}_01.txt", "".join(f"{x} {y}\n" for x, y, _, _ in landmarks))
        write_text(target / f"{sample.name}_02.txt", "".join(f"{x} {y}\n" for _, _, x, y in landmarks))


def _eyes(samples: list[MatchSample]) -> str:
    table = io.StringIO()
    rows = csv.writer(table, lineterminator="\n")
    rows.writerow(["id", "eye", "split"])
    rows.writerows([sample.name, sample.eye, sample.split] for sample in samples)
    return table.getvalue()
