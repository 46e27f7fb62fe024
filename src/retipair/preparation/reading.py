"""Read and check all files of the raw pairs, and swap CF and FA where their colours show that they are exchanged.

Damaged files, wrong sizes and duplicate views must be found before the first pair is aligned. So each image is decoded
twice: here, and again when its pair is aligned. The pixels are not kept: they would take 3 GB for 100 pairs of 8
megapixels. The second decoding of a pair takes 0.02 s of CPU time at 640 px, and 0.1 s (JPEG) to 0.4 s (PNG) at 8
megapixels; its alignment takes 2 to 8 s.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Literal

import numpy as np

from retipair.config import PrepareConfig, Register, RegisterConfig
from retipair.data.duplicates import Views, find_duplicates, pixels_sha256
from retipair.data.pair import MAX_FA_CHROMA, MEGAPIXELS, chroma_of, load_image
from retipair.data.raw_pair import RawPair
from retipair.preparation.view_choice import Frame, frames_of
from retipair.registration.landmarks import Landmarks, read_landmarks
from retipair.runtime.atomic_io import file_sha256
from retipair.runtime.console import console, track
from retipair.runtime.errors import FileError, MissingError, UserError, printable
from retipair.runtime.parallel import parallel_map
from retipair.runtime.schema import json_sha256
from retipair.vision.modality import CF_FA, Modalities, find_modalities

_MIN_SIDE = 32  # px
MIN_CHROMA = 3.0  # a view with a lower mean chroma (`chroma_of`, 0 to 255) counts as grey
# CF and FA are swapped if the FA's chroma is more than this many times that of the CF. With a value near 1, a pair with
# correct names would be swapped by mistake if its FA is tinted and its CF is pale.
_MIN_CHROMA_RATIO = 1.5


ColourCheck = Literal["as named", "swapped", "kept", "grey", "first coloured", "second coloured", "both coloured"]


def modalities_of(config: PrepareConfig | RegisterConfig) -> Modalities:
    """Return the modalities of the pairs by --modalities and --vessels_second. Raises ValueError for unknown ones."""
    modalities, vessels = find_modalities(config.modalities), config.vessels_second
    return modalities.with_second(vessels) if vessels in ("dark", "bright") else modalities


@dataclass(frozen=True)
class CheckedPair:
    """A raw pair whose files were all read and checked. CF and FA are already swapped if that was necessary.

    landmarks: the points placed by hand; None if the pair has no point files.
    colour: whether the colours of the views agree with their names. "as named": they agree. "swapped": they did not,
        and CF and FA were exchanged. "kept": the FA has more colour than the CF, but a table or folder names the views,
        so they were not exchanged. "grey": the CF has no colour. "first coloured", "second coloured", "both
        coloured": neither modality has colour, but the file of the first view, of the second or of both does.
    sha256: the hash of all files of the pair.
    views: the hashes of the pixels of CF and FA; of all frames if one has still to be chosen.
    px: the longer side of the CF or the longer side of the FA, whichever is smaller.
    chosen: a text that tells which of several photographs and frames were chosen. None if there is no choice, or if it
        is not made yet.
    """

    pair: RawPair
    landmarks: Landmarks | None
    colour: ColourCheck
    sha256: str
    views: Views
    px: int
    chosen: str | None = None


def read_pairs(
    pairs: Sequence[RawPair],
    unusable: Sequence[str],
    config: PrepareConfig,
    with_known_names: Callable[[str], str] = str,
) -> tuple[list[CheckedPair], list[str]]:
    """Read and check all files of the pairs. Return (usable pairs, reasons why pairs or images are skipped).

    The reasons begin with those in `unusable`, which were found before. Raises UserError if there is a reason and
    --skip_bad is not set: the message is the first reason, and the other reasons are printed. Also raises UserError
    if no pair is usable. `with_known_names` replaces names of temporary files in the reasons.
    """
    check = partial(_check_or_reason, config=config)
    results = list(track("Reading", parallel_map(check, pairs, config.workers), len(pairs)))
    readable = [result for result in results if isinstance(result, CheckedPair)]
    copies = find_duplicates([item.pair for item in readable], [item.views for item in readable])
    usable = [item for item in readable if item.pair.id not in copies]
    unreadable = [result for result in results if isinstance(result, str)]
    bad = [with_known_names(text) for text in (*unusable, *unreadable, *copies.values())]
    if bad and not config.skip_bad:
        for text in bad[1:]:
            console.print(printable(text))
        others = "1 more pair or image" if len(bad) == 2 else f"{len(bad) - 1} more pairs or images"
        more = f" ({others} cannot be used, see above; --skip_bad skips them)" if bad[1:] else ""
        raise UserError(f"{bad[0]}{more}")
    for text in bad:
        console.print(f"skipped: {printable(text)}")
    if not usable:
        raise MissingError(config.raw, "no usable pair")
    _report_colours(usable)
    _report_enlarged(usable, config.size)
    _report_warnings(usable)
    return usable, bad


def _report_colours(pairs: Sequence[CheckedPair]) -> None:
    """Print which views have unexpected colours.

    There is one line for each pair that was swapped, one line for all CF without colour, one line for all FA that have
    more colour than their CF and were not swapped, and one line each for all first and all second views that are
    converted to grey.
    """
    for item in pairs:
        if item.colour == "swapped":
            file = "its second DICOM file" if item.pair.dicom else item.pair.cf.name
            print(f"{item.pair.id}: {file} is the view in colour and is used as the CF (swapped)")
    if grey := [item.pair.id for item in pairs if item.colour == "grey"]:
        print(f"{len(grey)} CF without colour (red-free?; first: {grey[0]}): used as CF, as the table or folder states")
    if kept := [item.pair.id for item in pairs if item.colour == "kept"]:
        text = f"warning: {len(kept)} FA have more colour than their CF (first: {kept[0]}) and are used as FA"
        console.print(f"{text}, as the table or folder states; correct the table or folder if the views are swapped")
    for place, remedy in (("first", "name the modality cf"), ("second", "make them the first views, of modality cf")):
        if coloured := [item.pair.id for item in pairs if item.colour in (f"{place} coloured", "both coloured")]:
            text = f"warning: {len(coloured)} {place} views are in colour (first: {coloured[0]}) and are converted to"
            console.print(f"{text} grey; for colour fundus photographs, {remedy}")


def _report_enlarged(pairs: Sequence[CheckedPair], size: int) -> None:
    if small := [item for item in pairs if item.px < size]:
        least = min(item.px for item in small)
        console.print(
            f"warning: {len(small)} pairs have views smaller than {size} px (first: {small[0].pair.id}; smallest: "
            f"{least} px); they are enlarged, which adds no detail"
        )


def _report_warnings(pairs: Sequence[CheckedPair]) -> None:
    """Print one line for each text in `RawPair.warnings`."""
    for text in sorted({text for item in pairs for text in item.pair.warnings}):
        ids = [item.pair.id for item in pairs if text in item.pair.warnings]
        console.print(f"warning: {len(ids)} pairs (first: {ids[0]}): {text}")


def _check_or_reason(pair: RawPair, config: PrepareConfig) -> CheckedPair | str:
    try:
        return check_pair(pair, config.register, config.max_megapixels, modalities_of(config))
    except UserError as error:
        return str(error)


def check_pair(
    pair: RawPair, register: Register, megapixels: int = MEGAPIXELS, modalities: Modalities = CF_FA
) -> CheckedPair:
    """Read and check all files of one pair. Raises UserError, naming the file, if one of them cannot be used."""
    cf, fa = (_read_frames(frames, megapixels) for frames in frames_of(pair))
    colour = _colour(pair, cf.chroma, fa.chroma) if modalities.first.colour else _colour_of_grey(cf.chroma, fa.chroma)
    if colour == "swapped":
        pair, cf, fa = pair.swapped(), fa, cf
    if register == "none" and len(cf.shapes | fa.shapes) > 1:
        raise FileError(
            pair.fa, f"its size differs from that of {pair.cf.name}, so the views are not aligned; use --register auto"
        )
    if register == "points" and pair.cf_points is None:
        raise FileError(pair.cf, "no points for this pair; add them or use --register auto")
    views = cf.sha256, fa.sha256
    if views[0] == views[1]:
        raise FileError(pair.fa, f"the same image as {pair.cf.name}; a pair is a CF and an FA")
    landmarks = _landmarks_of(pair, min(cf.shapes), min(fa.shapes))
    px = min(max(shape) for view in (cf, fa) for shape in view.shapes)
    return CheckedPair(pair, landmarks, colour, files_sha256(pair), views, px)


@dataclass(frozen=True)
class _ReadFrames:
    """What is needed of the frames of a view to check a pair.

    shapes: the (height, width) of the frames.
    chroma: the chroma of the first frame, [0, 255].
    sha256: the hash of the pixels of the frames.
    """

    shapes: set[tuple[int, int]]
    chroma: float
    sha256: str


def _read_frames(frames: Sequence[Frame], megapixels: int) -> _ReadFrames:
    """Read all frames of a view. Raises UserError, naming the file, if one of them cannot be used."""
    shapes, chromas, hashes = set(), [], []
    for path, frame in frames:
        image = load_view(path, megapixels, frame)
        shapes.add((image.shape[0], image.shape[1]))
        chromas.append(chroma_of(image))
        hashes.append(pixels_sha256(image))
    return _ReadFrames(shapes, chromas[0], hashes[0] if len(hashes) == 1 else json_sha256(hashes))


def load_view(path: Path, megapixels: int = MEGAPIXELS, frame: int = 1) -> np.ndarray:
    """Read a raw view, (H, W, 3) uint8; of a multi-frame DICOM file, the frame with this number, from 1.

    Raises UserError, naming the file, if it cannot be read (see `load_image`) or is too small.
    """
    view = load_image(path, "RGB", megapixels, frame)
    if min(view.shape[:2]) < _MIN_SIDE:
        height, width = view.shape[:2]
        raise FileError(path, f"{width} x {height} px is too small; each side must have at least {_MIN_SIDE} px")
    return view


def _colour_of_grey(first: float, second: float) -> ColourCheck:
    """Return whether the chroma of both views, [0, 255], agrees with modalities without colour. They may be tinted."""
    if first > MAX_FA_CHROMA:
        return "both coloured" if second > MAX_FA_CHROMA else "first coloured"
    return "second coloured" if second > MAX_FA_CHROMA else "as named"


def _colour(pair: RawPair, cf: float, fa: float) -> ColourCheck:
    """Return whether the colours of the views agree with their names (see `CheckedPair.colour`).

    The views are never swapped if a table or the names of the folders state which view is the CF. Raises UserError if
    neither view has colour and nothing states which view is the CF.

    cf, fa: the chroma of the views, [0, 255].
    """
    swapped = fa > _MIN_CHROMA_RATIO * cf
    if pair.views_named:
        if swapped and fa >= MIN_CHROMA:
            return "kept"
        return "grey" if cf < MIN_CHROMA else "as named"
    if (fa if swapped else cf) < MIN_CHROMA:
        raise FileError(
            pair.cf,
            f"neither this nor {pair.fa.name} is in colour, so the CF cannot be identified; "
            "name the views in a table (columns cf and fa), or put them into folders cf/ and fa/; for views of other "
            "modalities, pass --modalities",
        )
    return "swapped" if swapped else "as named"


def _landmarks_of(pair: RawPair, cf_shape: tuple[int, ...], fa_shape: tuple[int, ...]) -> Landmarks | None:
    if pair.cf_points is None or pair.fa_points is None:
        return None
    return read_landmarks(pair.cf_points, pair.fa_points, cf_shape, fa_shape)


def files_sha256(pair: RawPair) -> str:
    """Return a hash of the contents of all files of a pair, and of the number of the frame that a table names."""
    files = (pair.cf, pair.fa, pair.cf_points, pair.fa_points)
    hashes: list[object] = [None if path is None else file_sha256(path) for path in files]
    if pair.more_cf or pair.more_fa or pair.fa_frame:
        hashes += [[file_sha256(path) for path in more] for more in (pair.more_cf, pair.more_fa)] + [pair.fa_frame]
    return json_sha256(hashes)
