"""Image files of forms that Pillow does not write: TIFF and PNG with up to 16 bits a sample."""

import io
import struct
import zlib
from dataclasses import dataclass, field

import numpy as np
from PIL import Image
from PIL.TiffImagePlugin import ImageFileDirectory_v2

COMPRESSIONS = {"none": 1, "lzw": 5, "deflate": 8, "packbits": 32773}
_LONG = (256, 257, 273, 278, 279, 322, 323, 324, 325)
"""Tags of 32 bits."""
_PILLOWS = {"lzw": "tiff_lzw", "deflate": "tiff_adobe_deflate", "packbits": "packbits"}


@dataclass(frozen=True, kw_only=True)
class TiffForm:
    """How a TIFF stores samples; block: (height, width) of a tile, or rows of a strip; tags: added or replaced."""

    bits: int
    photometric: int
    big_endian: bool = False
    planar: bool = False
    compression: str = "none"
    predictor: bool = False
    block: tuple[int, int] | int = 5
    tags: dict[int, object] = field(default_factory=dict)


def tiff(samples: np.ndarray, form: TiffForm) -> bytes:
    """Write samples (H, W, S) as a TIFF of one page (TIFF 6.0)."""
    planes = [samples[..., [n]] for n in range(samples.shape[2])] if form.planar else [samples]
    blocks = [_packed(block, form) for plane in planes for block in _blocks(plane, form)]
    contents = [_compressed(block, form.compression) for block in blocks]
    height, width, channels = samples.shape
    tags = {256: width, 257: height, 258: (form.bits,) * channels, 259: COMPRESSIONS[form.compression]}
    tags |= {262: form.photometric, 277: channels, 284: 2 if form.planar else 1}
    tags |= {317: 2} if form.predictor else {}
    offsets, counts = (273, 279) if isinstance(form.block, int) else (324, 325)
    tags |= {278: form.block} if isinstance(form.block, int) else {323: form.block[0], 322: form.block[1]}
    tags |= {counts: tuple(map(len, contents)), offsets: (0,) * len(contents)}
    return _file(tags | form.tags, contents, form.big_endian)


def _file(tags: dict[int, object], contents: list[bytes], big_endian: bool) -> bytes:
    """Header, directory, contents; offsets of 0 are replaced by the true ones."""
    header = b"MM\0*\0\0\0\x08" if big_endian else b"II*\0\x08\0\0\0"
    directory = ImageFileDirectory_v2(header)
    for number, value in tags.items():
        if number in _LONG:
            directory.tagtype[number] = 4
        directory[number] = value
    begin = len(header) + len(directory.tobytes(8))
    starts = np.cumsum([begin, *map(len, contents)])[:-1].tolist()
    if not any(tags.get(273, (1,))):
        directory[273] = tuple(start - begin for start in starts)  # Pillow adds where the directory ends
    if not any(tags.get(324, (1,))):
        directory[324] = tuple(starts)
    return header + directory.tobytes(8) + b"".join(contents)


def _blocks(plane: np.ndarray, form: TiffForm) -> list[np.ndarray]:
    height, width, _ = plane.shape
    if isinstance(form.block, int):
        return [plane[top : top + form.block] for top in range(0, height, form.block)]
    high, wide = form.block
    padded = np.pad(plane, ((0, -height % high), (0, -width % wide), (0, 0)))
    corners = [(top, left) for top in range(0, height, high) for left in range(0, width, wide)]
    return [padded[top : top + high, left : left + wide] for top, left in corners]


def _packed(block: np.ndarray, form: TiffForm) -> bytes:
    block = block.astype(np.uint8 if form.bits == 8 else np.uint16)
    if form.predictor:
        block = np.diff(block, axis=1, prepend=np.zeros_like(block[:, :1]))
    if form.bits in (8, 16):
        return block.astype((">" if form.big_endian else "<") + f"u{form.bits // 8}").tobytes()
    rows = block.reshape(len(block), -1, 1).astype(np.uint16)
    bits = (rows >> np.arange(form.bits - 1, -1, -1, dtype=np.uint16)) & 1
    return np.packbits(bits.reshape(len(block), -1).astype(np.uint8), axis=1).tobytes()


def _compressed(content: bytes, compression: str) -> bytes:
    if compression == "none":
        return content
    stream = io.BytesIO()
    grey = Image.fromarray(np.frombuffer(content, np.uint8)[None])
    grey.save(stream, "TIFF", compression=_PILLOWS[compression])
    stream.seek(0)
    with Image.open(stream) as image:
        (start,), (count,) = image.tag_v2[273], image.tag_v2[279]
    return stream.getvalue()[start : start + count]


def png(samples: np.ndarray, interlaced: bool = False, extra: bytes = b"") -> bytes:
    """Write samples (H, W, 1 to 4) uint16 as a PNG with 16 bits; extra: chunks before the pixels."""
    height, width, channels = samples.shape
    header = struct.pack(">IIBBBBB", width, height, 16, {1: 0, 2: 4, 3: 2, 4: 6}[channels], 0, 0, interlaced)
    steps = [(0, 8, 0, 8), (0, 8, 4, 8), (4, 8, 0, 4), (0, 4, 2, 4), (2, 4, 0, 2), (0, 2, 1, 2), (1, 2, 0, 1)]
    passes = [samples[a::b, c::d] for a, b, c, d in steps] if interlaced else [samples]
    lines = b"".join(_filtered(row) for part in passes if part.size for row in part)
    chunks = [chunk(b"IHDR", header), extra, chunk(b"IDAT", zlib.compress(lines)), chunk(b"IEND", b"")]
    return b"\x89PNG\r\n\x1a\n" + b"".join(chunks)


def _filtered(row: np.ndarray) -> bytes:
    """By the difference to the pixel at the left ("Sub"), which needs the right number of bytes a pixel."""
    content = row.astype(">u2").reshape(len(row), -1).view(np.uint8)
    return b"\x01" + np.diff(content, axis=0, prepend=np.zeros_like(content[:1])).tobytes()


def chunk(kind: bytes, data: bytes) -> bytes:
    """One chunk of a PNG."""
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
