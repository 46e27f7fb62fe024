"""Load and save pairs: the colour fundus photograph (CF) and the fluorescein angiogram (FA) of one eye, aligned.

Each of the two images is called a view.
"""

import io
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import IO

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError
from PIL.PngImagePlugin import PngInfo

from retipair.data.colour_profile import to_srgb
from retipair.data.deep_image import is_deep_png, read_deep_png, to_eight_bits, used_bits
from retipair.data.dicom import is_dicom, read_frame, read_tags
from retipair.data.tiff import Page, main_page, read_deep_page
from retipair.runtime.atomic_io import atomic_write
from retipair.runtime.errors import DamagedError, FileError, MissingError, UserError
from retipair.vision.modality import CF_FA, Modality
from retipair.vision.ridges import resize_to_reference, vesselness_correlation

_MAX_BITS = 32
MEGAPIXELS = 200
"""Default limit of the size of an image, in megapixels; no fundus camera has a higher resolution."""
MAX_FA_CHROMA = 20.0
"""Largest mean chroma (`chroma_of`) of an FA, in [0, 255]; an FA may be tinted.

The chroma of 15 photographs was 58 or more, that of 7 FA was 0.
"""
_FORMATS = ("PNG", "JPEG", "TIFF", "BMP", "DIB", "GIF", "WEBP")
"""Pillow's names of the supported formats. Others are excluded: for some of them, Pillow runs external programs."""
_MARK_KEYS = (
    *("Synthetic", "Software", "Seed", "Base", "Adapter"),
    *("Mode", "Strength", "Prompt", "Steps", "Sampler", "Guidance", "Pair guidance", "Size", "parameters"),
)
"""Metadata keys that mark an image as synthetic and record how it was made."""


def px_at_512(px: float, size: int) -> float:
    """Scale a distance to a view width of 512 px, at which distances are shown to users.

    px: the distance in a view of `size` px, in px.
    """
    return px * 512 / size


@dataclass(frozen=True)
class Pair:
    """Two aligned views of one retinal field, and the mask of the pixels that are valid in both.

    cf: (H, W, 3) uint8.
    fa: (H, W) uint8.
    mask: (H, W) bool.
    dark_vessels: for each view, whether vessels are darker than their surroundings (see `vision.modality`).
    """

    cf: np.ndarray
    fa: np.ndarray
    mask: np.ndarray
    dark_vessels: tuple[bool, bool] = field(default=CF_FA.dark_vessels, kw_only=True)

    def consistency(self) -> float:
        """Return the correlation of the vesselness of CF and FA inside the mask, [-1, 1]; high if they are aligned."""
        return vesselness_correlation(self.cf, self.fa, self.mask, self.dark_vessels)

    def at_reference_size(self) -> "Pair":
        """Return the pair at a width of 512 px, at which vessels are measured (see `resize_to_reference`)."""
        cf, fa, mask = (resize_to_reference(view) for view in (self.cf, self.fa, self.mask))
        return replace(self, cf=cf, fa=fa, mask=mask)

    def _repr_png_(self) -> bytes:
        """Show CF and FA side by side in Jupyter."""
        stream = io.BytesIO()
        Image.fromarray(np.hstack([self.cf, to_rgb(self.fa)])).save(stream, "PNG")
        return stream.getvalue()


def load_image(path: Path, mode: str, megapixels: int = MEGAPIXELS, frame: int = 1) -> np.ndarray:
    """Read an image as uint8: (H, W, 3) for mode "RGB", (H, W) for mode "L".

    The image is returned as a viewer displays it: converted to sRGB by its colour profile, rotated by its EXIF
    orientation, and black where it is transparent. Values of more than 8 bits are scaled to 8 (docs/formats.md).
    megapixels: the limit of the image size, since a small file may decode to gigabytes of pixels. Pillow's own limit,
    `PIL.Image.MAX_IMAGE_PIXELS`, applies too, unless `configure_pillow` has removed it.
    frame: the number, from 1, of a frame of a DICOM file; 1 for other files.
    Raises UserError, naming the file, if the file is missing, truncated, of an unsupported format or too large, or if
    it contains several images.
    """
    with _named_errors(path):
        if is_dicom(path):
            _check_size(path, read_tags(path).size, megapixels)
            image = read_frame(path, frame - 1)
            return np.asarray(to_srgb(image, image.info.get("icc_profile")).convert(mode))
        with _opened(path) as opened:
            _check_header(path, opened, megapixels)
            image = _decoded(path, opened)
            profile = image.info.get("icc_profile")
            displayed = _blend_with_black(_eight_bits(ImageOps.exif_transpose(image)))
            return np.asarray(to_srgb(displayed, profile).convert(mode))


