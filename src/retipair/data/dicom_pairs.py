"""Make pairs of the DICOM files in a folder by their tags: patient, laterality, contrast agent and colour.

CF and FA of the same patient, eye and day become one pair. The ids that are made here name the patient: `prepare` and
`register` replace them by keyed hashes before anything is printed or written.
"""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from datetime import date
from pathlib import Path
from typing import Literal

from retipair.data.dicom import (
    DIRECTORY_NAME,
    SUFFIXES,
    DicomImage,
    check_installed,
    is_dicom,
    read_tags,
    referenced_images,
)
from retipair.data.folders import is_image_name, points_beside, visible
from retipair.data.pair import MAX_FA_CHROMA, chroma_of, load_image
from retipair.data.raw_pair import RawPair, SkippedPair
from retipair.runtime.errors import DamagedError, MissingError, UserError

_OTHER_DAY = "the CF is of another day than the FA, as there is no CF of that day; check that the eye has not changed"
_UNKNOWN_AGENT = (
    "no tag states fluorescein, so the FA may be a red-free or infrared photograph; look at the contact sheet"
)
_TABLE = "or name the two files in a table (columns cf, fa)"
Kind = Literal["cf", "fa", "other"]
Days = dict[str, list[DicomImage]]
"""The images of one kind of an eye, by day."""


def is_dicom_folder(root: Path) -> bool:
    """Return whether a folder has a DICOMDIR, or DICOM files and no images of other formats in it and its subfolders.

    Folders that contain a DICOMDIR may also contain a viewer with images of its own.
    """
    if _directory(root):
        return True
    found = False
    for path in _files(root, ignore_unreadable=True):
        if path.suffix.lower() in SUFFIXES:
            found = True
        elif is_image_name(path):
            return False
        elif not found:
            found = is_dicom(path)
    return found


def find_dicom_pairs(root: Path) -> Iterator[RawPair | SkippedPair]:
    """Yield the pairs of a folder of DICOM files.

    If the folder has a DICOMDIR, only the images that it lists are read. Files of other kinds than ophthalmic
    photography, angiograms with indocyanine green, and copies of the same image are ignored.
    Raises MissingError if all files of the folder can be read and none is an image of ophthalmic photography.
    """
    check_installed(root)
    read = [path if isinstance(path, SkippedPair) else _read_or_skipped(path) for path in _dicom_files(root)]
    unusable = [image for image in read if isinstance(image, SkippedPair)]
    found = [image for image in read if isinstance(image, DicomImage) and image.is_photograph]
    if not found and not unusable:
        raise MissingError(root, "no DICOM image of ophthalmic photography (modality OP or XC); give another folder")
    yield from unusable
    images = {image.uid: image for image in reversed(found)}  # of several copies of an image, the first
    eyes: dict[tuple[str, str], list[DicomImage]] = {}
    for image in sorted(images.values(), key=lambda image: (image.order, image.path)):
        if problem := _unknown_eye(image):
            yield SkippedPair(image.path.name, f"{image.path}: {problem}; add it in the DICOM export, {_TABLE}")
        else:
            eyes.setdefault((str(image.patient), str(image.side)), []).append(image)
    shared = _shared_ids(image for photographs in eyes.values() for image in photographs)
    for (patient, side), photographs in sorted(eyes.items()):
        if patient in shared:
            path = photographs[0].path
            problem = "images of different people have its PatientID (they differ in birth date, sex or issuer)"
            yield SkippedPair(path.name, f"{path}: {problem}; export each person with a PatientID of their own")
        else:
            yield from _pairs_of_eye(patient, side, photographs)


def _shared_ids(images: Iterable[DicomImage]) -> set[str]:
    """Return the PatientIDs that images of different people have."""
    people: dict[str, list[set[str]]] = {}
    for image in images:
        found = people.setdefault(str(image.patient), [set() for _ in image.person])
        for values, value in zip(found, image.person, strict=True):
            values |= {value} - {""}
    return {patient for patient, found in people.items() if any(len(values) > 1 for values in found)}


def _read_or_skipped(path: Path) -> DicomImage | SkippedPair:
    try:
        return read_tags(path)
    except UserError as error:
        return SkippedPair(path.name, str(error))


def with_tags(pair: RawPair) -> RawPair | SkippedPair:
    """Return a pair with the patient and the eye that the tags of its DICOM files name, where they are not given.

    A pair without DICOM files is returned unchanged. A pair whose views have tags of different patients or eyes cannot
    be used.
    """
    if pair.dicom:  # from `find_dicom_pairs`
        return pair
    files = [path for path in (pair.cf, pair.fa) if is_dicom(path)]
    if not files:
        return pair
    try:
        images = [read_tags(path) for path in files]
    except UserError as error:
        return SkippedPair(pair.id, str(error))
    patients = {image.patient for image in images if image.patient}
    sides = {image.side for image in images if image.side}
    for values, name in ((patients, "PatientID"), (sides, "laterality")):
        if len(values) > 1:
            problem = f"its {name} differs from that of {pair.cf.name}; pair views of one eye"
            return SkippedPair(pair.id, f"{pair.fa}: {problem}")
    patient = pair.patient or next(iter(patients), None)
    eye = pair.eye or (f"{patient} {next(iter(sides))}" if patient and sides else None)
    return replace(pair, patient=patient, eye=eye, dicom=True)


# --- Files


