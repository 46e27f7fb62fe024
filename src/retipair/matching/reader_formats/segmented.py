"""Write aligned pairs with their vessels, for training programs that warp the pairs themselves."""

from collections.abc import Iterable
from pathlib import Path

from retipair.matching.reader_formats.common import WrittenForm, link_or_copy, without_elastic
from retipair.matching.samples import ALIGNED, MatchSample
from retipair.runtime.atomic_io import atomic_write_dir

FOLDER = "segmented"


def write_segmented(folder: Path, samples: Iterable[MatchSample]) -> WrittenForm:
    """Write `folder/segmented/{split}/{n}_A_seg/cf_gen.png`, `fa_gen.png` and `seg.png` for each aligned pair.

    n: the number of the pair in its split, from 1, in the order of the samples.
    `seg.png` is the mask of the vessels, 0 or 255, of both views. Samples of other variants are not written. The files
    are hard links to those of the samples, or copies where the file system has no hard links.
    """
    selected, target = without_elastic(sample for sample in samples if sample.variant == ALIGNED), folder / FOLDER

    def fill(partial: Path) -> None:
        for split, chosen in selected.by_split().items():
            for number, sample in enumerate(chosen, start=1):
                files = {"cf_gen": sample.cf, "fa_gen": sample.fa, "seg": sample.vessels_cf}
                for name, path in files.items():
                    link_or_copy(folder / path, partial / split / f"{number}_A_seg" / f"{name}.png")

    atomic_write_dir(target, fill)
    return WrittenForm(target, len(selected.samples), selected.elastic)