@contextmanager
def _named_errors(path: Path) -> Iterator[None]:
    """Raise a UserError, naming the file, for every exception while an image is read."""
    try:
        yield
    except FileNotFoundError:
        raise MissingError(path, "no such file") from None
    except UnidentifiedImageError:
        known = "PNG, JPEG, TIFF, BMP, WebP, GIF, DICOM"
        raise FileError(path, f"unsupported image format; save it as one of {known}") from None
    except UserError:
        raise
    except Exception as error:  # Pillow raises many types of exceptions for malformed files
        raise DamagedError(path, f"cannot be read as an image ({error}); replace or remove it") from None


def load_first_view(path: Path, modality: Modality, megapixels: int = MEGAPIXELS, frame: int = 1) -> np.ndarray:
    """Read the first view of a pair as `load_image` does, (H, W, 3) uint8, grey if its modality has no colour."""
    if modality.colour:
        return load_image(path, "RGB", megapixels, frame)
    return to_rgb(load_image(path, "L", megapixels, frame))


def to_rgb(view: np.ndarray) -> np.ndarray:
    """Return a view (H, W, 3) as it is, and a view (H, W) with three equal channels (H, W, 3)."""
    return np.repeat(view[..., None], 3, axis=2) if view.ndim == 2 else view


def _check_size(path: Path, size: tuple[int, int], megapixels: int) -> None:
    width, height = size
    if width * height > megapixels * 10**6:
        raise FileError(
            path,
            f"{width} x {height} px, more than {megapixels} megapixels; if it is a photograph, downscale it "
            "(or raise --max_megapixels of `retipair prepare`)",
        )


def _check_header(path: Path, image: Image.Image | Page, megapixels: int) -> None:
    _check_size(path, image.size, megapixels)
    if isinstance(image, Image.Image) and (count := _count_images(image)) > 1:
        raise FileError(path, f"contains {count} images; save the right one in a separate file")


def _count_images(image: Image.Image) -> int:
    """Return the number of images in a file. Thumbnails and gain maps, which cameras add to JPEG, are not counted."""
    if image.format == "TIFF":
        return 1  # `main_page` has already raised an error for a TIFF with several images
    if image.format == "MPO":
        kinds = [entry["Attribute"]["MPType"] for entry in image.mpinfo[0xB002]]  # type: ignore[attr-defined]
        return 1 + sum("Multi-Frame" in kind for kind in kinds[1:])
    return getattr(image, "n_frames", 1)


@contextmanager
def _opened(path: Path) -> Iterator[Image.Image | Page]:
    """Open an image file without decoding it; yield a TIFF page for `read_deep_page`, or a Pillow image.

    Pillow is given a stream, not a path. From a path, Pillow 13 memory-maps an uncompressed TIFF, and decodes the image
    wrongly if the orientation tag rotates it.
    """
    if path.is_fifo():  # opening a named pipe waits for a writer
        raise FileNotFoundError
    with path.open("rb") as stream:
        page = main_page(stream)
        if page and page.is_deep:
            yield page
        else:
            with _opened_by_pillow(stream, page) as image:
                yield image


def _opened_by_pillow(stream: IO[bytes], page: Page | None) -> Image.Image:
    stream.seek(0)
    try:
        image = Image.open(stream, formats=_FORMATS)
    except UnidentifiedImageError:
        if page is None:
            raise
        raise ValueError(page.unsupported_message) from None
    if page:
        if page.is_misread:
            raise ValueError(page.unsupported_message)
        image.seek(page.number)
    return image


def _decoded(path: Path, opened: Image.Image | Page) -> Image.Image:
    """Return the decoded image in the orientation in which it is stored."""
    if isinstance(opened, Page):
        return read_deep_page(opened)
    return read_deep_png(partial(_opened, path)) if is_deep_png(opened) else opened  # type: ignore[arg-type]


def _eight_bits(image: Image.Image) -> Image.Image:
    """Scale an image of integers of over 8 bits, or of floating-point values, to 8 bits; Pillow would clip the values.

    Floating-point values must be in [0, 1], or must be whole numbers. Whole numbers are scaled by the number of bits of
    the highest value (`used_bits`), as integers are. Raises ValueError for other values.
    """
    if not image.mode.startswith(("I", "F")):
        return image
    values = np.asarray(image, dtype=np.float64)
    if not np.isfinite(values).all() or values.min(initial=0) < 0:
        raise ValueError("it has negative, NaN or infinite values")
    highest = values.max(initial=0)
    if image.mode.startswith("F"):
        if highest <= 1:
            return Image.fromarray(np.rint(values * 255).astype(np.uint8))
        if (values != np.rint(values)).any():
            raise ValueError(f"its values reach {highest:g} and are not integers: save it with 8 or 16 bits")
    if (bits := used_bits(values)) > _MAX_BITS:
        raise ValueError(f"its values reach {highest:g}: save it with 8 or 16 bits")
    return Image.fromarray(to_eight_bits(values.astype(np.int64), bits))


