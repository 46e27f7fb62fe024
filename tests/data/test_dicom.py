"""The pixels of DICOM files are those of the same image in a PNG, and errors say what to do but nothing personal."""

import io
import sys
from pathlib import Path

import gdcm
import numpy as np
import pydicom
import pytest
from PIL import Image, ImageCms
from pydicom.encaps import encapsulate
from pydicom.pixels import compress
from pydicom.uid import (
    JPEG2000,
    UID,
    DeflatedExplicitVRLittleEndian,
    ImplicitVRLittleEndian,
    JPEG2000Lossless,
    JPEGBaseline8Bit,
    JPEGExtended12Bit,
    JPEGLossless,
    JPEGLosslessSV1,
    JPEGLSLossless,
    JPEGLSNearLossless,
    RLELossless,
)

from dicom_files import OP_16_BIT, PERSONAL, DicomForm, write_dicom
from image_files import png
from refusals import raises_file
from retipair.data.dicom import frame_count, is_dicom, read_frame, read_tags
from retipair.data.pair import image_size, load_image, synthetic_mark_of
from retipair.runtime.errors import DamagedError, FileError

RNG = np.random.default_rng(0)
GREY = RNG.integers(0, 256, (40, 50), dtype=np.uint8)
COLOUR = RNG.integers(0, 256, (40, 50, 3), dtype=np.uint8)
DEEP = RNG.integers(0, 2**12, (40, 50), dtype=np.uint16)


def written(folder: Path, pixels: np.ndarray, **form: object) -> Path:
    return write_dicom(folder / "im1", pixels, DicomForm(**form))  # type: ignore[arg-type]


def test_eight_bits_are_kept(tmp_path: Path) -> None:
    assert (load_image(written(tmp_path, GREY), "L") == GREY).all()
    path = written(tmp_path, COLOUR)
    assert (load_image(path, "RGB") == COLOUR).all()
    assert is_dicom(path)
    assert (image_size(path), frame_count(path), synthetic_mark_of([path])) == ((50, 40), 1, {})


@pytest.mark.parametrize("bits", [10, 12, 16])
def test_deep_values_are_scaled_as_in_a_png(bits: int, tmp_path: Path) -> None:
    """A PNG of 16 bits states no smaller depth: it is the number of bits of the highest value."""
    values = DEEP >> 2 if bits == 10 else DEEP
    (tmp_path / "a.png").write_bytes(png(values[..., None]))
    path = written(tmp_path, values, bits=bits, sop_class=OP_16_BIT)
    assert (load_image(path, "L") == load_image(tmp_path / "a.png", "L")).all()


def test_the_stated_depth_decides_if_it_is_below_sixteen_bits(tmp_path: Path) -> None:
    dark = DEEP >> 3
    seen = load_image(written(tmp_path, dark, bits=12), "L")
    assert abs(seen.astype(float) - dark * 255.0 / 4095).max() <= 0.5


@pytest.mark.parametrize(("values", "bits"), [(GREY, 8), (DEEP, 12)])
def test_zero_is_white_in_monochrome1(values: np.ndarray, bits: int, tmp_path: Path) -> None:
    dark = load_image(written(tmp_path, values, bits=bits), "L")
    assert (load_image(written(tmp_path, values, bits=bits, photometric="MONOCHROME1"), "L") == 255 - dark).all()


def test_ybr_and_palettes_become_rgb(tmp_path: Path) -> None:
    ybr = np.asarray(Image.fromarray(COLOUR).convert("YCbCr"))
    seen = load_image(written(tmp_path, ybr, photometric="YBR_FULL"), "RGB")
    expected = np.asarray(Image.fromarray(ybr, "YCbCr").convert("RGB")).astype(int)
    assert abs(seen - expected).max() <= 1
    red, green, blue = (np.roll(np.arange(256, dtype=np.uint8), shift) for shift in (0, 10, 100))
    tables = {"Red": red, "Green": green, "Blue": blue}
    tags: dict[str, object] = {f"{name}PaletteColorLookupTableDescriptor": [256, 0, 8] for name in tables}
    tags |= {f"{name}PaletteColorLookupTableData": table.tobytes() for name, table in tables.items()}
    seen = load_image(written(tmp_path, GREY, photometric="PALETTE COLOR", tags=tags), "RGB")
    assert (seen == np.stack([red[GREY], green[GREY], blue[GREY]], axis=-1)).all()


def test_a_frame_is_read_by_its_number(tmp_path: Path) -> None:
    frames = np.stack([GREY, GREY[::-1], GREY[:, ::-1]])
    path = written(tmp_path, frames)
    assert frame_count(path) == 3
    for number, frame in enumerate(frames, start=1):
        assert (load_image(path, "L", frame=number) == frame).all()


