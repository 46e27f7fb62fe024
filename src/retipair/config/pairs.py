"""The settings of `retipair prepare`, `retipair register` and `retipair phantom`."""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import tyro
from tyro.constructors import PrimitiveConstructorSpec

_TWO_PATHS = PrimitiveConstructorSpec(
    nargs=2,
    metavar="CF_POINTS FA_POINTS",
    instance_from_str=lambda words: (Path(words[0]), Path(words[1])),
    is_instance=lambda value: isinstance(value, tuple),
    str_from_instance=lambda value: ["None"] if value is None else list(map(str, value)),
)
"""How the command line reads two paths or none; tyro itself would read all words that follow."""

_TWO_MODALITIES = PrimitiveConstructorSpec(
    nargs=2,
    metavar="FIRST SECOND",
    instance_from_str=lambda words: (words[0], words[1]),
    is_instance=lambda value: isinstance(value, tuple),
    str_from_instance=lambda value: ["None"] if value is None else list(value),
)
"""How the command line reads two modalities or none."""

Register = Literal["auto", "points", "features", "none"]


@dataclass(frozen=True, kw_only=True)
class PrepareConfig:
    """Turn raw views into aligned pairs: register FA to CF, crop to the shared field of view, split by eye."""

    raw: Annotated[tyro.conf.Positional[Path], tyro.conf.arg(metavar="RAW")]
    """Folder of raw views (ID/ID_01.png + ID_02.png, cf/ + fa/, the Isfahan folders, DICOM files), a table (.csv or
    .jsonl; docs/formats.md, docs/dicom.md), or a data set of Parquet files (docs/datasets.md)."""
    out: Annotated[tyro.conf.Positional[Path], tyro.conf.arg(metavar="OUT")]
    """Folder to write: cf/, fa/, mask/, manifest.jsonl, contact_sheet.png."""
    size: int = 512
    """Side of the square prepared views, px."""
    register: Register = "auto"
    """How the FA is aligned to the CF.
    points: by landmarks; features: by vessels; none: the views are aligned already.
    auto: points for a pair with landmarks, else features."""
    modalities: Annotated[tuple[str, str] | None, _TWO_MODALITIES] = None
    """What the first and the second view of each pair are: cf, red_free, fa, autofluorescence or octa.
    Default: cf fa, or the columns cf_modality and fa_modality of the table (docs/modalities.md)."""
    vessels_second: Literal["dark", "bright", "auto"] | None = None
    """Whether vessels are dark or bright in the second view; auto: measured on a few pairs. Default: as is usual for
    its modality."""
    max_residual_px: float = 5.0
    """Refuse a pair if the median distance of its landmarks after alignment exceeds this.
    The distance is in px of a view 512 px wide, for any --size.
    A pair registered by features also needs enough vessel patches that match within this distance (docs/formats.md)."""
    min_consistency: float | None = None
    """Refuse a pair of lower consistency (vesselness correlation of the views, -1 to 1, at 512 px for any --size).
    Default: 0.25 if registered by points, 0.2 by features, 0.15 with --register none."""
    allow_mirror: bool = False
    """Accept an FA that can only be aligned mirrored, and flip it; without this flag such a pair is refused."""
    anonymise: Path | None = None
    """Replace the names of pairs, eyes and patients by keyed hashes, in OUT and everything derived from it.
    The value is the key file, created if missing; the same key gives the same hashes.
    Keep the key file, and the table of original ids that is written beside it, away from the data.
    DICOM files are always pseudonymised; default: the key file RAW.key beside RAW."""
    skip_bad: bool = False
    """Skip pairs with missing or unusable files, copies of other pairs, and single images without the other view.
    They are listed in OUT/skipped.txt (not with --anonymise or DICOM); without this flag, any of them is an error."""
    max_megapixels: int = 200
    """Refuse images with more megapixels than this, because a small file can decompress to gigabytes."""
    val_fraction: float = 0.2
    """Fraction of the eyes (of the patients, if they are known) for validation."""
    test_fraction: float = 0.0
    """Fraction of the eyes for testing. They are never used for training, nor varied by --mode from_data."""
    seed: int = 0
    """Seed of the random split into training, validation and test pairs."""
    workers: int = 0
    """Number of processes; 0: one per core."""


