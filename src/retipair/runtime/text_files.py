"""Text files as people make them: tables and points, saved by Excel or an editor, in one of the encodings it offers."""

import codecs
import csv
import io
import re
import unicodedata
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

from retipair.runtime.errors import UserError

_UTF16 = (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)
_DELIMITERS = ",;\t"
_SEPARATOR_LINE = re.compile(r"\"?sep=([,;\t])\"?\n", re.IGNORECASE)


def nfc(text: str) -> str:
    """Compose characters (Unicode NFC): macOS stores file names decomposed (NFD), tables are mostly composed."""
    return unicodedata.normalize("NFC", text)


def on_disk(path: Path) -> Path:
    """Return the path as it is spelled on disk, each part composed (NFC) or decomposed (NFD).

    The spelling that is given wins; a path that does not exist is returned as it is. Raises UserError if two other
    spellings exist.
    """
    if path == path.parent or path.exists():
        return path
    parent = on_disk(path.parent)
    spellings = {unicodedata.normalize(form, path.name) for form in ("NFC", "NFD")}
    found = [parent / name for name in spellings if (parent / name).exists()]
    if len(found) > 1:
        raise UserError(f"{path}: two files have this name, composed (NFC) and decomposed (NFD); remove one of them")
    return found[0] if found else path


def read_text(path: Path) -> str:
    """Read UTF-8, or UTF-16 with a byte order mark; lines end in \\n. Raises UserError, naming the file, otherwise, and
    if it cannot be opened.

    Other encodings (Windows-1252, GBK) are not guessed: they cannot be told from each other.
    """
    try:
        data = path.read_bytes()
        text = data.decode("utf-16" if data.startswith(_UTF16) else "utf-8-sig")
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror}); replace or remove it") from None
    except UnicodeDecodeError:
        raise UserError(f"{path}: not text in UTF-8; save it again as UTF-8 (in Excel: CSV UTF-8)") from None
    return text.replace("\r\n", "\n").replace("\r", "\n")


def read_lines(path: Path) -> tuple[str | None, int, str]:
    """Return (separator, number, text): what Excel's first line `sep=;` names, if any, and the text from line `number`.

    Raises UserError as `read_text`.
    """
    text = read_text(path)
    if found := _SEPARATOR_LINE.match(text):
        return found[1], 2, text[found.end() :]
    return None, 1, text


def csv_rows(path: Path) -> Iterator[tuple[str, dict[str, str]]]:
    """Yield (place, cells by column) of each line of a CSV table that is not empty; columns in lower case.

    The delimiter is a comma, semicolon or tab. Raises UserError, naming the line, for what is not CSV.
    """
    lines = _csv_lines(path)
    _, names = next(lines, ("", []))
    header = _without_empty_end([name.strip().lower() for name in names])
    if double := [name for name, count in Counter(header).items() if name and count > 1]:
        raise UserError(f"{path}: column {double[0]!r} occurs more than once; rename or remove one of them")
    for where, line in lines:
        cells = _without_empty_end(line)
        if len(cells) > len(header):
            raise UserError(f"{where}: {len(cells)} cells for {len(header)} columns; quote cells with delimiters")
        if cells:
            yield where, dict(zip(header, cells, strict=False))


def _without_empty_end(cells: list[str]) -> list[str]:
    """Drop empty cells at the end: Excel writes them for columns that were used once."""
    while cells and not cells[-1].strip():
        cells = cells[:-1]
    return cells


def _csv_lines(path: Path) -> Iterator[tuple[str, list[str]]]:
    """(place, cells) of each line, or of several where a quoted cell goes on. Strict: an open quote swallows lines."""
    delimiter, first, text = read_lines(path)
    header = text.partition("\n")[0]
    delimiter = delimiter or max(_DELIMITERS, key=header.count)  # no known column has one in its name
    lines = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter, strict=True)
    while True:
        where = f"{path}, line {lines.line_num + first}"
        try:
            cells = next(lines, None)
        except csv.Error as error:
            raise UserError(f"{where}: not CSV ({error}); close every quote, double those within quotes") from None
        if cells is None:
            return
        yield where, cells
