"""Find single views, from which `generate --mode cf2fa` and `--mode fa2cf` draw the other view, without decoding them.

The views are one image, the images of a folder, those that a table lists, or one view of each pair of a prepared or
generated folder. A folder may also have the layout of the pairs that `retipair prepare` reads.
"""

import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path

from retipair.data.dataset import read_dataset
from retipair.data.folders import IMAGE_SUFFIXES, NUMBERED, images_in, visible
from retipair.data.manifest import MANIFEST_NAME, check_finished
from retipair.data.sources import EYES_TABLE
from retipair.data.tables import read_eyes, table_rows
from retipair.diffusion.halves import ViewName
from retipair.runtime.errors import MissingError, UserError
from retipair.runtime.text_files import nfc

_COLUMNS = ("id", "cf", "fa", "cf_points", "fa_points", "eye", "patient", "split", "caption")
_FOLDERS: dict[ViewName, tuple[str, ...]] = {"cf": ("cf", "cfs"), "fa": ("fa", "fas")}


@dataclass(frozen=True)
class SingleView:
    """One CF or FA, as a file name.

    group: the name of the patient, or of the eye if the patient is unknown; the id if both are unknown.
    mask: the mask of a prepared view, which shows its field of view; None if it must be detected.
    caption: the caption of the pair, or None.
    partner: a file that may be the other view, by its name (ID_01 and ID_02); None if there is none.
    prepared: whether the view is already cropped to a square.
    """

    id: str
    group: str
    path: Path
    mask: Path | None = None
    caption: str | None = None
    partner: Path | None = None
    prepared: bool = False


def find_views(data: Path, view: ViewName) -> list[SingleView]:
    """Return the single views in an image, folder or table.

    Two images ID_01 and ID_02 of one folder are returned as one view, and the other image as its `partner`.
    Raises UserError, naming the file, if there are none.
    """
    if (data / MANIFEST_NAME).is_file():
        return list(_of_pairs(data, view))
    check_finished(data)
    if data.is_dir():
        views = _with_eyes(data, _in_folder(data, view))
    elif data.suffix.lower() in IMAGE_SUFFIXES and data.is_file():
        views = [SingleView(nfc(data.stem), nfc(data.stem), data)]
    elif data.is_file():
        views = list(_in_table(data, view))
    else:
        raise MissingError(data, "no such file or folder; give an image, or a folder or table of images")
    if not views:
        raise MissingError(data, f"no images in it; put images there, or into a subfolder {view}/")
    return views


def _of_pairs(folder: Path, view: ViewName) -> Iterator[SingleView]:
    for pair in read_dataset(folder):
        path = pair.cf if view == "cf" else pair.fa
        yield SingleView(pair.id, pair.group, path, pair.mask, pair.caption, prepared=True)


def _in_folder(root: Path, view: ViewName) -> Iterator[SingleView]:
    """Yield the images in cf/ or fa/ if there is such a folder, else those in the folder and its subfolders."""
    subfolders = [path for path in visible(root) if path.is_dir()]
    named = [path for path in subfolders if path.name.lower() in _FOLDERS[view]]
    for folder in named or [root, *subfolders]:
        yield from _numbered(images_in(folder), view)


def _numbered(images: list[Path], view: ViewName) -> Iterator[SingleView]:
    """Yield the views of one folder."""
    numbered: dict[str, list[Path]] = {}
    for path in images:
        if match := NUMBERED.fullmatch(nfc(path.stem)):
            numbered.setdefault(match["id"], []).append(path)
    pairs = {name: sorted(paths) for name, paths in numbered.items() if len(paths) == 2}
    for name, (first, second) in pairs.items():
        path, partner = (first, second) if view == "cf" else (second, first)
        yield SingleView(name, name, path, partner=partner)
    paired = {path for paths in pairs.values() for path in paths}
    for path in images:
        if path not in paired:
            yield SingleView(nfc(path.stem), nfc(path.stem), path)


def _with_eyes(folder: Path, views: Iterable[SingleView]) -> list[SingleView]:
    """Return the views with the patients or eyes that the folder's `eyes.csv` lists for them, if there is one."""
    table = folder / EYES_TABLE
    groups = {id: eye["patient"] or eye["eye"] for id, eye in read_eyes(table).items()} if table.is_file() else {}
    return [replace(view, group=groups.get(view.id, view.group)) for view in views]


def _in_table(path: Path, view: ViewName) -> Iterator[SingleView]:
    for where, row in table_rows(path, _COLUMNS, needed=(view,)):
        image = path.parent / row[view]
        if not image.is_file():
            raise UserError(f"{where}: {image} does not exist; paths are relative to the table")
        name = nfc(row.get("id") or re.sub(r"_0?[12]$", "", image.stem))
        yield SingleView(name, nfc(row.get("patient") or row.get("eye") or name), image, caption=row.get("caption"))
