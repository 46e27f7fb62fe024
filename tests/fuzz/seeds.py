"""Seeds for tests/fuzz/readers.py: one small file of each form that its readers know. Writes tests/fuzz/corpus."""

from pathlib import Path

import numpy as np
from PIL import Image

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
