"""Write the samples of `matches.jsonl` in the forms that published training and evaluation code reads.

Each form is a folder beside `matches.jsonl` that refers to the images of the samples, so that it needs little space.
Samples with an elastic transform are left out and counted, because no form carries a residual field.
"""

from collections.abc import Callable, Iterable
from pathlib import Path

from retipair.matching.reader_formats.common import WrittenForm
from retipair.matching.reader_formats.glue_factory import write_glue_factory
from retipair.matching.reader_formats.megadepth import write_megadepth
from retipair.matching.reader_formats.minima import write_minima
from retipair.matching.reader_formats.numbered import write_numbered
from retipair.matching.reader_formats.segmented import write_segmented
from retipair.matching.samples import MatchSample

FORMS: dict[str, Callable[[Path, Iterable[MatchSample]], WrittenForm]] = {
    "glue_factory": write_glue_factory,
    "megadepth": write_megadepth,
    "minima": write_minima,
    "numbered": write_numbered,
    "segmented": write_segmented,
}
"""The functions that write the forms, by the name of the folder of the form. Their arguments are the folder of
`matches.jsonl` and the samples."""

__all__ = ["FORMS", "WrittenForm"]
