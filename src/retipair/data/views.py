"""Find the single views from which `generate --mode cf2fa` or `fa2cf` generates the other view; decode no image.

The views are one image, the images of a folder, the images that a table lists, or one view of each pair of a prepared
or generated folder. A folder may also have any layout of raw pairs that `retipair prepare` reads, except DICOM and
Parquet files.
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import NoReturn

from retipair.data.dataset import read_dataset
from retipair.data.dicom import is_dicom
from retipair.data.dicom_pairs import is_dicom_folder
from retipair.data.folders import NUMBERED, images_in, is_existing_file, is_image_name, spelled_as_on_disk, visible
from retipair.data.manifest import check_finished, has_manifest
from retipair.data.sources import COLUMNS, DOUBLED, check_eyes_known, check_no_pair_table, eyes_table
from retipair.data.tables import read_eyes, table_rows
from retipair.diffusion.halves import ViewName
from retipair.runtime.errors import FileError, MissingError, UserError
from retipair.runtime.text_files import nfc
from retipair.vision.modality import CF_FA, Modalities

_FOLDERS: dict[ViewName, tuple[str, ...]] = {"cf": ("cf", "cfs"), "fa": ("fa", "fas")}


@dataclass(frozen=True)
class SingleView:
    """One CF or FA, as a file name.

    group: the name of the patient, or of the eye if the patient is unknown; the id if both are unknown.
    mask: the mask of a prepared pair; None if the field of view of the single view must be detected.
    caption: the caption of the pair, or None.
    partner: the file that, by its name (ID_01 and ID_02), is the other view of the pair; None if there is no such file.
    prepared: whether the view is already cropped to a square.
    """

    id: str
    group: str
    path: Path
    mask: Path | None = None
    caption: str | None = None
    partner: Path | None = None
    prepared: bool = False


def find_views(data: Path, view: ViewName, modalities: Modalities = CF_FA) -> list[SingleView]:
    """Return the single views in an image, folder or table.

    Of two images ID_01 and ID_02 in one folder, one is returned, with the other as its `partner`.
    modalities: the modalities of the pairs to generate.
    Raises UserError, naming the path, if there are no views, if a view is a DICOM file, or if a table names other
    modalities.
    """
    if has_manifest(data):
        return list(_of_pairs(data, view))
    check_finished(data)
    if is_dicom(data) or (data.is_dir() and is_dicom_folder(data)):
        _refuse_dicom(data)
    if data.is_dir():
        check_no_pair_table(data)
        views = list(_in_folder(data, view))
    elif is_image_name(data) and data.is_file():
        views = [view_of_file(data)]
    elif data.is_file():
        views = list(_in_table(data, view, modalities))
    else:
        raise MissingError(data, "no such file or folder; give an image, or a folder or table of images")
    if not views:
        remedy = f"put images there, or into a subfolder {view}/, or prepare a data set of Parquet files first"
        raise MissingError(data, f"no images in it; {remedy}")
    if dicom := next((single.path for single in views if is_dicom(single.path)), None):
        _refuse_dicom(dicom)
    return views


def _refuse_dicom(path: Path) -> NoReturn:
    """Raise FileError, since the manifest would name a DICOM file, whose name may identify the patient."""
    raise FileError(path, "holds DICOM; run `retipair prepare` on the folder of both views, and give its OUT")


def listed_groups(data: Path) -> dict[str, str]:
    """Return the patient, or the eye if the patient is unknown, of each id that the `eyes.csv` of a folder lists.

    The result is empty if there is no such table, or if `data` is an image, a table, or a prepared or generated folder.
    """
    table = eyes_table(data) if data.is_dir() and not has_manifest(data) else None
    return {id: eye["patient"] or eye["eye"] for id, eye in read_eyes(table).items()} if table else {}


def view_of_file(path: Path) -> SingleView:
    """Return an image file as a view, whose id is the name of the file without its suffix."""
    return SingleView(nfc(path.stem), nfc(path.stem), path)


def _of_pairs(folder: Path, view: ViewName) -> Iterator[SingleView]:
    for pair in read_dataset(folder):
        path = pair.cf if view == "cf" else pair.fa
        yield SingleView(pair.id, pair.group, path, pair.mask, pair.caption, prepared=True)


def _in_folder(root: Path, view: ViewName) -> Iterator[SingleView]:
    """Yield the views in the folder of this view (cf/ or fa/), if it exists, else the views in ABNORMAL/ and NORMAL/.

    If none of these folders exists, yield the views in `root` and its subfolders.
    """
    subfolders = [path for path in visible(root) if path.is_dir()]
    if named := [path for path in subfolders if path.name.lower() in _FOLDERS[view]]:
        for folder in named:
            yield from map(view_of_file, _images_in_flat(folder))
    elif isfahan := [path for path in subfolders if path.name.lower() in ("abnormal", "normal")]:
        for folder in isfahan:
            yield from _isfahan(folder, view)
    else:
        for folder in (root, *subfolders):
            yield from _numbered(images_in(folder), view)


def _images_in_flat(folder: Path) -> list[Path]:
    """Return the images in a folder. Raises FileError if a subfolder has images, which would be left out."""
    if deeper := next((path for path in visible(folder) if path.is_dir() and images_in(path)), None):
        raise FileError(deeper, f"is not searched; move its images to {folder.name}/ or away")
    return images_in(folder)


def _isfahan(folder: Path, view: ViewName) -> Iterator[SingleView]:
    """Yield the views of ABNORMAL/, where n is CF and n-n is FA, or of NORMAL/, where n is FA and n-n is CF."""
    kind = folder.name.lower()
    for path in _images_in_flat(folder):
        doubled = DOUBLED.fullmatch(stem := nfc(path.stem))
        if (view == "fa") == (bool(doubled) == (kind == "abnormal")):
            name = f"{kind}_{doubled['id'] if doubled else stem}"
            yield SingleView(name, name, path)


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
            yield view_of_file(path)


def _in_table(path: Path, view: ViewName, modalities: Modalities) -> Iterator[SingleView]:
    ids, named = set(), False
    for where, row in table_rows(path, COLUMNS, needed=(view,)):
        _check_modalities(row, where, modalities)
        image = spelled_as_on_disk(path.parent / row[view])
        if not is_existing_file(image):
            raise UserError(f"{where}: {image} does not exist; paths are relative to the table")
        name, group = _id_in_table(row), row.get("patient") or row.get("eye")
        if name in ids:
            raise UserError(f"{where}: duplicate id {name!r}; remove one line, or add a column id")
        ids.add(name)
        named = named or group is not None
        yield SingleView(name, nfc(group or name), image, caption=row.get("caption"))
    check_eyes_known(path, named)


def _check_modalities(row: dict[str, str], where: str, modalities: Modalities) -> None:
    """Raise UserError, naming the row, if it names another modality than the pairs to generate have."""
    for column, key in zip(("cf_modality", "fa_modality"), modalities.keys, strict=True):
        if (named := row.get(column, key)) != key:
            problem = f"{column} is {named}, but this model generates pairs of {' and '.join(modalities.keys)}"
            raise UserError(f"{where}: {problem}; correct the table, or use an adapter of such pairs")


def _id_in_table(row: dict[str, str]) -> str:
    """Return the value of the column id, else the name of the CF (or else of the FA) without the number of the view."""
    stem = re.sub(r"_0?1$", "", Path(row["cf"]).stem) if "cf" in row else re.sub(r"_0?2$", "", Path(row["fa"]).stem)
    return nfc(row.get("id") or stem)
