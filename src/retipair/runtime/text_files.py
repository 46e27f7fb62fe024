"""Read text files of users: tables and points saved by Excel or an editor, in UTF-8 or UTF-16."""

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
    """Compose characters (Unicode NFC): macOS stores file names decomposed (NFD), tables are mostly composed."""
    return unicodedata.normalize("NFC", text)


def on_disk(path: Path) -> Path:
    """Return the path as it is spelled on disk, each part composed (NFC) or decomposed (NFD).

    The given spelling is preferred; a path that does not exist is returned unchanged. Raises UserError if two other
    spellings exist.
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
    """Read a UTF-8 file, or UTF-16 with a byte order mark, and return its text with lines that end in \\n.

    Raises UserError, naming the file, if it cannot be opened or has another encoding. Windows-1252, GBK and others are
    not guessed, because they cannot be distinguished.
    """
    try:
        data = path.read_bytes()
        text = data.decode("utf-16" if data.startswith(_UTF16) else "utf-8-sig")
    except OSError as error:
        raise DamagedError(path, f"cannot be read ({error.strerror}); replace or remove it") from None
    except UnicodeDecodeError:
        raise DamagedError(path, "not text in UTF-8; save it again as UTF-8 (in Excel: CSV UTF-8)") from None
    return text.replace("\r\n", "\n").replace("\r", "\n")


def read_lines(path: Path) -> tuple[str | None, int, str]:
    """Return (separator, number, text): the text without Excel's optional first line `sep=;`.

    separator: the one in that line, or None. number: line of the file at which the text begins. Raises UserError as
    `read_text`.
    """
    text = read_text(path)
    if match := _SEPARATOR_LINE.match(text):
        return match[1], 2, text[match.end() :]
    return None, 1, text


def csv_rows(path: Path) -> Iterator[tuple[str, dict[str, str]]]:
    """Yield (file and line, cells by column) for each non-empty line of a CSV table; column names in lower case.

    The delimiter is a comma, semicolon or tab. Raises UserError, naming the line, if the text is not valid CSV.
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
    """Remove empty cells at the end, which Excel writes for columns that were once used."""
    while cells and not cells[-1].strip():
        cells = cells[:-1]
    return cells


def _csv_lines(path: Path) -> Iterator[tuple[str, list[str]]]:
    """Yield (file and line, cells) of each record; quoted cells may span lines, and an unclosed quote is an error."""
    delimiter, first, text = read_lines(path)
    header = text.partition("\n")[0]
    delimiter = delimiter or max(_DELIMITERS, key=header.count)  # column names contain no delimiter
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