@dataclass(frozen=True, kw_only=True)
class RegisterConfig:
    """Register the FA of a pair to its CF: write the FA in the frame of the CF, the homography and a checkerboard."""

    paths: Annotated[tyro.conf.Positional[tuple[Path, ...]], tyro.conf.arg(metavar="CF FA OUT")]
    """The two views, and the folder to write: fa_warped.png, checkerboard.png, registration.json.
    With --folder, RAW OUT: a folder or table of raw views as for `retipair prepare`, and the folder to write."""
    folder: bool = False
    """Register all pairs of RAW, each into OUT/ID; registrations.jsonl and scores.json describe all of them.
    Point files beside the views (ID_01.txt) are used only to measure the errors."""
    matches: Path | None = None
    """Register by these matches of a network instead of by features: an .npz file with the arrays cf and fa.
    Each is (N, 2), x and y in px of the image file; row n of both is one match (docs/registration.md).
    False matches are removed by RANSAC, and the vessels refine the result.
    With --folder, a folder with a file ID.npz for each pair."""
    evaluate: Annotated[tuple[Path, Path] | None, _TWO_PATHS] = None
    """Measure the error at these landmarks, which are not used to register: two files, one point "x y" a line.
    Tables and point selections of ImageJ are read too (docs/dicom.md).
    Prints the mean and the median error in px of a CF 512 px wide, and writes them with AUC@5/10/20 to scores.json."""
    modalities: Annotated[tuple[str, str] | None, _TWO_MODALITIES] = None
    """What the first and the second view are: cf, red_free, fa, autofluorescence or octa.
    Default: cf fa, or with --folder the columns cf_modality and fa_modality of the table RAW (docs/modalities.md)."""
    vessels_second: Literal["dark", "bright"] | None = None
    """Whether vessels are dark or bright in the second view; default: as is usual for its modality."""
    max_residual_px: float = 5.0
    """Refuse a pair if fewer than 60 % of its vessel patches match within this distance.
    The distance is in px of a view 512 px wide."""
    min_consistency: float | None = None
    """Refuse a pair of lower consistency (vesselness correlation of the views, -1 to 1); default: 0.2."""
    allow_mirror: bool = False
    """Accept an FA that can only be aligned mirrored, and flip it; without this flag such a pair is refused."""
    skip_bad: bool = False
    """--folder: skip pairs with missing or unusable files, copies of other pairs, and images without the other view.
    Without this flag any of them stops the command."""
    workers: int = 0
    """--folder: number of processes; 0: one per core."""


@dataclass(frozen=True, kw_only=True)
class PhantomConfig:
    """Render synthetic eyes with ground truth: pairs to train on, or raw views to test registration."""

    out: Annotated[tyro.conf.Positional[Path], tyro.conf.arg(metavar="OUT")]
    """Folder to write: a prepared folder (with --unregistered: raw/), and truth/ with the ground truth of each eye."""
    amount: int = 10
    """Number of pairs; may be raised later, and existing pairs are kept."""
    size: int = 512
    """Side of the square views, px."""
    seed: int = 0
    """Seed of the pairs and of the split; the randomness of pair i depends only on this seed and i."""
    camera: str | None = None
    """Camera of all pairs: amber, rose, umber, sallow or teal.
    Default: one of the first four at random for each pair."""
    disease: str | None = None
    """State of all eyes: healthy, diabetic or vein_occlusion; default: healthy or diabetic at random."""
    modalities: Annotated[tuple[str, str] | None, _TWO_MODALITIES] = None
    """Modalities of both views: cf, red_free, fa, autofluorescence or octa; default: cf fa."""
    unregistered: bool = False
    """Write raw views with landmarks for `retipair prepare`; the FA camera is shifted, rotated and tilted."""
    points: int = 20
    """--unregistered: landmarks per pair, at vessel bifurcations and crossings, spread over the field."""
    jitter: float = 1.0
    """--unregistered: standard deviation of the random errors of landmarks in each view, in px of a 512 px view."""
    wrong: int = 2
    """--unregistered: number of landmarks that are outliers, at random positions in the FA."""
