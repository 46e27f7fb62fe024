"""Every depth, layout and byte order of grey and colour images is read right, or refused by name."""

import itertools
from collections.abc import Iterator
from pathlib import Path

import cv2
import numpy as np
import pytest
import tifffile
from PIL import Image

from image_files import COMPRESSIONS, TiffForm, chunk, png, tiff
from refusals import raises_file
from retipair.data.pair import image_size, load_image
from retipair.runtime.errors import DamagedError, UserError

HEIGHT, WIDTH = 13, 19  # neither a multiple of a strip, a tile or a byte of packed samples
DEPTHS = (8, 10, 12, 14, 16)
BLOCKS = {"strips": 5, "one strip": HEIGHT, "tiles": (16, 16), "small tiles": (16, 32)}


def view(channels: int, bits: int, seed: int = 0) -> np.ndarray:
    """Samples (HEIGHT, WIDTH, channels) from 0 to the highest value of so many bits, colour by colour less bright."""
    values = np.random.default_rng(seed).integers(0, 2**bits, (HEIGHT, WIDTH, channels))
    values = values * (channels - np.arange(channels)) // channels
    values[0, 0, 0] = 2**bits - 1
    return values.astype(np.uint16 if bits > 8 else np.uint8)


def expected(samples: np.ndarray, bits: int) -> np.ndarray:
    """The same as displayed, (HEIGHT, WIDTH, 3) uint8."""
    scaled = np.rint(samples * (255 / (2**bits - 1))).astype(np.uint8)
    return np.broadcast_to(scaled, (HEIGHT, WIDTH, 3))


def forms() -> Iterator[tuple[str, int, TiffForm]]:
    """(name, depth of the values, form): every depth, packed or in 16 bits, colour, layout, byte order, compression."""
    depths = [(bits, bits) for bits in DEPTHS] + [(bits, 16) for bits in DEPTHS[:-1]]
    axes = (depths, (0, 1, 2), (False, True), (False, True), BLOCKS, COMPRESSIONS)
    for (bits, stored), photometric, planar, big_endian, block, compression in itertools.product(*axes):
        for predictor in (False, True) if stored in (8, 16) and compression in ("lzw", "deflate") else (False,):
            form = TiffForm(
                bits=stored,
                photometric=photometric,
                big_endian=big_endian,
                planar=planar,
                compression=compression,
                predictor=predictor,
                block=BLOCKS[block],
            )
            words = (f"{bits} of {stored} bits", ("white is 0", "black is 0", "RGB")[photometric], block, compression)
            order = "big-endian" if big_endian else "little-endian"
            layout = ("planar" if planar else "interleaved", "predictor" * predictor)
            yield ", ".join([*words, order, *layout]), bits, form


@pytest.mark.nightly
def test_every_form_of_tiff_is_read_right(tmp_path: Path) -> None:
    wrong = {}
    for name, bits, form in forms():
        samples = view(3 if form.photometric == 2 else 1, bits)
        stored = 2**bits - 1 - samples if form.photometric == 0 else samples
        stored[0, 0, 0] = stored[0, 1, 0] = 0 if form.photometric == 0 else 2**bits - 1
        stored[0, 1, 0] = 2**bits - 1
        right = 2**bits - 1 - stored if form.photometric == 0 else stored
        path = tmp_path / "view.tif"
        path.write_bytes(tiff(stored, form))
        try:
            read = load_image(path, "RGB")
        except UserError as error:
            wrong[name] = str(error)
        else:
            if not np.array_equal(read, expected(right, bits)):
                wrong[name] = "other pixels"
            if image_size(path) != (WIDTH, HEIGHT):
                wrong[name] = "another size"
    assert wrong == {}


