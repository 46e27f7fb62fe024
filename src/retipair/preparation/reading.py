"""Raw pairs -> pairs whose every file was read whole, the views the right way round."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Literal

import numpy as np

from retipair.config import PrepareConfig, Register
from retipair.data.duplicates import Views, find_duplicates, pixels_sha256
from retipair.data.pair import load_image
from retipair.data.sources import RawPair
from retipair.registration.landmarks import Landmarks, read_landmarks
from retipair.runtime.atomic_io import file_sha256
from retipair.runtime.console import console, track
from retipair.runtime.errors import UserError, printable
from retipair.runtime.parallel import parallel_map
from retipair.runtime.schema import json_sha256

_SMALLEST = 32  # px


_GREY = 3.0  # mean chroma, 0 to 255, below which a view has no colour


_CLEARLY = 1.5  # times the chroma: an FA may be tinted, a CF pale


@dataclass(frozen=True)
class ReadPair:
    """A raw pair after its files were read whole: views the right way round, a hash of all its files, and one of the
    pixels of each view.

    colour: what the views' colours say against their names: "swapped", "kept" though the FA has more, "grey" CF.
    px: the longer side of the smaller view.
    """

    pair: RawPair
    colour: Literal["as named", "swapped", "kept", "grey"]
    sha256: str
    views: Views
    px: int


def read_pairs(
    pairs: Sequence[RawPair], unusable: Sequence[str], config: PrepareConfig
) -> tuple[list[ReadPair], list[str]]:
    """Read every file whole, so that what is broken is known before anything is written: (what can be used, why others
    cannot, after those that were no pairs). Raises UserError for the first, the others listed, unless they are to be
    left out.
    """
    read = partial(_read_or_why, config=config)
    found = list(track("Reading", parallel_map(read, pairs, config.workers), len(pairs)))
    readable = [one for one in found if isinstance(one, ReadPair)]
    copies = find_duplicates([one.pair for one in readable], [one.views for one in readable])
    seen = [one for one in readable if one.pair.id not in copies]
    bad = [*unusable, *(one for one in found if isinstance(one, str)), *copies.values()]
    if bad and not config.skip_bad:
        for text in bad[1:]:
            console.print(printable(text))
        others = f"{len(bad) - 1} more pairs or images cannot be used, see above; --skip_bad leaves them out"
        more = f" ({others})" if bad[1:] else ""
        raise UserError(f"{bad[0]}{more}")
    for text in bad:
        console.print(f"left out: {printable(text)}")
    if not seen:
        raise UserError(f"{config.raw}: no pair can be used")
    _report_colours(seen)
    _report_enlarged(seen, config.size)
    return seen, bad


def _report_colours(read: Sequence[ReadPair]) -> None:
    """Print one line for each swapped pair, and one for all whose names are kept although their colours contradict."""
    for one in read:
        if one.colour == "swapped":
            print(f"{one.pair.id}: {one.pair.cf.name} is the view in colour, so it is taken as the CF (swapped)")
    if grey := [one.pair.id for one in read if one.colour == "grey"]:
        print(
            f"{len(grey)} CF without colour (red-free?), {grey[0]} first: taken as CF because the source names them so"
        )
    if kept := [one.pair.id for one in read if one.colour == "kept"]:
        text = f"warning: {len(kept)} FA have more colour than their CF, {kept[0]} first; kept as the source names them"
        console.print(f"{text}: correct the source if the views are swapped")


def _report_enlarged(read: Sequence[ReadPair], size: int) -> None:
    if small := [one for one in read if one.px < size]:
        least = min(one.px for one in small)
        console.print(
            f"warning: {len(small)} pairs have views smaller than {size} px ({least} px at least, {small[0].pair.id} "
            "first) and are enlarged: that adds no detail"
        )


def _read_or_why(pair: RawPair, config: PrepareConfig) -> ReadPair | str:
    try:
        return _read(pair, config.register, config.max_megapixels)
    except UserError as error:
        return str(error)


def _read(pair: RawPair, register: Register, megapixels: int) -> ReadPair:
    cf, fa = (load_image(path, "RGB", megapixels) for path in (pair.cf, pair.fa))
    for path, view in ((pair.cf, cf), (pair.fa, fa)):
        if min(view.shape[:2]) < _SMALLEST:
            height, width = view.shape[:2]
            raise UserError(f"{path}: {width} x {height} px is no view of an eye; at least {_SMALLEST} px each way")
    colour = _colour(pair, _chroma(cf), _chroma(fa))
    if colour == "swapped":
        pair, cf, fa = pair.swapped(), fa, cf
    if register == "none" and cf.shape != fa.shape:
        raise UserError(f"{pair.fa}: its size is not that of {pair.cf.name}, so they are not aligned; register them")
    if register == "points" and pair.cf_points is None:
        raise UserError(f"{pair.cf}: no points for this pair; add them or use --register auto")
    views = pixels_sha256(cf), pixels_sha256(fa)
    if views[0] == views[1]:
        raise UserError(f"{pair.fa}: the same image as {pair.cf.name}; a pair is a CF and an FA")
    landmarks_of(pair, cf.shape, fa.shape)
    return ReadPair(pair, colour, files_sha256(pair), views, min(max(view.shape[:2]) for view in (cf, fa)))


def _colour(pair: RawPair, cf: float, fa: float) -> Literal["as named", "swapped", "kept", "grey"]:
    """Judge the views' names by their chroma, [0, 255]. A source that names them explicitly is believed."""
    swapped = fa > _CLEARLY * cf
    if pair.views_named:
        if swapped and fa >= _GREY:
            return "kept"
        return "grey" if cf < _GREY else "as named"
    if (fa if swapped else cf) < _GREY:
        raise UserError(
            f"{pair.cf}: neither this nor {pair.fa.name} is in colour, so which is the CF cannot be told; "
            "name them in a table (columns cf and fa), or put them into folders cf/ and fa/"
        )
    return "swapped" if swapped else "as named"


def landmarks_of(pair: RawPair, cf_shape: tuple[int, ...], fa_shape: tuple[int, ...]) -> Landmarks | None:
    if pair.cf_points is None or pair.fa_points is None:
        return None
    return read_landmarks(pair.cf_points, pair.fa_points, cf_shape, fa_shape)


def _chroma(image: np.ndarray) -> float:
    """Mean over the pixels that are not black of max - min over RGB, (H, W, 3) uint8 -> [0, 255]."""
    pixels = image[::4, ::4].reshape(-1, 3).astype(np.int16)
    lit = pixels[pixels.max(axis=1) > 16]
    return float(np.ptp(lit, axis=1).mean()) if len(lit) else 0.0


def files_sha256(pair: RawPair) -> str:
    """Of the content of all the pair's files and what each is."""
    files = (pair.cf, pair.fa, pair.cf_points, pair.fa_points)
    return json_sha256([None if path is None else file_sha256(path) for path in files])
