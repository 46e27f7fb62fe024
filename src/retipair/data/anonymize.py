"""Replace the names of pairs, eyes and patients by keyed hashes.

Without the key, a hash cannot be traced back to the name.
"""

import csv
import hmac
import io
import re
import secrets
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from retipair.data.raw_pair import RawPair
from retipair.runtime.atomic_io import write_text
from retipair.runtime.errors import FileError

_OWNER_ONLY = 0o600
_HEADER = ["id", "anonymous"]
_LENGTH = 16  # hex digits; the probability that any two of a million names get the same hash is 1 in 37,000,000


def read_key(path: Path) -> bytes:
    """Return the key in a key file, or a new random key if the file does not exist. `write_names` creates the file.

    Raises UserError, naming the file, if an existing file contains no valid key.
    """
    if not path.exists():
        return secrets.token_bytes(32)
    try:
        text = path.read_text(encoding="ascii").strip()
    except (OSError, ValueError):
        text = ""
    if not re.fullmatch("[0-9a-f]{64}", text):
        raise FileError(path, "not a retipair key file (64 hex digits); give the path of a new file to create a key")
    return bytes.fromhex(text)


def hashed(key: bytes, kind: str, name: str) -> str:
    """Return the first 16 hex digits of the HMAC-SHA256 (RFC 2104) of a name.

    kind: what the name denotes, such as "pair" or "patient". Equal names of different kinds get different hashes.
    """
    return hmac.new(key, f"{kind}\0{name}".encode(), "sha256").hexdigest()[:_LENGTH]


def anonymous(pair: RawPair, key: bytes) -> RawPair:
    """Return the pair with hashed names of pair, eye and patient. The caption is kept, because training needs it."""
    return replace(
        pair,
        id=hashed(key, "pair", pair.id),
        eye=hashed(key, "eye", pair.eye) if pair.eye else None,
        patient=hashed(key, "patient", pair.patient) if pair.patient else None,
    )


def write_names(path: Path, key: bytes, pairs: Sequence[RawPair]) -> Path:
    """Write the key file if it does not exist, and add pairs to the name table beside it; return the path of the table.

    The table lists the original and the hashed id of every pair. It must be kept as secret as the key. If the path of
    the table holds a file of another kind, raises UserError before anything is written.

    path: the key file.
    """
    names = path.with_name(f"{path.name}.csv")
    rows = _read_names(names) | {(pair.id, hashed(key, "pair", pair.id)) for pair in pairs}
    stream = io.StringIO()
    table = csv.writer(stream, lineterminator="\n")
    table.writerows([_HEADER, *sorted(rows)])
    if not path.exists():
        write_text(path, f"{key.hex()}\n", _OWNER_ONLY)
    write_text(names, stream.getvalue(), _OWNER_ONLY)
    return names


def _read_names(path: Path) -> set[tuple[str, ...]]:
    if not path.exists():
        return set()
    try:
        header, *rows = csv.reader(io.StringIO(path.read_text(encoding="utf-8")), strict=True)
    except (OSError, ValueError, csv.Error):
        header, rows = [], []
    if header != _HEADER or any(len(row) != len(_HEADER) for row in rows):
        raise FileError(
            path, "not a name table written by retipair and would be overwritten; give the path of another key file"
        )
    return set(map(tuple, rows))
