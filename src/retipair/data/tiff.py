"""Read TIFF files: find the main image of a file, and decode images with 9 to 16 bits per sample.

Pillow decodes some of these images wrongly (planar ones, and those in which 0 is white) and others not at all. This
module uses Pillow only to parse the tags and to decompress. It interprets the bytes according to TIFF 6.0 (Adobe,
1992).
"""

import io
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import IO, Any

import numpy as np
from PIL import Image, TiffTags
from PIL.TiffImagePlugin import COMPRESSION_INFO, PREFIXES, ImageFileDirectory_v2

from retipair.data.deep_image import compose

_MODES = {0: "L", 1: "L", 2: "RGB", 5: "CMYK"}
"""Pillow's image mode for each value of the tag PhotometricInterpretation.

The values are 0 (grey, 0 is white), 1 (grey, 0 is black), 2 (RGB) and 5 (separated, which is CMYK).
"""
_ALPHA = 2  # the value of the tag ExtraSamples for alpha; 0 is unspecified, 1 is premultiplied alpha
_COMPRESSIONS = ("raw", "tiff_lzw", "tiff_adobe_deflate", "tiff_deflate", "packbits", "lzma", "zstd")
"""Pillow's names of the lossless compression methods that compress bytes, whatever the samples are."""
_MAX_DIRECTORIES, _MAX_SAMPLES = 32, 6
_MAX_TILE_AREA = 2**22  # pixels; a tile may have this area, even if the image is smaller


@dataclass(frozen=True)
class Page:
    """An image of an open TIFF file, as described by its directory (IFD).

    tags: the tags of the directory.
    number: the index of the directory in the file.
    big_endian: whether the byte order of the file is big-endian.
    """

    stream: IO[bytes]
    tags: ImageFileDirectory_v2
    number: int
    big_endian: bool

    def tag(self, number: int, default: Any = None) -> Any:
        """Return the first value of the tag with this number (TIFF 6.0), or `default` if the page has no such tag."""
        value = self.tags.get(number, default)
        return value[0] if isinstance(value, tuple) and value else value

    @property
    def bits(self) -> tuple[int, ...]:
        """The number of bits of each sample of a pixel (tag BitsPerSample)."""
        bits = self.tags.get(258, (1,))
        return bits * min(self.tag(277, 1), _MAX_SAMPLES + 1) if len(bits) == 1 else bits

    @property
    def photometric(self) -> int:
        """The tag PhotometricInterpretation.

        If it is missing, three or more samples are taken for RGB (2), and fewer for grey in which 0 is black (1).
        """
        return self.tag(262, 2 if len(self.bits) >= 3 else 1)

    @property
    def orientation(self) -> int:
        return self.tag(274, 1)

    @property
    def is_deep(self) -> bool:
        """Whether `read_deep_page` must read the page, because Pillow may decode it wrongly or not at all.

        This is so for unsigned integers of 9 to 16 bits. It is also so for uncompressed planar images of 8 bits in
        which 0 is white, which Pillow 13 does not invert.
        """
        deepest = max(self.bits)
        planes_of_8 = deepest == 8 and self.photometric == 0 and self.tag(284, 1) == 2 and self.tag(259, 1) == 1
        return self.tag(339, 1) == 1 and (8 < deepest <= 16 or planes_of_8)

    @property
    def is_misread(self) -> bool:
        """Whether Pillow would take the value 0 for black where it is white, or signed samples for unsigned ones."""
        return (self.photometric == 0 and max(self.bits) > 8) or (self.tag(339, 1) == 2 and max(self.bits) <= 8)

    @property
    def unsupported_message(self) -> str:
        """The error message to raise if the pixel format of this page is not supported."""
        return f"{self} is not supported: save it as grey or RGB with 8 or 16 bits"

    @property
    def size(self) -> tuple[int, int]:
        """The (width, height) of the image as stored, in px."""
        size = self.tag(256), self.tag(257)
        if not all(isinstance(side, int) and side > 0 for side in size):
            raise ValueError("its size is missing")
        return size

    @property
    def size_displayed(self) -> tuple[int, int]:
        """The (width, height) of the image in px after the rotation that its orientation tag requires."""
        width, height = self.size
        return (height, width) if self.orientation in (5, 6, 7, 8) else (width, height)

    def __str__(self) -> str:
        kind = {1: "unsigned", 2: "signed", 3: "floating-point"}.get(self.tag(339, 1), "unknown")
        names = {0: "grey, 0 is white", 1: "grey", 2: "RGB", 3: "palette", 5: "CMYK", 6: "YCbCr", 8: "Lab"}
        bits = " + ".join(map(str, self.bits))
        return f"a TIFF of {bits} {kind} bits ({names.get(self.photometric, f'colour {self.photometric}')})"