@pytest.mark.parametrize("syntax", [RLELossless, JPEG2000Lossless])
def test_lossless_compression_changes_nothing(syntax: UID, tmp_path: Path) -> None:
    path = written(tmp_path, DEEP, bits=12)
    tags = pydicom.dcmread(path)
    compress(tags, syntax, generate_instance_uid=False)
    tags.save_as(path)
    assert (load_image(path, "L") == load_image(written(tmp_path / "plain", DEEP, bits=12), "L")).all()


@pytest.mark.parametrize("syntax", [ImplicitVRLittleEndian, DeflatedExplicitVRLittleEndian])
def test_other_encodings_change_nothing(syntax: UID, tmp_path: Path) -> None:
    path = written(tmp_path, DEEP, bits=12)
    expected, tags = load_image(path, "L"), pydicom.dcmread(path)
    tags.file_meta.TransferSyntaxUID = syntax
    tags["PixelData"].VR = "OW"
    tags.save_as(path)
    assert (load_image(path, "L") == expected).all()


def test_compressed_colour_is_rgb(tmp_path: Path) -> None:
    smooth = np.asarray(Image.fromarray(COLOUR[:5, :6]).resize((64, 48)))
    path = written(tmp_path, smooth)
    tags = pydicom.dcmread(path)
    compress(tags, JPEG2000Lossless, generate_instance_uid=False)
    tags.save_as(path)
    assert (load_image(path, "RGB") == smooth).all()
    stream = io.BytesIO()
    Image.fromarray(smooth).save(stream, "JPEG", quality=95)
    tags = pydicom.dcmread(written(tmp_path, smooth, photometric="YBR_FULL_422"))
    tags.file_meta.TransferSyntaxUID, tags.PixelData = JPEGBaseline8Bit, encapsulate([stream.getvalue()])
    tags["PixelData"].is_undefined_length = True
    tags.save_as(path)
    assert abs(load_image(path, "RGB").astype(int) - smooth).mean() < 3


def recompress(path: Path, syntax: UID) -> None:
    """Compress the pixels of a file with GDCM, which has encoders that pydicom lacks."""
    reader, change, writer = gdcm.ImageReader(), gdcm.ImageChangeTransferSyntax(), gdcm.ImageWriter()
    reader.SetFileName(str(path))
    assert reader.Read()
    change.SetTransferSyntax(gdcm.TransferSyntax(gdcm.TransferSyntax.GetTSType(str(syntax))))
    change.SetInput(reader.GetImage())
    assert change.Change()
    writer.SetFileName(str(path))
    writer.SetFile(reader.GetFile())
    writer.SetImage(change.GetOutput())
    assert writer.Write()
    assert pydicom.dcmread(path).file_meta.TransferSyntaxUID == syntax


