"""Read tables of pairs and tables of eyes (eyes.csv), in the formats .csv, .tsv, .txt and .jsonl."""

import json
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from retipair.data.manifest import SPLITS, Split
from retipair.runtime.errors import FileError, UserError
from retipair.runtime.jsonl import is_text
from retipair.runtime.text_files import csv_rows, nfc, read_text

Eyes = dict[str, dict[str, Any]]
"""The values of `eye`, `patient` and `split` for each pair, by id."""


def read_eyes(path: Path) -> Eyes:
    """Return the content of an `eyes.csv`. Raises UserError for a duplicate id."""
    eyes: Eyes = {}
    for where, row in table_rows(path, ("id", "eye", "patient", "split"), needed=("id", "eye")):
        name, eye, patient = (nfc(row.get(key, "")) for key in ("id", "eye", "patient"))
        if name in eyes:
            raise UserError(f"{where}: duplicate id {name!r}; remove one line")
        eyes[name] = {"eye": eye, "patient": patient or None, "split": split_of(row, where)}
    return eyes


def table_rows(path: Path, known: Iterable[str], needed: Iterable[str]) -> Iterator[tuple[str, dict[str, str]]]:
    """Yield ("FILE, line NUMBER", non-empty cells by column) for each row of a CSV or JSONL table.

    known: the names of all columns that the table may have.
    needed: the names of the columns that must have a value in every row.
    Raises UserError for an unknown column, a missing value, an empty table, and for unprintable characters in the name
    of an eye or a patient, which a manifest must not contain.
    """
    readers = {".csv": csv_rows, ".tsv": csv_rows, ".txt": csv_rows, ".jsonl": _jsonl_rows}
    if path.suffix.lower() not in readers:
        raise FileError(path, "unknown table format; supported are .csv, .tsv, .txt and .jsonl, or a folder")
    rows = 0
    for where, cells in readers[path.suffix.lower()](path):
        if unknown := [key for key in cells if key not in known]:
            raise FileError(path, f"unknown column {unknown[0]!r}; use {', '.join(known)}")
        texts = {key: _cell_text(cell) for key, cell in cells.items()}
        row = {key: text for key, text in texts.items() if text}
        if missing := [key for key in needed if key not in row]:
            raise UserError(f"{where}: {missing[0]} is missing; fill that column in every line")
        if name := next((row[key] for key in ("eye", "patient") if not row.get(key, "").isprintable()), None):
            raise UserError(f"{where}: {name!r} has characters that cannot be printed; write it without them")
        rows += 1
        yield where, row
    if not rows:
        raise FileError(path, f"no lines in this table; it needs the columns {', '.join(needed)}")


def _cell_text(cell: Any) -> str:
    """Return the text of a cell, for example "1" for the number 1.0.

    Many programs write integers as floats if a cell of the column is empty.
    """
    if isinstance(cell, float) and cell.is_integer():
        cell = int(cell)
    return "" if cell is None else str(cell).strip()


def _refuse_constant(name: str) -> None:
    raise ValueError(f"{name} is not a valid value; write null, or omit the key")


def _jsonl_rows(path: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    for number, line in enumerate(read_text(path).split("\n"), start=1):
        where = f"{path}, line {number}"
        try:
            row = json.loads(line, parse_constant=_refuse_constant) if line.strip() else {}
        except (ValueError, RecursionError) as error:
            raise UserError(f"{where}: not JSON ({error}); write one object per line") from None
        if not isinstance(row, dict):
            raise UserError(f"{where}: not an object; write one {{...}} per line")
        for key, cell in row.items():
            if not isinstance(cell, str | None) and (key == "caption" or type(cell) not in (int, float)):
                raise UserError(f"{where}: {key} is not text; put it in quotes")
            if isinstance(cell, str) and not is_text(cell):
                raise UserError(f"{where}: {key} has an invalid character (a lone surrogate); write it again")
        if row:
            yield where, row


def split_of(row: dict[str, str], where: str) -> Split | None:
    if "split" not in row:
        return None
    name = {"validation": "val", "valid": "val"}.get(row["split"].lower(), row["split"].lower())
    for split in SPLITS:
        if name == split:
            return split
    raise UserError(f"{where}: unknown split {row['split']!r}; use train, val or test")