def _directory(root: Path) -> Path | None:
    return next((path for path in _visible(root) if path.name.upper() == DIRECTORY_NAME and path.is_file()), None)


def _dicom_files(root: Path) -> Iterator[Path | SkippedPair]:
    if directory := _directory(root):
        for parts in referenced_images(directory):
            path = root
            for part in parts:
                path = _spelled(path, part)
            listed = "/".join(parts)
            missing = f"{directory}: lists {listed}, which does not exist; copy the whole disk again"
            yield path if path.is_file() else SkippedPair(listed, missing)
        return
    for path in _files(root):
        if path.suffix.lower() in SUFFIXES or is_dicom(path):
            yield path


def _spelled(folder: Path, name: str) -> Path:
    """Return the path of a file that a DICOMDIR names in upper case; copies of a disk may have it in lower case."""
    return next((folder / spelling for spelling in (name, name.lower()) if (folder / spelling).exists()), folder / name)


def _files(root: Path, ignore_unreadable: bool = False) -> Iterator[Path]:
    """Yield the files in a folder and its subfolders, without hidden ones. Links to folders are not followed."""
    for path in _visible(root) if ignore_unreadable else visible(root):
        if path.is_dir():
            if not path.is_symlink():
                yield from _files(path, ignore_unreadable)
        elif path.is_file():
            yield path


def _visible(folder: Path) -> list[Path]:
    try:
        return visible(folder)
    except DamagedError:
        return []


# --- Pairs


def _unknown_eye(image: DicomImage) -> str | None:
    """Return which tag is missing that names the eye, or None."""
    if image.side is None:
        return "no laterality R or L (tags ImageLaterality, Laterality), so its eye is unknown"
    if image.patient is None:
        return "no PatientID, so its patient is unknown"
    return None


def _pairs_of_eye(patient: str, side: str, images: Sequence[DicomImage]) -> Iterator[RawPair | SkippedPair]:
    """Yield a pair for each day on which an eye has an FA. The CF is of the same day, or of the nearest day.

    images: all images of the eye, sorted by time.
    """
    days: dict[Kind, Days] = {"cf": {}, "fa": {}, "other": {}}
    unreadable = []
    for image in images:
        try:
            days[_kind(image)].setdefault(image.day, []).append(image)
        except UserError as error:
            unreadable.append(SkippedPair(image.path.name, str(error)))
    yield from unreadable
    if not (days["cf"] and days["fa"]):
        missing = "CF" if days["fa"] else "FA"
        path = images[0].path
        problem = f"its eye has no {missing} in this folder; add the {missing}, or remove the images of this eye"
        if not unreadable:  # else an unreadable image may be the one that is missing
            yield SkippedPair(path.name, f"{path}: {problem}, {_TABLE}")
        return
    # If some images of the eye state fluorescein, those without an agent are red-free or autofluorescence photographs.
    states_agents = any(image.agent for fas in days["fa"].values() for image in fas)
    for day, found in days["fa"].items():
        if not (fas := [image for image in found if image.agent or not states_agents]):
            continue
        nearest = min(days["cf"], key=lambda other: (_days_between(day, other), other))
        if _days_between(day, nearest) == float("inf"):
            problem = "no CF of its study, and no date to find the nearest one"
            yield SkippedPair(fas[0].path.name, f"{fas[0].path}: {problem}; add the CF to the study, {_TABLE}")
            continue
        warnings = (*([_OTHER_DAY] if nearest != day else []), *([] if states_agents else [_UNKNOWN_AGENT]))
        pair = _pair(f"{patient} {side} {day}", patient, side, days["cf"][nearest], fas)
        yield replace(pair, warnings=warnings) if isinstance(pair, RawPair) else pair


def _days_between(day: str, other: str) -> float:
    """Return the number of days between two days; 0 for equal ones, infinity if one of them is not a date."""
    if day == other:
        return 0
    try:
        return abs((date.fromisoformat(day) - date.fromisoformat(other)).days)
    except ValueError:
        return float("inf")


def _kind(image: DicomImage) -> Kind:
    """Return whether an image is a CF or an FA: by its contrast agent, its number of channels, and else its colour."""
    if image.agent:
        return "fa" if image.agent == "fluorescein" else "other"
    if image.grey:
        return "fa"
    return "cf" if chroma_of(load_image(image.path, "RGB")) > MAX_FA_CHROMA else "fa"


def _pair(id: str, patient: str, side: str, cfs: list[DicomImage], fas: list[DicomImage]) -> RawPair | SkippedPair:
    try:
        points = {image.path: points_beside(image.path) for image in (*cfs, *fas)}
    except UserError as error:
        return SkippedPair(id, str(error))
    cf_paths, fa_paths = ([image.path for image in images] for images in (cfs, fas))
    marked = [[path for path in paths if points[path]] for paths in (cf_paths, fa_paths)]
    if all(marked):  # the user has placed points in these
        cf_paths, fa_paths = marked
    cf_points, fa_points = (points[paths[0]] if paths else None for paths in marked)
    return RawPair(
        id=id,
        cf=cf_paths[0],
        fa=fa_paths[0],
        cf_points=cf_points,
        fa_points=fa_points,
        eye=f"{patient} {side}",
        patient=patient,
        views_named=True,
        more_cf=tuple(cf_paths[1:]),
        more_fa=tuple(fa_paths[1:]),
        dicom=True,
    )
