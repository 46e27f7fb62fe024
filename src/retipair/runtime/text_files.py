"""Read text files that a user has saved with Excel or an editor, such as tables and landmarks, in UTF-8 or UTF-16."""

import codecs
import csv
import io
import re
import unicodedata
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

from retipair.runtime.errors import DamagedError, FileError, UserError

_UTF16 = (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)
_DELIMITERS = ",;\t"
_SEPARATOR_LINE = re.compile(r"\"?sep=([,;\t])\"?\n", re.IGNORECASE)


def nfc(text: str) -> str:
    """Return text with composed characters (Unicode NFC), so that names from different sources can be compared.

    macOS may store file names with decomposed characters (NFD), while tables mostly have composed ones.
    """
    return unicodedata.normalize("NFC", text)


SAFE_NAME = re.compile(r"\w[\w.+-]*")
"""Pattern of the ids that can be names of files and folders."""
MAX_NAME_BYTES = 200
"""Maximum length of an id: file systems allow 255 bytes, and the names of output files are longer than the id."""


def is_too_long(name: str) -> bool:
    """Return whether an id is longer than MAX_NAME_BYTES."""
    return len(name.encode(errors="replace")) > MAX_NAME_BYTES


def is_safe_name(name: str) -> bool:
    """Return whether an id can be part of the name of a file or folder."""
    return bool(SAFE_NAME.fullmatch(name)) and not is_too_long(name)


def check_safe_name(path: Path, id: str) -> None:
    """Raise FileError, naming the file `path` that contains the id, if the id cannot be part of a file name."""
    if not is_safe_name(id):
        problem = f"id {id!r:.220} is not a safe file name"
        raise FileError(path, f"{problem}; use letters, digits, . _ + and -, at most {MAX_NAME_BYTES} bytes")


def on_disk(path: Path) -> Path:
    """Return the path of an existing file as the file system spells it.

    The characters of each part of the path may be composed (NFC) or decomposed (NFD) on disk. The given spelling is
    preferred if it exists. A path that exists in no spelling is returned unchanged.
    Raises UserError if the given spelling does not exist, but both the composed and the decomposed one do.
    """
    if path == path.parent or path.exists():
        return path
    parent = on_disk(path.parent)
    spellings = {unicodedata.normalize(form, path.name) for form in ("NFC", "NFD")}
    matches = [parent / name for name in spellings if (parent / name).exists()]
    if len(matches) > 1:
        raise FileError(path, "two files have this name, composed (NFC) and decomposed (NFD); remove one of them")
    return matches[0] if matches else path


def read_text(path: Path) -> str:
    """Return the text of a file in UTF-8, or in UTF-16 with a byte order mark, with lines that end in \\n.

    Raises UserError, naming the file, if it cannot be opened or has another encoding. Other encodings, such as
    Windows-1252 and GBK, are not supported, because they cannot be distinguished by the content of a file.
    """
    try:
        data = path.read_bytes()
        text = data.decode("utf-16" if data.startswith(_UTF16) else "utf-8-sig")
    except OSError as error:
        raise DamagedError(path, f"cannot be read ({error.strerror}); replace or remove it") from None
    except UnicodeDecodeError:
        raise DamagedError(path, "not text in UTF-8; save it again as UTF-8 (in Excel: CSV UTF-8)") from None
    return text.replace("\r\n", "\n").replace("\r", "\n")


def read_table_text(path: Path) -> tuple[str | None, int, str]:
    """Read a text file without the line `sep=;` that Excel may write first; return (separator, number, text).

    separator: the character after `sep=`, or None if the file has no such line.
    number: the number of the line of the file at which `text` begins, 1 or 2.
    Raises UserError for the same reasons as `read_text`.
    """
    text = read_text(path)
    if match := _SEPARATOR_LINE.match(text):
        return match[1], 2, text[match.end() :]
    return None, 1, text


def csv_rows(path: Path) -> Iterator[tuple[str, dict[str, str]]]:
    """Yield ("FILE, line NUMBER", cells by column name) for each non-empty row of a CSV table.

    The column names are in lower case. The delimiter of the file may be a comma, a semicolon or a tab.
    Raises UserError if the text is not valid CSV, if two columns have the same name, or if a row has more cells than
    the header.
    """
    lines = _csv_lines(path)
    _, names = next(lines, ("", []))
    header = _strip_empty_cells([name.strip().lower() for name in names])
    if duplicates := [name for name, count in Counter(header).items() if name and count > 1]:
        raise FileError(path, f"column {duplicates[0]!r} occurs more than once; rename or remove one of them")
    for where, line in lines:
        cells = _strip_empty_cells(line)
        if len(cells) > len(header):
            raise UserError(
                f"{where}: {len(cells)} cells for {len(header)} columns; quote cells that contain delimiters"
            )
        if cells:
            yield where, dict(zip(header, cells, strict=False))


def _strip_empty_cells(cells: list[str]) -> list[str]:
    """Return the cells of a row without empty ones at the end, which Excel writes for columns that were once used."""
    while cells and not cells[-1].strip():
        cells = cells[:-1]
    return cells


def _csv_lines(path: Path) -> Iterator[tuple[str, list[str]]]:
    """Yield ("FILE, line NUMBER", cells) for each row, including the header; a quoted cell may span several lines.

    Raises UserError for invalid CSV, such as an unclosed quote.
    """
    delimiter, first, text = read_table_text(path)
    header = text.partition("\n")[0]
    delimiter = delimiter or max(_DELIMITERS, key=header.count)  # no column name contains a delimiter
    lines = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter, strict=True)
    while True:
        where = f"{path}, line {lines.line_num + first}"
        try:
            cells = next(lines, None)
        except csv.Error as error:
            raise UserError(
                f"{where}: not CSV ({error}); close every quote, and write a quote inside a cell twice"
            ) from None
        if cells is None:
            return
        yield where, cells
