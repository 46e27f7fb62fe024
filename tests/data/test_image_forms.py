"""Colour profiles, thumbnails and what else cameras and programs put into image files."""

import io
import re
import struct
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageCms

from image_files import TiffForm, tiff
from refusals import raises_file
from retipair.data.pair import load_image
from retipair.data.sources import find_pairs
from retipair.runtime.errors import DamagedError

VIEW = np.random.default_rng(0).integers(0, 256, (24, 32, 3), np.uint8)
SRGB = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()


def _tags(profile: bytes) -> dict[bytes, tuple[int, int]]:
    """Tag -> (where its entry in the tag table stands, where its data stand) (ICC.1, 7.3)."""
    (count,) = struct.unpack_from(">I", profile, 128)
    entries = range(132, 132 + 12 * count, 12)
    return {profile[at : at + 4]: (at, struct.unpack_from(">I", profile, at + 4)[0]) for at in entries}


def exchanged() -> bytes:
    """sRGB with red and green exchanged."""
    profile, tags = bytearray(SRGB), _tags(SRGB)
    for name, other in ((b"rXYZ", b"gXYZ"), (b"gXYZ", b"rXYZ")):
        at = tags[name][0]
        profile[at : at + 4] = other
    return bytes(profile)


def grey_of_gamma_1() -> bytes:
    """A grey profile whose values are linear in light, with the white point of sRGB's."""
    white = b"XYZ \0\0\0\0" + struct.pack(">iii", 63190, 65536, 54061)
    curve = b"curv\0\0\0\0" + struct.pack(">I", 0)
    begin = 132 + 2 * 12
    table = struct.pack(">I", 2)
    table += b"wtpt" + struct.pack(">II", begin, len(white)) + b"kTRC" + struct.pack(">II", begin + 20, len(curve))
    header = bytearray(SRGB[:128])
    header[8:12], header[12:16], header[16:20] = b"\x02\x10\0\0", b"mntr", b"GRAY"
    header[0:4] = struct.pack(">I", begin + len(white) + len(curve))
    return bytes(header) + table + white + curve


@pytest.mark.parametrize("suffix", ["png", "tif", "jpg", "webp"])
def test_a_profile_with_red_and_green_exchanged_is_honoured(tmp_path: Path, suffix: str) -> None:
    how = {"quality": 100, "subsampling": 0} if suffix == "jpg" else {"lossless": True} if suffix == "webp" else {}
    path, plain = tmp_path / f"view.{suffix}", tmp_path / f"plain.{suffix}"
    Image.fromarray(VIEW).save(path, icc_profile=exchanged(), **how)
    Image.fromarray(VIEW).save(plain, **how)
    moved, stored = load_image(path, "RGB").astype(int), load_image(plain, "RGB").astype(int)
    assert abs(moved - stored[..., [1, 0, 2]]).max() <= 2
    assert abs(moved - stored).max() > 100


def test_a_profile_of_a_deep_tiff_is_honoured(tmp_path: Path) -> None:
    form = TiffForm(bits=16, photometric=2, tags={34675: exchanged()})
    (tmp_path / "view.tif").write_bytes(tiff(VIEW.astype(np.uint16) * 257, form))
    assert abs(load_image(tmp_path / "view.tif", "RGB").astype(int) - VIEW[..., [1, 0, 2]]).max() <= 2


@pytest.mark.parametrize("mode", ["RGB", "L", "P", "RGBA", "1"])
def test_srgb_changes_no_pixel(tmp_path: Path, mode: str) -> None:
    image = Image.fromarray(VIEW).convert(mode)
    image.save(tmp_path / "srgb.png", icc_profile=SRGB)
    image.save(tmp_path / "plain.png")
    for shown in ("RGB", "L"):
        assert np.array_equal(load_image(tmp_path / "srgb.png", shown), load_image(tmp_path / "plain.png", shown))