@pytest.mark.parametrize(
    ("syntax", "error"),
    [
        *((JPEGLossless, 0), (JPEGLosslessSV1, 0), (JPEGLSLossless, 0), (JPEGLSNearLossless, 0)),
        *((JPEG2000Lossless, 0), (JPEG2000, 0), (JPEGBaseline8Bit, 1), (JPEGExtended12Bit, 1)),
    ],
)
def test_the_extra_decodes_what_cameras_write(
    syntax: UID, error: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    decoder = pydicom.pixels.get_decoder(syntax)
    monkeypatch.setattr(decoder, "_available", {"gdcm": decoder._available["gdcm"]})  # whatever else is installed
    images = [(GREY, 8, 1)] if error else [(GREY, 8, 1), (DEEP, 12, 1), (np.stack([DEEP, DEEP[::-1]]), 12, 2)]
    for pixels, bits, frame in images:
        path = written(tmp_path, pixels, bits=bits)
        expected = load_image(path, "L", frame=frame).astype(int)
        recompress(path, syntax)
        assert abs(load_image(path, "L", frame=frame) - expected).max() <= error


def test_a_colour_profile_is_converted_to_srgb(tmp_path: Path) -> None:
    linear = ImageCms.ImageCmsProfile(ImageCms.createProfile("XYZ"))
    with pytest.raises(DamagedError):  # a profile for another kind of image is refused as in a PNG
        load_image(written(tmp_path, COLOUR, tags={"ICCProfile": linear.tobytes()}), "RGB")
    srgb = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB"))
    assert (load_image(written(tmp_path, COLOUR, tags={"ICCProfile": srgb.tobytes()}), "RGB") == COLOUR).all()


def test_tags_are_described(tmp_path: Path) -> None:
    tags = {"ImageLaterality": None, "Laterality": "L"}
    image = read_tags(written(tmp_path, GREY, patient=" mrn- 7 ", agent="FLUORESCEIN 10%", tags=tags))
    assert (image.patient, image.side, image.agent, image.grey, image.is_photograph) == (
        *("MRN-7", "L", "fluorescein"),
        *(True, True),
    )
    image = read_tags(written(tmp_path, COLOUR, side="B", agent="Indocyanine green", modality="XC"))
    assert (image.side, image.agent, image.grey) == (None, "other", False)


def nothing_personal(text: str) -> bool:
    return not any(value in text for value in (*PERSONAL.values(), "Lovelace", "MRN-0001", "1.3.6.1"))


def test_unreadable_files_are_named_in_one_line(tmp_path: Path) -> None:
    path = written(tmp_path, GREY)
    whole = path.read_bytes()
    for damaged in (whole[:-200], whole[:400], whole[:132] + b"\x00" * 300):
        path.write_bytes(damaged)
        with raises_file(path, DamagedError):
            load_image(path, "L")
    with pytest.raises(DamagedError) as caught:
        load_image(path, "L")
    assert nothing_personal(str(caught.value))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("syntax", [None, RLELossless, DeflatedExplicitVRLittleEndian])
def test_more_frames_than_the_file_can_hold_are_refused(syntax: UID | None, tmp_path: Path) -> None:
    """A list of 1,000,000,000 frames would take all memory."""
    path = written(tmp_path, np.stack([GREY] * 3))
    tags = pydicom.dcmread(path)
    if syntax == RLELossless:
        compress(tags, syntax)
    elif syntax:
        tags.file_meta.TransferSyntaxUID = syntax
    pydicom.dcmwrite(path, tags)
    assert frame_count(path) == 3
    tags.NumberOfFrames = 10**9
    pydicom.dcmwrite(path, tags)
    for read in (frame_count, read_tags, image_size):
        with raises_file(path, DamagedError):
            read(path)


@pytest.mark.parametrize("name", ["Rows", "Columns", "PhotometricInterpretation"])
def test_an_image_without_size_or_colour_space_is_damaged(name: str, tmp_path: Path) -> None:
    path = written(tmp_path, GREY)
    tags = pydicom.dcmread(path)
    delattr(tags, name)
    pydicom.dcmwrite(path, tags)
    with raises_file(path, DamagedError):
        read_tags(path)


def test_files_that_are_no_images_need_no_size(tmp_path: Path) -> None:
    """An ophthalmic camera may write reports, too, with its own modality."""
    path = written(tmp_path, GREY, sop_class="1.2.840.10008.5.1.4.1.1.104.1")  # Encapsulated PDF
    tags = pydicom.dcmread(path)
    del tags.Rows, tags.Columns, tags.PixelData
    pydicom.dcmwrite(path, tags)
    assert not read_tags(path).is_photograph


def test_a_compression_without_decoder_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = written(tmp_path, GREY)
    tags = pydicom.dcmread(path)
    tags.file_meta.TransferSyntaxUID = JPEG2000Lossless
    tags.PixelData = encapsulate([b"\xff\x4f\xff\x51" + bytes(60)])
    tags.save_as(path)
    with raises_file(path, DamagedError):
        load_image(path, "L")
    decoder = pydicom.pixels.get_decoder(JPEG2000Lossless)
    monkeypatch.setattr(decoder, "_available", {})
    with pytest.raises(FileError, match=r"JPEG 2000.*pip install 'retipair\[dicom\]'"):
        load_image(path, "L")


def test_values_that_cannot_be_scaled_are_refused(tmp_path: Path) -> None:
    with raises_file(tmp_path / "im1"):
        load_image(written(tmp_path, DEEP << 4, bits=16, tags={"PixelRepresentation": 1}), "L")
    with raises_file(tmp_path / "im1"):
        load_image(written(tmp_path, GREY), "L", megapixels=0)


def test_without_pydicom_the_extra_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from retipair.data.dicom import _import_pydicom

    path = written(tmp_path, GREY)
    _import_pydicom.cache_clear()
    monkeypatch.setitem(sys.modules, "pydicom", None)
    with pytest.raises(FileError, match=r"pip install 'retipair\[dicom\]'"):
        load_image(path, "L")


def test_values_that_do_not_fill_the_lowest_bits_are_refused(tmp_path: Path) -> None:
    path = write_dicom(tmp_path / "1", np.ones((8, 8)), DicomForm(bits=12, tags={"HighBit": 15}))
    with raises_file(path):
        read_frame(path, 0)
