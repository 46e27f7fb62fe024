"""Write and read data sets of Parquet files with the images inside, as Hugging Face's library `datasets` reads them.

`datasets.load_dataset(FOLDER)` takes the types of the columns from the schema metadata `huggingface`, and an image as a
struct of its file (`bytes`) and a name (`path`). Only this module imports pyarrow, which the extra `hf` installs.
"""

import json
import re
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, BinaryIO, get_args

from retipair.data.dataset_row import VIEWS, DatasetRow
from retipair.data.manifest import Split
from retipair.runtime.errors import DamagedError, FileError, MissingError, UserError

_ROW_GROUP = 100  # rows; what `datasets` writes for images, so that a single row is read quickly
_ROW_GROUP_BYTES = 32 * 2**20  # of images; limits the memory that a writer or a reader needs
_READ_ROWS = 16
FILE_SPLITS: dict[Split, str] = {"train": "train", "val": "validation", "test": "test"}
"""The name of each split in file names, as the library `datasets` names it."""
_SPLIT_WORDS: dict[str, Split] = {
    **{"train": "train", "training": "train"},
    **{"validation": "val", "valid": "val", "val": "val", "dev": "val"},
    **{"test": "test", "testing": "test", "eval": "test", "evaluation": "test"},
}


def import_pyarrow() -> Any:
    """Return the module pyarrow. Raises UserError if it is not installed."""
    try:
        import pyarrow
        import pyarrow.parquet
    except ImportError:
        raise UserError("Parquet files need pyarrow: pip install 'retipair[hf]'") from None
    return pyarrow


# --- Writing


def write_parquet(stream: BinaryIO, rows: Iterable[DatasetRow], columns: dict[str, Any]) -> None:
    """Write rows as a Parquet file, with the images cf, fa and mask and these columns (see `columns_of`).

    The memory that is used does not depend on the number of rows.
    """
    pyarrow = import_pyarrow()
    schema = _schema(columns)
    values = [name for name in columns if name != "id"]
    # Statistics and dictionaries of images would repeat their bytes.
    with pyarrow.parquet.ParquetWriter(stream, schema, use_dictionary=values, write_statistics=values) as writer:
        group: list[dict[str, Any]] = []
        size = 0
        for row in rows:
            images = {view: {"bytes": png, "path": f"{row.record.id}.{view}.png"} for view, png in row.images.items()}
            group.append(images | row.values())
            size += sum(map(len, row.images.values()))
            if len(group) == _ROW_GROUP or size >= _ROW_GROUP_BYTES:
                writer.write_table(pyarrow.Table.from_pylist(group, schema))
                group, size = [], 0
        if group:
            writer.write_table(pyarrow.Table.from_pylist(group, schema))


def _schema(columns: dict[str, Any]) -> Any:
    pyarrow = import_pyarrow()
    image = pyarrow.struct([("bytes", pyarrow.binary()), ("path", pyarrow.string())])
    types = [(name, _arrow_type(kind)) for name, kind in columns.items()]
    features = {view: {"_type": "Image"} for view in VIEWS} | {name: _feature(kind) for name, kind in columns.items()}
    metadata = {"huggingface": json.dumps({"info": {"features": features}})}
    return pyarrow.schema([(view, image) for view in VIEWS] + types, metadata)


def _arrow_type(kind: Any) -> Any:
    pyarrow = import_pyarrow()
    if inner := get_args(kind):
        return pyarrow.list_(_arrow_type(inner[0]))
    return {str: pyarrow.string(), bool: pyarrow.bool_(), int: pyarrow.int64(), float: pyarrow.float64()}[kind]


def _feature(kind: Any) -> dict[str, Any]:
    """Return the description of a column in the form of `datasets.Features.to_dict`."""
    if inner := get_args(kind):
        return {"feature": _feature(inner[0]), "_type": "List"}
    return {"dtype": {str: "string", bool: "bool", int: "int64", float: "float64"}[kind], "_type": "Value"}