@pytest.mark.parametrize("mode", ["L", "LA"])
def test_a_grey_profile_is_honoured(tmp_path: Path, mode: str) -> None:
    Image.fromarray(VIEW[..., 0]).convert(mode).save(tmp_path / "view.png", icc_profile=grey_of_gamma_1())
    light = VIEW[..., 0] / 255
    right = 255 * np.where(light <= 0.0031308, 12.92 * light, 1.055 * light ** (1 / 2.4) - 0.055)
    assert abs(load_image(tmp_path / "view.png", "L") - right).max() <= 2


@pytest.mark.parametrize("profile", [b"no profile", SRGB[:200], grey_of_gamma_1()], ids=["text", "cut off", "grey"])
def test_a_profile_that_cannot_be_used_is_refused_by_name(tmp_path: Path, profile: bytes) -> None:
    Image.fromarray(VIEW).save(tmp_path / "view.png", icc_profile=profile)
    with raises_file(tmp_path / "view.png", DamagedError):
        load_image(tmp_path / "view.png", "RGB")


# Several pictures in one file


def _thumbnail_last(small: Image.Image, path: Path, tag: dict[int, int]) -> None:
    small.encoderinfo = {"tiffinfo": tag}
    Image.fromarray(VIEW).save(path, save_all=True, append_images=[small])


def _thumbnail_first(small: Image.Image, path: Path, tag: dict[int, int]) -> None:
    main = Image.fromarray(VIEW)
    main.encoderinfo = {"tiffinfo": {254: 0}}
    small.save(path, save_all=True, append_images=[main], tiffinfo=tag)


@pytest.mark.parametrize("write", [_thumbnail_last, _thumbnail_first])
@pytest.mark.parametrize("tag", [{254: 1}, {255: 2}])
def test_a_tiff_with_a_thumbnail_gives_the_picture(tmp_path: Path, write, tag: dict[int, int]) -> None:
    path = tmp_path / "view.tif"
    write(Image.fromarray(VIEW).resize((8, 6)), path, tag)
    with Image.open(path) as image:
        assert image.n_frames == 2
    assert np.array_equal(load_image(path, "RGB"), VIEW)


def test_a_cameras_jpeg_with_a_preview_gives_the_picture(tmp_path: Path) -> None:
    path, plain = tmp_path / "view.jpg", tmp_path / "plain.jpg"
    Image.fromarray(VIEW).save(path, "MPO", save_all=True, append_images=[Image.fromarray(VIEW).resize((8, 6))])
    Image.fromarray(VIEW).save(plain)
    with Image.open(path) as image:
        assert (image.format, image.n_frames) == ("MPO", 2)
    assert np.array_equal(load_image(path, "RGB"), load_image(plain, "RGB"))


def test_pictures_of_equal_standing_are_still_refused(tmp_path: Path) -> None:
    other = Image.fromarray(VIEW[::-1])
    Image.fromarray(VIEW).save(tmp_path / "view.tif", save_all=True, append_images=[other])
    stream = io.BytesIO()
    Image.fromarray(VIEW).save(stream, "MPO", save_all=True, append_images=[other])
    first = re.search(
        rb"\x00\x00\x03\x00....\0{8}", stream.getvalue(), re.DOTALL
    )  # an entry: kind, size, offset, 2 more
    assert first
    stereo = stream.getvalue()[: first.end()] + struct.pack("<L", 0x020002) + stream.getvalue()[first.end() + 4 :]
    (tmp_path / "view.jpg").write_bytes(stereo)
    for name in ("view.tif", "view.jpg"):
        with raises_file(tmp_path / name):
            load_image(tmp_path / name, "RGB")


@pytest.mark.parametrize("suffix", ["jfif", "jpe", "webp", "gif", "JFIF"])
def test_more_suffixes_are_known(tmp_path: Path, suffix: str) -> None:
    kind = suffix.upper() if suffix in ("webp", "gif") else "JPEG"
    for number in ("01", "02"):
        Image.fromarray(VIEW).save(tmp_path / f"1_{number}.{suffix}", kind)
    (pair,) = find_pairs(tmp_path)
    assert load_image(pair.cf, "RGB").shape == VIEW.shape
