"""Read DICOM files of ophthalmic photography: the tags from which pairs are made, and the pixels of a frame.

The values of tags may identify a patient, so no error message contains one, except the name of the compression.
"""

import logging
import unicodedata
import warnings
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from types import ModuleType
from typing import Any, Literal

import numpy as np
from PIL import Image

from retipair.data.deep_image import compose
from retipair.runtime.errors import DamagedError, FileError, UserError

DIRECTORY_NAME = "DICOMDIR"
SUFFIXES = (".dcm", ".dicom")
_OPHTHALMIC_PHOTOGRAPHY = ("1.2.840.10008.5.1.4.1.1.77.1.5.1", "1.2.840.10008.5.1.4.1.1.77.1.5.2")
"""The SOP classes Ophthalmic Photography 8 Bit and 16 Bit Image Storage (PS3.4, annex B)."""
_MODALITIES = ("OP", "XC")
"""Ophthalmic photography and external camera photography. Secondary captures may have them too (PS3.3, C.7.3.1.1.1)."""
_TAGS = (
    *("SOPClassUID", "SOPInstanceUID", "Modality", "PatientID", "ImageLaterality", "Laterality"),
    *("StudyDate", "StudyInstanceUID", "AcquisitionDateTime", "AcquisitionDate", "AcquisitionTime", "ContentDate"),
    *("ContentTime", "SeriesNumber", "InstanceNumber", "ContrastBolusAgent", "ContrastBolusAgentSequence"),
    *("PhotometricInterpretation", "NumberOfFrames", "Rows", "Columns", "BitsAllocated"),
    *("IssuerOfPatientID", "PatientBirthDate", "PatientSex"),
)
_PERSON = ("IssuerOfPatientID", "PatientBirthDate", "PatientSex")
_NO_AGENT = ("", "no", "none", "n/a")
_MAX_BITS = 16
_MAX_DEFLATION = 1032
"""Deflated data has at most this many times the size of the file (zlib.net/zlib_tech.html)."""
_LEAST_FRAME = 32  # bytes; an encoded frame has more, with the header of its item, and a smaller one shows no eye


@dataclass(frozen=True)
class DicomImage:
    """What the tags of a DICOM image state.

    uid: the SOPInstanceUID, which is the same in every copy of the file.
    patient: the PatientID, in upper case and without spaces, as devices differ in both; None if it is missing or empty.
    side: "R" or "L"; None if the laterality is missing or is both.
    day: the StudyDate; the StudyInstanceUID if there is no date.
    order: a sort key by time of acquisition.
    agent: the contrast agent: "other" for indocyanine green, "fluorescein" for any other. None if no agent is stated.
    grey: whether the image has one channel.
    frames: the number of frames.
    size: the (width, height) in px.
    is_photograph: whether the file is an image of ophthalmic photography, of any kind.
    person: the issuer of the PatientID, the birth date and the sex, to find PatientIDs that different people share.
    """

    path: Path
    uid: str
    patient: str | None
    side: Literal["R", "L"] | None
    day: str
    order: tuple[str, int, int]
    agent: Literal["fluorescein", "other"] | None
    grey: bool
    frames: int
    size: tuple[int, int]
    is_photograph: bool
    person: tuple[str, ...] = ()


def is_dicom(path: Path) -> bool:
    """Return whether a file begins as a DICOM file does (PS3.10, 7.1), whatever its name."""
    try:
        if path.is_fifo():  # opening a named pipe waits for a writer
            return False
        with path.open("rb") as stream:
            return stream.read(132)[128:] == b"DICM"
    except OSError:
        return False


def frame_count(path: Path) -> int:
    """Return the number of frames of an image file; 1 if it is not a DICOM file."""
    return read_tags(path).frames if is_dicom(path) else 1