def main_page(stream: IO[bytes]) -> Page | None:
    """Return the main image of a TIFF file, or None if the file is not a TIFF.

    Thumbnails and other reduced copies of the image are ignored. Raises ValueError if the file contains several images.
    """
    pages = _pages(stream)
    images = [page for page in pages if not page.tag(254, 0) & 1 and page.tag(255) != 2] or pages
    if len(images) > 1:
        raise ValueError("it contains several images: save the right one in a separate file")
    return images[0] if images else None


def _pages(stream: IO[bytes]) -> list[Page]:
    stream.seek(0)
    header = stream.read(8)
    if not header.startswith(tuple(PREFIXES)):
        return []
    header += stream.read(8) if header[2] == 43 else b""
    pages: list[Page] = []
    visited = {0}  # offsets
    tags = ImageFileDirectory_v2(header)
    while tags.next not in visited and len(pages) < _MAX_DIRECTORIES:
        visited.add(tags.next)
        stream.seek(tags.next)
        # If `load` fails, `tags.next` is the offset of the first directory again, and the loop ends.
        tags = ImageFileDirectory_v2(header)
        tags.load(stream)
        pages.append(Page(stream, tags, len(pages), header.startswith(b"MM")))
    return pages


def read_deep_page(page: Page) -> Image.Image:
    """Decode a page whose `is_deep` is true to an 8-bit Pillow image in mode L, LA, RGB, RGBA or CMYK.

    The image is not rotated, but its metadata have the orientation and the colour profile.
    Raises ValueError for an unsupported pixel format, or if the data do not match the tags.
    """
    bits, channels, alpha = _pixel_format(page)
    samples = _samples(page, bits[0])
    selected = [*range(channels), *([] if alpha is None else [alpha])]
    image = compose(samples[..., selected], _MODES[page.photometric], bits[0], inverted=page.photometric == 0)
    if profile := page.tags.get(34675):
        image.info["icc_profile"] = profile
    image.getexif()[274] = page.orientation
    return image


def _pixel_format(page: Page) -> tuple[tuple[int, ...], int, int | None]:
    """Return (bits of each sample, number of colour channels, index of the alpha channel or None).

    Raises ValueError if the pixel format or the compression of the page is not supported.
    """
    bits, extra = page.bits, page.tags.get(338, ())
    channels = Image.getmodebands(_MODES[page.photometric]) if page.photometric in _MODES else 0
    if not extra and page.photometric == 2 and len(bits) == 4:
        extra = (_ALPHA,)  # many programs write an alpha channel but omit the tag ExtraSamples
    supported = (
        channels
        and page.tag(277, len(bits)) == len(bits) == channels + len(extra) <= _MAX_SAMPLES
        and len(set(bits)) == 1
    )
    alpha = channels + extra.index(_ALPHA) if _ALPHA in extra else None
    compression = COMPRESSION_INFO.get(page.tag(259, 1))
    predictor = page.tag(317, 1)
    if not supported or page.tag(266, 1) != 1 or (alpha and page.photometric == 5):
        raise ValueError(page.unsupported_message)
    if compression not in _COMPRESSIONS or predictor not in (1, 2) or (predictor == 2 and bits[0] != 16):
        how = f"compressed by {compression or 'an unknown method'} with predictor {predictor}"
        raise ValueError(f"{page}, {how}, is not supported: save it without compression")
    return bits, channels, alpha


# --- Bytes -> samples


@dataclass(frozen=True)
class _Blocks:
    """The blocks (strips or tiles) into which each plane of a page is divided.

    tiled: whether the blocks are tiles; otherwise, they are strips.
    width, height: the size of a block in px.
    across, down: the number of blocks per row and per column.
    """

    tiled: bool
    width: int
    height: int
    across: int
    down: int

    def rows(self, page_height: int) -> int:
        """Return the number of pixel rows of all blocks of a plane if they are stacked vertically.

        Every tile is stored with `height` rows, even if it extends beyond the page. The last strip ends with the page.
        """
        return self.across * self.down * self.height if self.tiled else page_height


def _samples(page: Page, bits: int) -> np.ndarray:
    """Return the samples of a page, (H, W, samples per pixel) uint16."""
    width, height = page.size
    blocks, planes = _blocks(page), len(page.bits) if page.tag(284, 1) == 2 else 1
    per_pixel = len(page.bits) // planes
    shape = blocks.rows(height), math.ceil(blocks.width * per_pixel * bits / 8)
    content = [_bytes(page, blocks, shape, plane, planes) for plane in range(planes)]
    values = np.concatenate([_values(rows, page, blocks.width, per_pixel, bits) for rows in content], axis=-1)
    if not blocks.tiled:
        return values
    grid = values.reshape(blocks.down, blocks.across, blocks.height, blocks.width, -1).swapaxes(1, 2)
    return grid.reshape(blocks.down * blocks.height, blocks.across * blocks.width, -1)[:height, :width]


