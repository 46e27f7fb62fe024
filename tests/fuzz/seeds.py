"""Seeds for tests/fuzz/readers.py: one small file of each form that its readers know. Writes tests/fuzz/corpus."""

import sys
from pathlib import Path

import numpy as np
from PIL import Image, ImageCms

sys.path.insert(0, str(Path(__file__).parents[1]))
from image_files import TiffForm, png, tiff

CORPUS = Path(__file__).parent / "corpus"


def images() -> None:
    folder = CORPUS / "image"
    rng = np.random.default_rng(0)
    pixels = rng.integers(0, 256, (8, 8, 3), np.uint8)
    view = Image.fromarray(pixels)
    exif = Image.Exif()
    exif[274] = 6
    grey16 = Image.fromarray(pixels[..., 0].astype(np.uint16) * 16)
    for name, image, more in (
        ("rgb.png", view, {}),
        ("rgba.png", view.convert("RGBA"), {}),
        ("palette.png", view.convert("P"), {}),
        ("grey.png", view.convert("L"), {}),
        ("bits.png", view.convert("1"), {}),
        ("grey16.png", grey16, {}),
        ("rgb.jpg", view, {"exif": exif}),
        ("progressive.jpg", view, {"progressive": True}),
        ("cmyk.jpg", view.convert("CMYK"), {}),
        ("rgb.tif", view, {"compression": "tiff_lzw"}),
        ("plain.tif", view, {}),
        ("grey16.tif", grey16, {}),
        ("float.tif", Image.fromarray(pixels[..., 0].astype(np.float32) / 255), {}),
        ("rgb.bmp", view, {}),
    ):
        image.save(folder / name, **more)
    view.save(folder / "pages.tif", save_all=True, append_images=[view])
    view.save(folder / "mpo.jpg", "MPO", save_all=True, append_images=[view.resize((4, 4))])
    view.save(folder / "lossless.webp", lossless=True)
    view.save(folder / "profile.png", icc_profile=ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes())
    small = view.resize((4, 4))
    small.encoderinfo = {"tiffinfo": {254: 1}}
    view.save(folder / "thumbnail.tif", save_all=True, append_images=[small])
    deep_images(folder, pixels)


def deep_images(folder: Path, pixels: np.ndarray) -> None:
    deep = pixels.astype(np.uint16) * 16
    for name, samples, form in (
        ("white_is_0_16.tif", deep[..., :1], TiffForm(bits=16, photometric=0)),
        ("planes16.tif", deep, TiffForm(bits=16, photometric=2, planar=True, big_endian=True)),
        ("lzw16.tif", deep, TiffForm(bits=16, photometric=2, compression="lzw", predictor=True)),
        ("packed12.tif", deep, TiffForm(bits=12, photometric=2, compression="deflate")),
        ("tiles14.tif", deep, TiffForm(bits=14, photometric=2, planar=True, block=(16, 16), compression="packbits")),
        ("cmyk16.tif", np.dstack([deep, deep[..., :1]]), TiffForm(bits=16, photometric=5)),
    ):
        (folder / name).write_bytes(tiff(samples, form))
    for name, samples in (
        ("rgb16.png", deep),
        ("rgba16.png", np.dstack([deep, deep[..., :1]])),
        ("grey_alpha16.png", deep[..., :2]),
    ):
        (folder / name).write_bytes(png(samples, interlaced=True))


def texts() -> None:
    corner = "\n".join(f"{x} {y}" for x, y in ((10, 10), (80, 12), (15, 70), (60, 66), (40, 41)))
    for name, text in {
        "points/spaces": f"{corner}\0{corner}",
        "points/commas": f"{corner.replace(' ', ',')}\0\ufeff{corner}",
        "points/windows": corner.replace("\n", "\r\n") + "\0" + corner,
        "table/pairs.csv": 'id,cf,fa,eye,patient,split,caption\n1,eyes/1_01.png,eyes/1_02.png,e,p,train,"a, b"\n',
        "table/pairs.jsonl": '{"id": "1", "cf": "eyes/1_01.png", "fa": "eyes/1_02.png", "split": "val"}\n',
        "table/eyes.csv": "id,eye,patient,split\n1,right,p,test\n",
    }.items():
        (CORPUS / name).write_bytes(text.encode())


if __name__ == "__main__":
    for name in ("image", "points", "table"):
        (CORPUS / name).mkdir(parents=True, exist_ok=True)
    images()
    texts()