def read_tags(path: Path) -> DicomImage:
    """Read the tags of a DICOM file.

    Raises DamagedError if it cannot be read, if it is an image without a size or without a colour space, or if it is
    too small for the number of frames that it states. Raises FileError if pydicom is missing.
    """
    tags = _dataset(path, _TAGS)
    try:
        image = _described(path, tags)
        _check_frames(image, tags)
        return image
    except UserError:
        raise
    except Exception:  # pydicom converts values when they are used, and raises many types of exceptions
        raise DamagedError(path, "has DICOM tags with invalid values; export it again, or remove it") from None


def referenced_images(directory: Path) -> list[tuple[str, ...]]:
    """Return the paths, as their parts, of the images that a DICOMDIR lists, relative to its folder."""
    records = _dataset(directory, ("DirectoryRecordSequence",)).get("DirectoryRecordSequence") or []
    images = [record for record in records if record.get("DirectoryRecordType") == "IMAGE"]
    names = [record.get("ReferencedFileID") for record in images]
    return [(name,) if isinstance(name, str) else tuple(map(str, name)) for name in names if name]


def read_frame(path: Path, frame: int) -> Image.Image:
    """Read a frame of a DICOM image as an 8-bit grey or RGB image, with its colour profile in `info`.

    pydicom converts YBR and palette colours to RGB. Values of more than 8 bits are scaled as in other deep images: by
    BitsStored, or by the highest value of the frame if BitsStored is 16. In MONOCHROME1, 0 is white.

    frame: the index of the frame, from 0.
    Raises UserError, naming the file, if its pixels cannot be decoded.
    """
    tags = _dataset(path, None)
    try:
        samples = _decoded(path, tags, frame)
        colour, bits = tags.PhotometricInterpretation, tags.BitsStored
        if colour == "PALETTE COLOR":
            samples = _pydicom(path).pixels.apply_color_lut(samples, tags)[..., :3]
            bits = 8 * samples.itemsize
        if tags.HighBit != tags.BitsStored - 1:
            raise FileError(path, "its values do not fill the lowest bits (HighBit); export it with another program")
        if bits > _MAX_BITS or samples.dtype.kind not in "iu" or samples.min(initial=0) < 0:
            raise FileError(path, "has negative values, or more than 16 bits a sample; export it with 8 to 16 bits")
        samples = samples.reshape(*samples.shape[:2], -1).astype(np.uint16) & (2**bits - 1)
        image = compose(samples, "RGB" if samples.shape[2] == 3 else "L", bits, inverted=colour == "MONOCHROME1")
    except UserError:
        raise
    except Exception as error:  # pydicom and its decoders raise many types of exceptions
        problem = f"its pixels cannot be decoded ({type(error).__name__})"
        raise DamagedError(path, f"{problem}; export it again without compression, or remove it") from None
    if image.mode == "RGB" and tags.get("ICCProfile"):
        image.info["icc_profile"] = bytes(tags.ICCProfile)
    return image


def _decoded(path: Path, tags: Any, frame: int) -> np.ndarray:
    pixels, syntax = _pydicom(path).pixels, tags.file_meta.TransferSyntaxUID
    remedy = "install the decoders with pip install 'retipair[dicom]', or export it without compression"
    try:
        available = pixels.get_decoder(syntax).is_available
    except NotImplementedError:  # pydicom has no decoder for this transfer syntax at all
        available = False
    if not available:
        raise FileError(path, f"its compression ({syntax.name}) has no decoder here; {remedy}")
    # From a path, pydicom reads the frame alone, but it does not inflate deflated files.
    source = _pydicom(path).dcmread(path) if syntax.is_deflated else path
    return np.asarray(pixels.pixel_array(source, index=frame))