@pytest.mark.parametrize("interlaced", [False, True])
@pytest.mark.parametrize("channels", [1, 2, 3, 4])
@pytest.mark.parametrize("bits", DEPTHS)
def test_every_depth_of_png_is_read_right(tmp_path: Path, bits: int, channels: int, interlaced: bool) -> None:
    colours = 1 if channels < 3 else 3
    samples = view(colours, bits).astype(np.uint16)
    opaque = np.full((HEIGHT, WIDTH, channels - colours), 2**bits - 1, np.uint16)
    opaque[3:5] = 0
    (tmp_path / "view.png").write_bytes(png(np.concatenate([samples, opaque], axis=-1), interlaced))
    right = expected(samples, bits).copy()
    right[3:5] = right[3:5] if channels == colours else 0  # transparent is black
    assert np.array_equal(load_image(tmp_path / "view.png", "RGB"), right)


@pytest.mark.parametrize("channels", [1, 3])
def test_a_colour_of_a_deep_png_that_is_transparent_is_black(tmp_path: Path, channels: int) -> None:
    samples = view(channels, 16)
    key = chunk(b"tRNS", samples[4, 4].astype(">u2").tobytes())
    (tmp_path / "view.png").write_bytes(png(samples, extra=key))
    right = np.where((samples == samples[4, 4]).all(axis=-1, keepdims=True), 0, expected(samples, 16))
    assert np.array_equal(load_image(tmp_path / "view.png", "RGB"), right)


@pytest.mark.parametrize("kind", ["png", "tif"])
@pytest.mark.parametrize("bits", DEPTHS[1:])
def test_what_another_library_writes_is_read_alike(tmp_path: Path, bits: int, kind: str) -> None:
    for channels in (1, 3):
        samples = view(channels, bits)
        assert cv2.imwrite(str(tmp_path / f"view.{kind}"), samples[..., ::-1])
        assert np.array_equal(load_image(tmp_path / f"view.{kind}", "RGB"), expected(samples, bits))


@pytest.mark.parametrize(("order", "big"), [("<", False), (">", False), ("<", True)])
def test_what_tifffile_writes_is_read_alike(tmp_path: Path, order: str, big: bool) -> None:
    how = {"byteorder": order, "bigtiff": big, "compression": "zlib", "predictor": True, "rowsperstrip": 4}
    path = tmp_path / "view.tif"
    for photometric, planar in (("minisblack", None), ("miniswhite", None), ("rgb", "contig"), ("rgb", "separate")):
        samples = view(3 if planar else 1, 12)
        samples[0, 1] = 0
        stored = np.moveaxis(samples, -1, 0) if planar == "separate" else samples.squeeze()
        tifffile.imwrite(path, stored, photometric=photometric, planarconfig=planar, **how)
        right = 4095 - samples if photometric == "miniswhite" else samples
        assert np.array_equal(load_image(path, "RGB"), expected(right, 12)), (photometric, planar)


def test_alpha_and_what_is_beside_colour_in_a_deep_tiff(tmp_path: Path) -> None:
    """ExtraSamples: 0 is unspecified and left out, 1 is alpha that colours are multiplied by already, 2 is alpha."""
    path = tmp_path / "view.tif"
    for photometric, kind, planar in itertools.product((1, 2), (0, 1, 2), (False, True)):
        samples = view(1 if photometric == 1 else 3, 16)
        more = np.full((HEIGHT, WIDTH, 1), 2**16 - 1, np.uint16)
        more[3:5] = 0
        form = TiffForm(bits=16, photometric=photometric, planar=planar, tags={338: (kind,)})
        path.write_bytes(tiff(np.concatenate([samples, more], axis=-1), form))
        right = expected(samples, 16).copy()
        right[3:5] = 0 if kind == 2 else right[3:5]
        assert np.array_equal(load_image(path, "RGB"), right)


def test_deep_cmyk_is_read_as_that_of_8_bits(tmp_path: Path) -> None:
    ink = np.random.default_rng(0).integers(0, 256, (HEIGHT, WIDTH, 4)).astype(np.uint16)
    ink[0, 0] = 255
    (tmp_path / "8.tif").write_bytes(tiff(ink, TiffForm(bits=8, photometric=5)))
    (tmp_path / "16.tif").write_bytes(tiff(ink * 257, TiffForm(bits=16, photometric=5)))
    assert np.array_equal(load_image(tmp_path / "16.tif", "RGB"), load_image(tmp_path / "8.tif", "RGB"))