# --- Reading


def is_parquet_dataset(path: Path) -> bool:
    """Return whether a path is a Parquet file, or a folder that contains Parquet files."""
    return bool(parquet_files(path))


def parquet_files(path: Path) -> list[Path]:
    """Return the Parquet files of a data set, sorted: a file, or those of a folder and its direct subfolders.

    Raises FileError for a folder that `datasets.Dataset.save_to_disk` wrote: it has Arrow files instead.
    """
    if path.suffix.lower() == ".parquet" and path.is_file():
        return [path]
    if not path.is_dir():
        return []
    if any((path / name).is_file() for name in ("dataset_dict.json", "state.json")) and any(path.rglob("*.arrow")):
        raise FileError(path, "was written by save_to_disk; save the data set with to_parquet instead")
    return sorted(
        file
        for pattern in ("*.parquet", "*/*.parquet")
        for file in path.glob(pattern)
        if not any(part.startswith(".") for part in file.relative_to(path).parts)
    )


def image_columns(path: Path) -> list[str]:
    """Return the names of the image columns of a Parquet file: file contents, alone or in a struct with `bytes`."""
    pyarrow = import_pyarrow()
    return [field.name for field in read_schema(path) if _is_image(pyarrow, field.type)]


def _is_image(pyarrow: Any, kind: Any) -> bool:
    if pyarrow.types.is_struct(kind):
        return any(part.name == "bytes" and _is_image(pyarrow, part.type) for part in kind)
    return pyarrow.types.is_binary(kind) or pyarrow.types.is_large_binary(kind)


def read_schema(path: Path) -> Any:
    """Return the schema of a Parquet file. Raises UserError, naming the file, if it is damaged."""
    with _opened(path) as file:
        return file.schema_arrow


def read_rows(path: Path, columns: Sequence[str]) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield ("FILE, row NUMBER", values by column) for each row of a Parquet file, with rows counted from 1.

    Raises UserError, naming the file, if it is damaged or lacks one of the columns.
    """
    pyarrow = import_pyarrow()
    number = 0
    with _opened(path) as file:
        if missing := [name for name in columns if name not in file.schema_arrow.names]:
            raise FileError(path, f"has no column {missing[0]}, unlike the first file; remove it, or add the column")
        batches = file.iter_batches(batch_size=_READ_ROWS, columns=list(columns))
        while True:
            try:
                batch = next(batches, None)
            except (pyarrow.ArrowException, OSError) as error:
                raise _damaged(path, error) from None
            if batch is None:
                return
            for values in batch.to_pylist():
                number += 1
                yield f"{path}, row {number}", values


def _opened(path: Path) -> Any:
    pyarrow = import_pyarrow()
    try:
        return pyarrow.parquet.ParquetFile(path)
    except FileNotFoundError:
        raise MissingError(path, "no such file; download the data set again") from None
    except (pyarrow.ArrowException, OSError) as error:
        raise _damaged(path, error) from None


def _damaged(path: Path, error: Exception) -> DamagedError:
    return DamagedError(path, f"cannot be read as a Parquet file ({str(error).splitlines()[0]}); download it again")


def image_bytes(value: Any, where: str, column: str) -> bytes:
    """Return the file in a cell of an image column. Raises UserError, which begins with `where`, if it has none."""
    content = value.get("bytes") if isinstance(value, dict) else value
    if not (content and isinstance(content, bytes)):
        raise UserError(
            f"{where}: column {column} has no image in the file; save the data set with its images inside (docs/datasets.md)"
        )
    return content


def split_in_name(path: Path, root: Path) -> Split | None:
    """Return the split that the name of a file or of its folder below `root` states, or None.

    The words are those that the library `datasets` recognises, such as train, validation and dev.
    """
    words = re.split(r"[^a-z]+", path.relative_to(root).as_posix().lower() if path != root else path.name.lower())
    return next((_SPLIT_WORDS[word] for word in words if word in _SPLIT_WORDS), None)
