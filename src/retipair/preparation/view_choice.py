"""Choose the views of a pair that has several photographs, several angiograms or an angiogram of several frames."""

from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np

from retipair.data.dicom import frame_count
from retipair.data.pair import MEGAPIXELS, Pair, load_first_view, load_image
from retipair.data.raw_pair import RawPair
from retipair.registration.frame_choice import LoadView, choose_views
from retipair.registration.warp import View
from retipair.runtime.errors import FileError
from retipair.vision.modality import CF_FA, Modalities

Frame = tuple[Path, int]
"""An image file, and the number of one of its frames, from 1."""


def frames_of(pair: RawPair) -> tuple[list[Frame], list[Frame]]:
    """Return the frames that may be the CF, and those that may be the FA, in the order of acquisition.

    Raises UserError, naming the file, if a frame does not exist, or if it is unknown in which frame points were placed.
    """
    cfs = _frames((pair.cf, *pair.more_cf), pair.cf_frame)
    fas = _frames((pair.fa, *pair.more_fa), pair.fa_frame)
    for path, frames in ((pair.cf, cfs), (pair.fa, fas)):
        if pair.cf_points and len(frames) > 1:
            problem = f"one of {len(frames)} images or frames of this view, and its points belong to only one of them"
            raise FileError(path, f"{problem}; name that file, and its frame, in a table (columns cf, fa, fa_frame)")
    return cfs, fas


def _frames(paths: Sequence[Path], number: int | None) -> list[Frame]:
    counts = {path: frame_count(path) for path in paths}
    if number is None:
        return [(path, frame) for path in paths for frame in range(1, counts[path] + 1)]
    if number > counts[paths[0]]:
        raise FileError(paths[0], f"has no frame {number}, only {counts[paths[0]]}; correct the column fa_frame")
    return [(paths[0], number)]


def with_chosen_views(
    pair: RawPair, aligned: bool, megapixels: int = MEGAPIXELS, modalities: Modalities = CF_FA
) -> tuple[RawPair, str | None]:
    """Return the pair with one CF and one FA, and a text that tells which were chosen; None if there was no choice.

    aligned: whether the views are aligned already, so that they are compared as they are.
    """
    cfs, fas = frames_of(pair)
    if len(cfs) == len(fas) == 1:
        chosen = (0, 0)
    elif aligned:
        chosen = _most_consistent(*_loads(cfs, fas, megapixels, modalities))
    else:
        chosen = choose_views(*_loads(cfs, fas, megapixels, modalities))
    (cf, cf_frame), (fa, fa_frame) = cfs[chosen[0]], fas[chosen[1]]
    single = replace(pair, cf=cf, fa=fa, cf_frame=cf_frame, fa_frame=fa_frame, more_cf=(), more_fa=())
    return single, _described(pair, cfs, fas, chosen)


def _loads(cfs: Sequence[Frame], fas: Sequence[Frame], megapixels: int, modalities: Modalities) -> list[list[LoadView]]:
    """Return the functions that read the first views, and those that read the second views."""
    return [
        [partial(_load_first, frame, megapixels, modalities) for frame in cfs],
        [partial(_load_second, frame, megapixels, modalities) for frame in fas],
    ]


def _load_first(frame: Frame, megapixels: int, modalities: Modalities) -> View:
    path, number = frame
    return View(load_first_view(path, modalities.first, megapixels, number), modalities.dark_vessels[0])


def _load_second(frame: Frame, megapixels: int, modalities: Modalities) -> View:
    path, number = frame
    return View(load_image(path, "L", megapixels, number), modalities.dark_vessels[1])


def _most_consistent(cfs: Sequence[LoadView], fas: Sequence[LoadView]) -> tuple[int, int]:
    best, highest = (0, 0), -np.inf
    for n, load_cf in enumerate(cfs):
        cf = load_cf()
        for m, load_fa in enumerate(fas):
            fa = load_fa()
            dark = cf.has_dark_vessels, fa.has_dark_vessels
            pair = Pair(cf.image, fa.image, cf.field & fa.field, dark_vessels=dark)
            consistency = pair.at_reference_size().consistency()
            if consistency > highest:
                best, highest = (n, m), consistency
    return best


def _described(pair: RawPair, cfs: Sequence[Frame], fas: Sequence[Frame], chosen: tuple[int, int]) -> str | None:
    """Return which views were chosen, by their number in time: names of files may identify a patient."""
    parts = [f"photograph {chosen[0] + 1} of {len(cfs)}"] if len(cfs) > 1 else []
    if len(fas) > 1:
        parts.append(f"frame {chosen[1] + 1} of {len(fas)} of the angiogram")
    elif pair.fa_frame and (total := frame_count(pair.fa)) > 1:
        parts.append(f"frame {pair.fa_frame} of {total} of the angiogram, as the table states")
    return " and ".join(parts) or None
