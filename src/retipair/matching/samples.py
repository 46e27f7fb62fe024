"""Read and write `matches.jsonl`, the list of the samples that `retipair export matches` writes.

A sample is a CF and a moving FA of one eye with the transform between them. The file has one JSON object per line. The
pairs are in the order of their manifest, and the samples of a pair follow one another. Paths are relative to the folder
of the file and must not lead out of it. The file has no timestamps, so that two exports can be compared byte by byte.
"""

from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

from retipair.data.manifest import Split
from retipair.runtime.atomic_io import atomic_write
from retipair.runtime.errors import FileError, MissingError, UserError
from retipair.runtime.jsonl import parse_json_line, to_json_line
from retipair.runtime.schema import from_values
from retipair.runtime.text_files import is_safe_name
from retipair.vision.modality import RECORDED

SAMPLES_NAME = "matches.jsonl"
SAMPLES_SCHEMA = "retipair.matches/1"
ALIGNED = "aligned"
"""The variant whose FA is the aligned FA of the pair, so that the homography is the identity."""

_AGAIN = "export the matches again"
_OPTIONAL = ("field", *RECORDED)
_PATHS = ("cf", "fa", "valid_cf", "valid_fa", "vessels_cf", "vessels_fa", "landmarks", "field")
_NAMES = ("id", "variant")


@dataclass(frozen=True, kw_only=True, slots=True)
class MatchSample:
    """Line of `matches.jsonl`: a fixed CF, a moving FA, and the transform between them.

    Coordinates are (x, y) in px, and the centre of the top-left pixel is (0, 0).

    id: the id of the pair in its manifest.
    variant: "aligned" (the aligned FA; the homography is the identity), "warp_1", "warp_2", ... (a warped FA) or
    "appearance" (a warped FA, and both views with a random appearance). The id and the variant together identify the
    sample.
    split: "train", "val" or "test". All samples of one patient are in one split.
    eye: the patient, or the eye if the patient is unknown; all samples with the same `eye` must be in one split.
    size: the side of all images and masks of the sample, which are squares, in px.
    seed: the seed from which the warp and the appearance of the sample were drawn.
    cf: the fixed CF, which matchers call image0: (size, size, 3) uint8, or (size, size) if it has no colour.
    fa: the moving FA, (size, size) uint8, which matchers call image1. In the variant "aligned", it is the aligned FA.
    valid_cf, valid_fa: masks, 0 or 255. 255 is where the CF, or the moving FA, shows the retina. The point
    that corresponds to a valid pixel may lie outside the other view.
    vessels_cf, vessels_fa: masks of the vessels of the pair, 0 or 255, in px of the CF and of the moving FA.
    landmarks: a text file with one line "cf_x cf_y fa_x fa_y" for each branching or crossing of vessels that is visible
    in both views, in px of the CF and of the moving FA.
    h_cf_to_fa: the homography, 3 rows of 3 numbers, that maps px of the CF to px of the moving FA. If `field` is given,
    the transform maps a pixel to the result of this homography plus the residual in `field`.
    synthetic: whether the CF or the FA was generated or rendered, and is not a photograph.
    source_sha256: one SHA-256 of the files from which the sample was made: CF, FA, and the mask if there is one.
    modalities, vessels: the modalities of the CF and of the FA, as in manifests; None for CF and FA.
    field: an npz file with the dense residual field of an elastic transform; None if the transform is a homography.
    schema: the version of this format.
    """

    id: str
    variant: str
    split: Split
    eye: str
    size: int
    seed: int
    cf: str
    fa: str
    valid_cf: str
    valid_fa: str
    vessels_cf: str
    vessels_fa: str
    landmarks: str
    h_cf_to_fa: list[list[float]]
    synthetic: bool
    source_sha256: str
    field: str | None = None
    modalities: list[str] | None = None
    vessels: list[str] | None = None
    schema: str = SAMPLES_SCHEMA

    @property
    def files(self) -> list[str]:
        """The paths of all files of the sample."""
        return [path for key in _PATHS if (path := getattr(self, key)) is not None]

    @property
    def name(self) -> str:
        """A name that no other sample has, "{id}-{variant}"."""
        return f"{self.id}-{self.variant}"


def to_line(sample: MatchSample) -> str:
    """Return the line of a sample, with a newline; `schema` is the first key, then the fields in order.

    `field`, modalities and vessels are left out if they are None.
    """
    return to_json_line(asdict(sample), _OPTIONAL)


def write_samples(folder: Path, samples: Iterable[MatchSample]) -> None:
    """Write `folder/matches.jsonl` atomically."""
    with atomic_write(folder / SAMPLES_NAME) as stream:
        stream.writelines(to_line(sample).encode() for sample in samples)


def read_samples(folder: Path) -> Iterator[MatchSample]:
    """Yield the samples of `folder/matches.jsonl` in order.

    Raises UserError, naming the folder, if the file is missing. Raises UserError, naming file and line, for invalid
    JSON, an unknown schema, unknown or missing keys, a value of the wrong type, a sample that occurs twice, an id or
    variant that is not a safe file name, unprintable characters, a size below 1 px, a homography that is not 3 x 3, or
    a path outside the folder.
    """
    path = folder / SAMPLES_NAME
    if not path.is_file():
        raise MissingError(folder, f"no {SAMPLES_NAME} here; `retipair export matches PAIRS OUT` writes it into OUT")
    names: set[str] = set()
    with path.open(encoding="utf-8", errors="surrogateescape") as stream:  # `parse_sample` refuses the surrogates
        for number, line in enumerate(stream, start=1):
            sample = parse_sample(line, where=f"{path}, line {number}")
            if sample.name.lower() in names:
                raise FileError(path, f"duplicate sample {sample.name!r}; remove one line", number)
            names.add(sample.name.lower())
            yield sample


def parse_sample(line: str, where: str) -> MatchSample:
    """Return the sample in one line. Raises UserError, which begins with `where`, if the line is invalid."""
    values = parse_json_line(line, where, _AGAIN)
    if not isinstance(values, dict) or values.get("schema") != SAMPLES_SCHEMA:
        raise UserError(f"{where}: unknown schema; this version reads {SAMPLES_SCHEMA}")
    sample = from_values(MatchSample, values, where, _AGAIN)
    if key := next((key for key in _NAMES if not is_safe_name(getattr(sample, key))), None):
        raise UserError(f"{where}: {key} {getattr(sample, key)!r} is not a safe file name; {_AGAIN}")
    if key := next((key for key in ("eye", *_PATHS) if not str(values.get(key, "")).isprintable()), None):
        raise UserError(f"{where}: {key} has unprintable characters; {_AGAIN}")
    _check_numbers(sample, where)
    for key in _PATHS:
        _check_inside(getattr(sample, key), where)
    return sample


def _check_numbers(sample: MatchSample, where: str) -> None:
    if sample.size < 1:
        raise UserError(f"{where}: size must be at least 1 px; {_AGAIN}")
    if [len(row) for row in sample.h_cf_to_fa] != [3, 3, 3]:
        raise UserError(f"{where}: h_cf_to_fa must have 3 rows of 3 numbers; {_AGAIN}")


def _check_inside(relative: str | None, where: str) -> None:
    if relative is None:
        return
    if relative in ("", ".") or relative.startswith("/") or ".." in relative.split("/") or "\\" in relative:
        raise UserError(f"{where}: path {relative!r} is not in the folder of {SAMPLES_NAME}")
