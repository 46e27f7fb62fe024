"""The rows of an exported data set: the views and the mask of a pair as PNG bytes, and what the manifest says of it."""

import io
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from types import NoneType, UnionType
from typing import Any, Literal, get_args, get_origin, get_type_hints

import numpy as np
from PIL import Image

from retipair.data.dataset import file_bytes, load_pair, to_pair_record
from retipair.data.manifest import (
    GENERATED_SCHEMA,
    PREPARED_SCHEMA,
    GeneratedPair,
    PreparedPair,
    Record,
    Split,
    parse_line,
    values_of,
)
from retipair.data.pair import is_plain_png, load_image, synthetic_mark_of, write_png
from retipair.data.pair_stream import StreamedPair
from retipair.runtime.errors import FileError, UserError
from retipair.runtime.schema import canonical_json, from_values, json_sha256
from retipair.runtime.text_files import is_safe_name
from retipair.vision.modality import CF_FA, RECORDED, Modalities, drop_unrecorded

VIEWS = ("cf", "fa", "mask")
COMMON: dict[str, type] = {
    **{"id": str, "split": str, "synthetic": bool, "caption": str, "size": int, "consistency": float},
    "schema": str,
}
"""The columns of all exports, in order; the other columns are the keys of the manifest.

synthetic: whether both views are marked as synthetic.
caption: the caption of a prepared pair, or the prompt of a generated one.
"""
_RENAMED = ("cf", "fa", "mask", "prompt")
"""Keys of the manifest whose values are no columns: images replace the paths, and `caption` replaces the prompt."""
_OF_GENERATED = {"mode": str, "source_id": str}
"""Columns that are left out if no pair was generated, although `PreparedPair` has these keys for imported pairs."""


@dataclass(frozen=True)
class DatasetRow:
    """One pair of an exported data set.

    images: the PNG files of CF (RGB; one channel if it has no colour), FA and mask (one channel), by name of the view.
    """

    record: Record
    split: Split
    synthetic: bool
    images: dict[str, bytes]

    def values(self) -> dict[str, Any]:
        """Return the values of all columns except the images, as JSON values."""
        record = self.record
        caption = record.caption if isinstance(record, PreparedPair) else record.prompt
        kept = {key: value for key, value in drop_unrecorded(values_of(record)).items() if key not in _RENAMED}
        if isinstance(record, PreparedPair) and record.mode is None:
            kept = {key: value for key, value in kept.items() if key not in _OF_GENERATED}
        kept |= {"split": self.split, "synthetic": self.synthetic, "caption": caption}
        return {key: kept.pop(key) for key in COMMON} | kept


def columns_of(kinds: Sequence[type[Record]], generated: bool, modalities: Modalities = CF_FA) -> dict[str, Any]:
    """Return the type of each column except the images, by name, for data sets with pairs of these kinds.

    The columns of the modalities are left out for CF and FA.
    generated: whether some of the pairs were generated.
    A type is str, bool, int, float or a list of them; every value may be null.
    """
    columns: dict[str, Any] = dict(COMMON)
    for kind in kinds:
        hints = get_type_hints(kind)
        without = (*_RENAMED, *(_OF_GENERATED if kind is PreparedPair else ()))
        without += RECORDED if modalities == CF_FA else ()
        names = (name for name in kind.__struct_fields__ if name not in without)
        columns |= {name: _plain(hints[name]) for name in names if name not in columns}
    return columns | (_OF_GENERATED if generated else {})


def _plain(hint: Any) -> Any:
    """Return a type without None, and str for a Literal."""
    if isinstance(hint, UnionType):
        [hint] = [part for part in get_args(hint) if part is not NoneType]
    return str if get_origin(hint) is Literal else hint