def _blocks(page: Page) -> _Blocks:
    width, height = page.size
    tiled = 324 in page.tags
    strip = width, min(page.tag(278, height), height)
    block_width, block_height = (page.tag(322, 0), page.tag(323, 0)) if tiled else strip
    too_large = tiled and block_width * block_height > max(_MAX_TILE_AREA, 4 * width * height)
    if not (block_width > 0 and block_height > 0) or too_large:
        raise ValueError("its strips or tiles do not match its size")
    return _Blocks(tiled, block_width, block_height, math.ceil(width / block_width), math.ceil(height / block_height))


def _bytes(page: Page, blocks: _Blocks, shape: tuple[int, int], plane: int, planes: int) -> np.ndarray:
    """Read and decompress the blocks of one plane; return them stacked vertically, as bytes of the given shape, uint8.

    shape: (pixel rows of all blocks, bytes per row of a block).
    plane: the index of the plane.
    planes: the number of planes of the page.
    """
    names = (324, 325) if blocks.tiled else (273, 279)
    offsets, counts = (page.tags.get(name, ()) for name in names)
    number = blocks.across * blocks.down
    if not len(offsets) == len(counts) == number * planes or sum(counts) > page.stream.seek(0, io.SEEK_END):
        raise ValueError("some of its strips or tiles are missing")
    parts = []
    for offset, count in list(zip(offsets, counts, strict=True))[plane * number :][:number]:
        page.stream.seek(offset)
        parts.append(page.stream.read(count))
    compression = page.tag(259, 1)
    if compression == 1:
        parts = [_without_padding(part, shape, blocks, index) for index, part in enumerate(parts)]
        return np.frombuffer(b"".join(parts), np.uint8).reshape(shape)
    return _decompressed(parts, compression, shape, blocks.height)


def _without_padding(part: bytes, shape: tuple[int, int], blocks: _Blocks, index: int) -> bytes:
    """Return the bytes of the block with this index, without the padding that some programs append.

    shape: as for `_bytes`.
    """
    rows = blocks.height if blocks.tiled else min(blocks.height, shape[0] - index * blocks.height)
    return part[: rows * shape[1]]


def _decompressed(parts: Sequence[bytes], compression: int, shape: tuple[int, int], block_height: int) -> np.ndarray:
    """Decompress blocks with Pillow (libtiff); return bytes of the given shape, as `_bytes` does.

    For this, a TIFF file of an 8-bit grey image is made in memory, whose strips are the blocks and whose pixels are the
    decompressed bytes.
    """
    rows, row_bytes = shape
    starts = np.cumsum([0, *map(len, parts)])
    tags = ImageFileDirectory_v2()
    tags.update({256: row_bytes, 257: rows, 258: 8, 259: compression, 262: 1, 277: 1, 278: block_height})
    tags[273], tags[279] = tuple(starts[:-1].tolist()), tuple(map(len, parts))
    for tag in (273, 278, 279):
        tags.tagtype[tag] = TiffTags.LONG
    file = io.BytesIO()
    tags.save(file)
    file.write(b"".join(parts))
    with Image.open(file, formats=("TIFF",)) as image:
        return np.asarray(image)


def _values(rows: np.ndarray, page: Page, width: int, per_pixel: int, bits: int) -> np.ndarray:
    """Convert rows of bytes to samples (rows, width, per_pixel) uint16, and undo the predictor.

    per_pixel: the number of samples per pixel in this plane.
    """
    if bits == 16:
        values = np.ascontiguousarray(rows).view(">u2" if page.big_endian else "<u2").astype(np.uint16)
    else:
        values = _unpacked(rows, width * per_pixel, bits)
    values = values.reshape(len(rows), width, per_pixel)
    return np.cumsum(values, axis=1, dtype=np.uint16) if page.tag(317, 1) == 2 else values


def _unpacked(rows: np.ndarray, count: int, bits: int) -> np.ndarray:
    """Unpack rows of bytes into samples (rows, count) uint16.

    The samples have 8 to 15 bits each and follow one another without gaps, the most significant bit first.
    """
    start = np.arange(count, dtype=np.uint32) * np.uint32(bits)
    first, shift = start // 8, np.uint32(24 - bits) - start % 8
    padded = np.pad(rows, ((0, 0), (0, 2))).astype(np.uint32)
    three = padded[:, first] << 16 | padded[:, first + 1] << 8 | padded[:, first + 2]
    return (three >> shift & np.uint32(2**bits - 1)).astype(np.uint16)
