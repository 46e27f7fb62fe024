"""DICOM files as fundus cameras export them, made with pydicom: with names, ids, dates and UIDs in their tags."""

from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pydicom
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.uid import ExplicitVRLittleEndian, generate_uid

OP_8_BIT = "1.2.840.10008.5.1.4.1.1.77.1.5.1"
OP_16_BIT = "1.2.840.10008.5.1.4.1.1.77.1.5.2"
SECONDARY_CAPTURE = "1.2.840.10008.5.1.4.1.1.7"
UID_ROOT = "1.3.6.1.4.1.99999."
PERSONAL = {
    "PatientName": "Lovelace^Augusta",
    "PatientBirthDate": "18151210",
    "PatientSex": "F",
    "OtherPatientIDs": "NHS-4857773456",
    "InstitutionName": "Saint Erewhon Eye Clinic",
    "ReferringPhysicianName": "Babbage^Charles",
    "AccessionNumber": "ACC77120",
    "DeviceSerialNumber": "SN-90817263",
    "StationName": "ROOM-EREWHON",
    "StudyTime": "101112.130000",
    "ContentTime": "101213.140000",
    "ImageComments": "Augusta looked left",
}
"""What names the patient, the clinic or the camera, in every file."""


@dataclass(frozen=True, kw_only=True)
class DicomForm:
    """The tags of a file; tags: added or replaced, or removed if None."""

    patient: str = "MRN-0001"
    side: str = "R"
    day: str = "20240517"
    number: int = 1
    bits: int = 8
    photometric: str | None = None
    sop_class: str = OP_8_BIT
    agent: str | None = None
    modality: str = "OP"
    tags: dict[str, object] = field(default_factory=dict)


def write_dicom(path: Path, pixels: np.ndarray, form: DicomForm) -> Path:
    """Write pixels (H, W), (H, W, 3) or frames (N, H, W), of form.bits bits a sample."""
    colour = pixels.ndim == 3 and pixels.shape[2] == 3
    frames = len(pixels) if pixels.ndim == 3 and not colour else 1
    height, width = pixels.shape[:2] if frames == 1 else pixels.shape[1:]
    tags = Dataset()
    tags.file_meta = FileMetaDataset()
    tags.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    tags.SOPClassUID = tags.file_meta.MediaStorageSOPClassUID = form.sop_class
    tags.SOPInstanceUID = tags.file_meta.MediaStorageSOPInstanceUID = generate_uid(UID_ROOT)
    tags.StudyInstanceUID, tags.SeriesInstanceUID = generate_uid(UID_ROOT), generate_uid(UID_ROOT)
    tags.Modality, tags.PatientID, tags.ImageLaterality, tags.StudyDate = (
        form.modality,
        form.patient,
        form.side,
        form.day,
    )
    tags.InstanceNumber, tags.AcquisitionDateTime = form.number, f"{form.day}1011{form.number:02}"
    tags.Rows, tags.Columns, tags.SamplesPerPixel = height, width, 3 if colour else 1
    tags.PhotometricInterpretation = form.photometric or ("RGB" if colour else "MONOCHROME2")
    tags.BitsAllocated = 8 if form.bits <= 8 else 16
    tags.BitsStored, tags.HighBit, tags.PixelRepresentation = form.bits, form.bits - 1, 0
    if colour:
        tags.PlanarConfiguration = 0
    if frames > 1:
        tags.NumberOfFrames = frames
    if form.agent:
        tags.ContrastBolusAgent = form.agent
    for name, value in {**PERSONAL, **form.tags}.items():
        if value is None:
            delattr(tags, name)
        else:
            setattr(tags, name, value)
    tags.PixelData = pixels.astype("<u1" if form.bits <= 8 else "<u2").tobytes()
    path.parent.mkdir(parents=True, exist_ok=True)
    pydicom.dcmwrite(path, tags, enforce_file_format=True)
    return path


def personal_texts(folder: Path) -> set[str]:
    """What must occur in no output: the texts of all tags that name a person, a place, a day, a device or a file."""
    texts = set()
    names = (*PERSONAL, "PatientID", "StudyDate", "AcquisitionDateTime", "SOPInstanceUID", "StudyInstanceUID")
    for path in folder.rglob("*"):
        if path.is_file():
            tags = pydicom.dcmread(path, stop_before_pixels=True)
            texts |= {str(tags[name].value) for name in (*names, "SeriesInstanceUID") if name in tags}
            texts.add(path.name)
    return {text for whole in texts for text in (whole, *whole.split("^")) if len(text) > 4}