def _described(path: Path, tags: Any) -> DicomImage:
    if not tags.get("SOPClassUID"):
        raise ValueError("truncated")
    modality, rows = str(tags.get("Modality") or ""), int(tags.get("Rows") or 0)
    side = str(tags.get("ImageLaterality") or tags.get("Laterality") or "").strip().upper()
    colour = str(tags.get("PhotometricInterpretation") or "")
    size = int(tags.get("Columns") or 0), rows
    if "Image Storage" in tags.SOPClassUID.name and not (all(size) and colour):
        problem = "Rows, Columns or PhotometricInterpretation is missing, as in a truncated file"
        raise DamagedError(path, f"{problem}; copy or export it again, or remove it")
    ophthalmic = tags.get("SOPClassUID") in _OPHTHALMIC_PHOTOGRAPHY or modality in _MODALITIES
    return DicomImage(
        path=path,
        uid=str(tags.get("SOPInstanceUID") or path),
        patient="".join(unicodedata.normalize("NFKC", str(tags.get("PatientID") or "")).upper().split()) or None,
        side="R" if side == "R" else "L" if side == "L" else None,
        day=str(tags.get("StudyDate") or tags.get("StudyInstanceUID") or ""),
        order=(_time(tags), int(tags.get("SeriesNumber") or 0), int(tags.get("InstanceNumber") or 0)),
        agent=_agent(tags),
        grey=colour.startswith("MONOCHROME"),
        frames=max(1, int(tags.get("NumberOfFrames") or 1)),
        size=size,
        is_photograph=ophthalmic and rows > 0 and bool(colour),
        person=tuple(str(tags.get(name) or "").strip().upper() for name in _PERSON),
    )


def _check_frames(image: DicomImage, tags: Any) -> None:
    """Raise DamagedError if the file is too small for its number of frames, which would otherwise take all memory."""
    if image.frames == 1:
        return
    syntax = tags.file_meta.TransferSyntaxUID
    least, limit = _LEAST_FRAME, image.path.stat().st_size
    if syntax.is_transfer_syntax and not syntax.is_compressed:
        least = max(least, image.size[0] * image.size[1] * int(tags.get("BitsAllocated") or 0) // 8)
        limit *= _MAX_DEFLATION if syntax.is_deflated else 1
    if image.frames * least > limit:
        problem = "states more frames (NumberOfFrames) than a file of its size has"
        raise DamagedError(image.path, f"{problem}; export it again, or remove it")


def _time(tags: Any) -> str:
    """Return the time of acquisition, or else of the content, as text that sorts by time."""
    if tags.get("AcquisitionDateTime"):
        return str(tags.AcquisitionDateTime)
    kind = "Acquisition" if tags.get("AcquisitionTime") else "Content"
    return f"{tags.get(f'{kind}Date') or tags.get('StudyDate') or ''}{tags.get(f'{kind}Time') or ''}"


def _agent(tags: Any) -> Literal["fluorescein", "other"] | None:
    codes = [
        str(item.get("CodeMeaning") or item.get("CodeValue") or "")
        for item in tags.get("ContrastBolusAgentSequence") or ()
    ]
    text = " ".join([str(tags.get("ContrastBolusAgent") or ""), *codes]).strip().lower()
    if text in _NO_AGENT:
        return None
    is_other = ("indocyanine" in text or "icg" in text) and not ("fluorescein" in text or "fluoreszein" in text)
    return "other" if is_other else "fluorescein"


def _dataset(path: Path, names: tuple[str, ...] | None) -> Any:
    """Return the data set of a file without its pixels; only the tags with these names, unless None."""
    pydicom = _pydicom(path)
    try:
        return pydicom.dcmread(path, stop_before_pixels=True, specific_tags=list(names) if names else None)
    except Exception:  # pydicom raises many types of exceptions for malformed files
        raise DamagedError(path, "cannot be read as DICOM; export it again, or remove it") from None


def check_installed(path: Path) -> None:
    """Raise FileError, naming a DICOM file or a folder of them, if pydicom is not installed."""
    _pydicom(path)


def _pydicom(path: Path) -> ModuleType:
    try:
        return _import_pydicom()
    except ImportError:
        raise FileError(path, "reading DICOM files needs pydicom: pip install 'retipair[dicom]'") from None


@cache
def _import_pydicom() -> ModuleType:
    """Import pydicom, and turn off its warnings, which quote values of tags."""
    import pydicom
    import pydicom.pixels

    pydicom.config.settings.reading_validation_mode = pydicom.config.IGNORE
    logging.getLogger("pydicom").setLevel(logging.CRITICAL)
    warnings.filterwarnings("ignore", module="pydicom")
    return pydicom