def load_row(folder: Path, pair: StreamedPair) -> DatasetRow:
    """Read the files of a pair. A generated pair gets the mask that `load_pair` computes.

    Raises UserError, naming the file, if a file is missing or damaged, or if the views are not squares of the size that
    the manifest states.
    """
    entry = to_pair_record(folder, pair.record)
    images = {
        "cf": png_bytes(entry.cf, "RGB" if entry.modalities.first.colour else "L"),
        "fa": png_bytes(entry.fa, "L"),
    }
    images["mask"] = (
        png_bytes(entry.mask, "L") if entry.mask else _encoded(load_pair(entry).mask.astype(np.uint8) * 255)
    )
    size = pair.record.size
    for view, content in images.items():
        if (found := png_size(content)) != (size, size):
            path = getattr(entry, view)
            problem = f"{found[0]} x {found[1]} px, but the manifest states {size} x {size}"
            raise FileError(path, f"{problem}; make the pair again, or list its id in rejected.txt")
    synthetic = bool(synthetic_mark_of([entry.cf, entry.fa]))
    return DatasetRow(pair.record, pair.split, synthetic, images)


def png_bytes(path: Path, mode: str) -> bytes:
    """Return an image as a PNG file of the mode "RGB" or "L".

    A PNG file of this mode that has no other metadata than a synthetic mark is returned as it is. Any other image is
    decoded and encoded again, with its synthetic mark and without other metadata.
    Raises UserError, naming the file, if it is missing or damaged.
    """
    content = file_bytes(path)
    if _is_intact(content) and is_plain_png(path, mode):
        return content
    image = load_image(path, mode)
    return _encoded(image, synthetic_mark_of([path]))


def _is_intact(content: bytes) -> bool:
    """Return whether the content is an image file; of a PNG file, all checksums are verified."""
    try:
        with Image.open(io.BytesIO(content)) as image:
            image.verify()
    except Exception:  # Pillow raises many types of exceptions for malformed files
        return False
    return True


def _encoded(image: np.ndarray, texts: dict[str, str] | None = None) -> bytes:
    stream = io.BytesIO()
    write_png(stream, image, texts)
    return stream.getvalue()


def png_size(content: bytes) -> tuple[int, int]:
    """Return (width, height) of an image file, px."""
    with Image.open(io.BytesIO(content)) as image:
        return image.size


# --- Back to a prepared folder


def to_prepared(values: dict[str, Any], where: str) -> PreparedPair:
    """Return the manifest line of a prepared pair, from the values of a row without the images.

    A generated pair becomes a prepared pair, whose eye is its source, or the pair itself without a source.
    where: the place of the row, for error messages.
    Raises UserError, which begins with `where`, for missing or wrong values.
    """
    kind = {PREPARED_SCHEMA: PreparedPair, GENERATED_SCHEMA: GeneratedPair}.get(str(values.get("schema")))
    if kind is None:
        raise UserError(f"{where}: unknown schema {values.get('schema')!r}; export the pairs again")
    id = str(values.get("id"))
    if not is_safe_name(id):
        raise UserError(f"{where}: id {id!r:.220} is not a safe file name; use letters, digits, . _ + and -")
    values = values | {view: f"{view}/{id}.png" for view in VIEWS} | {"prompt": values.get("caption")}
    known = {key: values[key] for key in ("schema", *kind.__struct_fields__) if key in values}
    record = parse_line(canonical_json(known) + "\n", where)
    return _as_prepared(record, values, where) if isinstance(record, GeneratedPair) else record


def _as_prepared(record: GeneratedPair, values: dict[str, Any], where: str) -> PreparedPair:
    prepared = {
        **{view: values[view] for view in VIEWS},
        **{"id": record.id, "eye": record.source_eye or record.id, "patient": None},
        **{"split": values.get("split"), "size": record.size, "caption": record.prompt},
        "source_sha256": json_sha256(drop_unrecorded(values_of(record))),
        **{"fa_to_cf": np.eye(3).tolist(), "points": [], "inliers": None, "residual_px": None},
        **{"consistency_before": record.consistency, "consistency": record.consistency},
        **{"mode": record.mode, "source_id": record.source_id},
        **{"modalities": record.modalities, "vessels": record.vessels},
    }
    return from_values(PreparedPair, prepared, where, "export the pairs again")