@pytest.mark.parametrize("orientation", range(1, 9))
def test_a_deep_image_is_turned_like_another(tmp_path: Path, orientation: int) -> None:
    samples = view(3, 8)
    exif = Image.Exif()
    exif[274] = orientation
    Image.fromarray(samples).save(tmp_path / "8.png", exif=exif)
    right = load_image(tmp_path / "8.png", "RGB")
    tags = {274: orientation}
    deep = samples.astype(np.uint16) * 257
    (tmp_path / "16.tif").write_bytes(tiff(deep, TiffForm(bits=16, photometric=2, tags=tags)))
    (tmp_path / "16.png").write_bytes(png(deep, extra=chunk(b"eXIf", exif.tobytes()[6:])))
    for name in ("16.tif", "16.png"):
        assert np.array_equal(load_image(tmp_path / name, "RGB"), right)
        assert image_size(tmp_path / name) == right.shape[1::-1]


REFUSED = {
    "signed colour": (2, {339: (2, 2, 2)}),
    "half-precision": (2, {339: (3, 3, 3)}),
    "a palette": (3, {}),
    "YCbCr": (6, {}),
    "Lab": (8, {}),
    "a colour filter array": (32803, {}),
    "unequal depths": (2, {258: (16, 16, 12)}),
    "reversed bits": (1, {266: 2}),
    "channels that nobody names": (1, {277: 3, 258: (16, 16, 16)}),
    "JPEG": (2, {259: 7}),
    "JPEG 2000": (2, {259: 34712}),
    "a floating-point predictor": (2, {317: 3}),
}


@pytest.mark.parametrize("kind", REFUSED)
def test_other_deep_forms_are_refused_by_name(tmp_path: Path, kind: str) -> None:
    photometric, tags = REFUSED[kind]
    samples = view(3 if photometric not in (1, 3, 32803) or 277 in tags else 1, 16)
    path = tmp_path / "view.tif"
    path.write_bytes(tiff(samples, TiffForm(bits=16, photometric=photometric, tags=tags)))
    with raises_file(path, DamagedError):
        load_image(path, "RGB")


def test_deeper_integers_of_which_zero_is_white_are_refused_by_name(tmp_path: Path) -> None:
    path = tmp_path / "view.tif"
    tifffile.imwrite(path, view(1, 16).squeeze().astype(np.uint32), photometric="miniswhite")
    with raises_file(path, DamagedError):
        load_image(path, "RGB")


@pytest.mark.parametrize("channels", [1, 3])
def test_signed_8_bits_are_refused_by_name(tmp_path: Path, channels: int) -> None:
    path = tmp_path / "view.tif"
    tifffile.imwrite(path, (view(channels, 8).squeeze() // 2).astype(np.int8))
    with raises_file(path, DamagedError):
        load_image(path, "RGB")


# Files that lie


LIES = {
    "gigapixels": {256: 100_000, 257: 100_000},
    "no width": {256: 0},
    "strips beyond the file": {273: (10**9,)},
    "more bytes than the file has": {279: (10**9,)},
    "fewer strips than rows": {278: 1},
    "a strip without rows": {278: 0},
    "tiles beyond all": {322: 2**31 - 1, 323: 2**31 - 1, 324: (8,), 325: (8,)},
    "tiles of no width": {322: 0, 323: 16, 324: (8,), 325: (8,)},
    "very many samples": {277: 65535},
    "very many extra samples": {338: (0,) * 1000},
}


@pytest.mark.parametrize("compression", ["none", "lzw", "deflate"])
@pytest.mark.parametrize("lie", LIES)
def test_a_deep_tiff_that_lies_is_refused(tmp_path: Path, lie: str, compression: str) -> None:
    form = TiffForm(bits=16, photometric=1, block=HEIGHT, compression=compression, tags=LIES[lie])
    path = tmp_path / "view.tif"
    path.write_bytes(tiff(view(1, 16), form))
    with raises_file(path):
        load_image(path, "RGB", megapixels=4)