def _blend_with_black(image: Image.Image) -> Image.Image:
    """Blend an image with a black background, if it has transparency."""
    if not image.has_transparency_data:
        return image
    flat = Image.alpha_composite(Image.new("RGBA", image.size, (0, 0, 0, 255)), image.convert("RGBA"))
    return flat.convert("L") if image.mode in ("L", "LA") else flat


def image_size(path: Path) -> tuple[int, int]:
    """Return the (width, height) in px of the image that `load_image` returns, without decoding the file.

    Raises UserError, naming the file, if it cannot be read.
    """
    if is_dicom(path):
        return read_tags(path).size
    with _named_errors(path), _opened(path) as image:
        return image.size_displayed if isinstance(image, Page) else ImageOps.exif_transpose(image).size


def synthetic_mark_of(paths: Sequence[Path]) -> dict[str, str]:
    """Return the metadata that mark the first file as synthetic, if all files are marked as synthetic, else {}.

    A file is marked by the text "Synthetic: yes ..." in its metadata. Only the keys in `_MARK_KEYS` are returned,
    because other metadata of a photograph may name a patient.
    """
    marks = [_mark_of(path) for path in paths]
    return marks[0] if all(mark.get("Synthetic", "").startswith("yes") for mark in marks) else {}


def _mark_of(path: Path) -> dict[str, str]:
    if is_dicom(path):
        return {}
    with _opened(path) as image:
        texts = {} if isinstance(image, Page) else {key: image.info.get(key) for key in _MARK_KEYS}
    return {key: str(text) for key, text in texts.items() if isinstance(text, str)}


def is_plain_png(path: Path, mode: str) -> bool:
    """Return whether `load_image` changes no pixel of a PNG file, and its only metadata, if any, are a synthetic mark.

    Such a file can be copied instead of being written again.
    mode: "RGB" or "L", as for `load_image`.
    """
    with _opened(path) as image:
        if isinstance(image, Page) or (image.format, image.mode) != ("PNG", mode) or is_deep_png(image):
            return False
        return set(image.info) <= set(_MARK_KEYS) and not _has_late_metadata(path)


def _has_late_metadata(path: Path) -> bool:
    """Return whether a PNG file has texts or EXIF data after its pixels, which Pillow reads only with the pixels."""
    with path.open("rb") as stream:
        stream.seek(8)
        seen = b""
        while len(head := stream.read(8)) == 8 and head[4:] != b"IEND":
            if seen == b"IDAT" and head[4:] in (b"tEXt", b"zTXt", b"iTXt", b"eXIf"):
                return True
            seen = b"IDAT" if head[4:] == b"IDAT" else seen
            stream.seek(int.from_bytes(head[:4]) + 4, 1)
    return False


def save_image(path: Path, image: np.ndarray, texts: Mapping[str, str] | None = None) -> None:
    """Write an image (H, W, 3) or (H, W) uint8 as PNG atomically; create the folder if it does not exist.

    texts: metadata to store in the file, by key.
    """
    with atomic_write(path) as stream:
        write_png(stream, image, texts)


def write_png(stream: IO[bytes], image: np.ndarray, texts: Mapping[str, str] | None = None, fast: bool = False) -> None:
    """Write an image (H, W, 3) or (H, W) uint8 as PNG to a binary stream.

    texts: metadata to store in the file, by key.
    fast: True to compress in less time; the file is about an eighth larger.
    """
    info = PngInfo()
    for key, text in (texts or {}).items():
        info.add_itxt(key, text)
    Image.fromarray(image).save(stream, format="PNG", pnginfo=info, compress_level=1 if fast else 6)


def chroma(pixels: np.ndarray) -> float:
    """Return the mean chroma of pixels (..., 3) uint8, in [0, 255]; it is 0 for a grey image.

    The chroma of a pixel is the difference between its largest and its smallest RGB value.
    """
    red, green, blue = (pixels[..., channel] for channel in range(3))
    largest, smallest = np.maximum(np.maximum(red, green), blue), np.minimum(np.minimum(red, green), blue)
    return float((largest - smallest).mean())


def chroma_of(image: np.ndarray) -> float:
    """Return the chroma of an image (H, W, 3) uint8: the mean of max(R, G, B) - min(R, G, B) over non-black pixels."""
    pixels = image[::4, ::4].reshape(-1, 3).astype(np.int16)
    lit = pixels[pixels.max(axis=1) > 16]
    return chroma(lit) if len(lit) else 0.0


def chessboard(cf: np.ndarray, fa: np.ndarray, tiles: int = 8) -> np.ndarray:
    """Return an image (H, W, 3) uint8 whose tiles alternately show CF (H, W, 3) and FA (H, W).

    If the views are aligned, vessels continue across the edges of the tiles.
    tiles: the number of tiles per row and per column.
    """
    rows, columns = (np.arange(n) * tiles // n for n in cf.shape[:2])
    odd = (rows[:, None] + columns[None, :]) % 2 == 1
    return np.where(odd[..., None], fa[..., None], cf).astype(np.uint8)
