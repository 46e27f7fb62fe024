"""Read, check and crop the single views from which `--mode cf2fa` and `--mode fa2cf` draw the other view."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import numpy as np
from PIL import Image

from retipair.data.dataset import read_dataset
from retipair.data.manifest import check_one_kind, has_manifest
from retipair.data.pair import MAX_FA_CHROMA, chroma_of, load_first_view, load_image
from retipair.data.views import SingleView, find_views, listed_groups, view_of_file
from retipair.diffusion.halves import ViewName
from retipair.preparation.reading import MIN_CHROMA, load_view
from retipair.registration.warp import resample, to_square
from retipair.runtime.atomic_io import file_sha256
from retipair.runtime.console import track
from retipair.runtime.errors import FileError
from retipair.runtime.parallel import parallel_map
from retipair.runtime.schema import json_sha256
from retipair.vision.appearance import Appearance, match_appearance
from retipair.vision.field_of_view import field_of_view
from retipair.vision.modality import CF_FA, Modalities, Modality


@dataclass(frozen=True)
class GivenView:
    """A single view, cropped to the square around its field of view as `prepare` crops pairs.

    view: which of the two views it is.
    image: CF (S, S, 3) or FA (S, S), uint8, black outside the field of view.
    model_input: the input of the model: `image`, changed to the appearance of the training views; `image` itself if
        that appearance is not known.
    mask: the field of view, (S, S) bool.
    to_pair: the transform (3, 3) from px of the file to px of `image`.
    shape: the (height, width) of the file, in px.
    """

    view: ViewName
    image: np.ndarray
    model_input: np.ndarray
    mask: np.ndarray
    to_pair: np.ndarray
    shape: tuple[int, int]

    def in_source(self, other: np.ndarray) -> np.ndarray:
        """Resample the other view of the pair, (S, S) or (S, S, 3) uint8, to the px of the given file."""
        return resample(other, np.linalg.inv(self.to_pair), self.shape)


def read_views(data: Path, view: ViewName, modalities: Modalities = CF_FA) -> list[SingleView]:
    """Find the single views, decode each of them once to check it, and return them sorted by id.

    Raises UserError, naming the file, if a view cannot be read, shows no retina, or has the colours of the other view,
    if two views have the same id or an id has unprintable characters, and if the pairs of a folder or table are not of
    these modalities.
    """
    if has_manifest(data):
        pair = read_dataset(data)[0]
        check_one_kind(data, modalities, pair.modalities, pair.id)
    found, groups = find_views(data, view, modalities), listed_groups(data)
    checked = parallel_map(partial(_check, view=view, modalities=modalities), found)
    usable = (single for several in track("Reading", checked, len(found)) for single in several)
    views = [replace(single, group=groups.get(single.id, single.group)) for single in usable]
    ids: dict[str, Path] = {}
    for single in views:
        if not single.id.isprintable():  # a manifest could not name it
            raise FileError(single.path, f"its id {single.id!r} has characters that cannot be printed; rename it")
        if other := ids.get(single.id):
            raise FileError(single.path, f"has the same id as {other} ({single.id!r}); rename one of them")
        ids[single.id] = single.path
    return sorted(views, key=lambda single: single.id)


def _check(single: SingleView, view: ViewName, modalities: Modalities) -> list[SingleView]:
    """Return the usable views among a file and its `partner` (ID_01 and ID_02). Raises FileError if there is none.

    If only one file is usable, its view has the id ID. If both are, each view has the name of its file as id.
    """
    # Two grey views cannot be told apart by their colours, so the names of the files decide.
    partner = single.partner if modalities.first.colour else None
    paths = [single.path, *([partner] if partner else [])]
    images = {path: load_view(path) for path in paths}
    problems = {path: _problem(single, images[path], view, modalities) for path in paths}
    usable = [path for path in paths if problems[path] is None]
    if not usable:
        raise FileError(single.path, str(problems[single.path]))
    # If only one file has the colour of a photograph, the other file is a tinted FA.
    if view == "cf" and modalities.first.colour:
        usable = [path for path in usable if chroma_of(images[path]) > MAX_FA_CHROMA] or usable
    if len(usable) == 1:
        return [replace(single, path=usable[0], partner=None)]
    return [view_of_file(path) for path in usable]  # two photographs IMG_1 and IMG_2, not a pair


def _problem(single: SingleView, image: np.ndarray, view: ViewName, modalities: Modalities) -> str | None:
    """Return why an image (H, W, 3) uint8 cannot be used as this view, or None if it can."""
    seen = image if view == "cf" else np.asarray(Image.fromarray(image).convert("L"))
    if not _field_of(single, seen).any() or np.ptp(image[::4, ::4]) < _MIN_CONTRAST:
        return "shows no retina; replace or remove it"
    chroma = chroma_of(image)
    if view == "cf" and modalities.first.colour and chroma < MIN_CHROMA:
        return "has no colour, so it is not a colour fundus photograph; for an angiogram use --mode fa2cf"
    if view == "fa" and chroma > MAX_FA_CHROMA:
        return "is in colour, so it is not an angiogram; for a colour fundus photograph use --mode cf2fa"
    return None


_MIN_CONTRAST = 16
"""Smallest difference between the brightest and the darkest pixel of a usable image, in [0, 255]."""


def views_sha256(views: Sequence[SingleView]) -> str:
    """Return a hash of the ids, groups, captions, files and masks of all views, in order."""
    files = ([file_sha256(path) for path in (single.path, single.mask) if path] for single in views)
    described = ((single.id, single.group, single.caption) for single in views)
    return json_sha256([[*texts, *hashes] for texts, hashes in zip(described, files, strict=True)])


def crop_view(
    single: SingleView,
    view: ViewName,
    size: int,
    trained: Appearance | None = None,
    first: Modality = CF_FA.first,
) -> GivenView:
    """Load a single view, and crop it to the square around its field of view, resized to `size` px.

    A prepared view is only resized: it is cropped already.

    trained: the mean appearance of the views that the model was trained on, if it is known.
    first: the modality of the first view.
    """
    image = load_first_view(single.path, first) if view == "cf" else load_image(single.path, "L")
    field, shape = _field_of(single, image), image.shape[:2]
    frame = to_square(np.ones_like(field) if single.prepared else field, size)
    mask = resample(field, frame, (size, size))
    cropped = resample(image, frame, (size, size)) * (mask[..., None] if view == "cf" else mask)
    matched = match_appearance(cropped, mask, trained) if trained and mask.any() else cropped
    return GivenView(view, cropped, matched, mask, frame, shape)


def _field_of(single: SingleView, image: np.ndarray) -> np.ndarray:
    """Return the field of view of an image, (H, W) bool: the mask of the view if it has one, else detected.

    Raises UserError, naming the mask, if the mask cannot be read or differs in size from the image.
    """
    if single.mask is None:
        return field_of_view(image)
    field = load_image(single.mask, "L") > 0
    if field.shape != image.shape[:2]:
        raise FileError(single.mask, f"its size differs from that of {single.path.name}; prepare the pair again")
    return field
