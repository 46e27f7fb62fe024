"""Replace names of pairs, eyes and patients by keyed hashes, which cannot be traced back without the key."""

import csv
import hmac
import io
import re
import secrets
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from retipair.data.sources import RawPair
from retipair.runtime.atomic_io import write_text
from retipair.runtime.errors import FileError

_OWNER_ONLY = 0o600
_HEADER = ["id", "anonymous"]
_LENGTH = 16  # hex digits: a million names collide with a probability of 1 in 37,000,000


def read_key(path: Path) -> bytes:
    """Read a key file, or create it if it is missing. Raises UserError, naming the file, if it holds no key."""
    if not path.exists():
        write_text(path, f"{secrets.token_hex(32)}\n", _OWNER_ONLY)
    try:
        text = path.read_text(encoding="ascii").strip()
    except (OSError, ValueError):
        text = ""
    if not re.fullmatch("[0-9a-f]{64}", text):
        raise FileError(path, "not a retipair key file (64 hex digits); name a new file to create a key")
    return bytes.fromhex(text)


def hashed(key: bytes, kind: str, name: str) -> str:
    """Return the HMAC-SHA256 (RFC 2104) of a name, 16 hex digits that depend only on key, kind and name."""
    return hmac.new(key, f"{kind}\0{name}".encode(), "sha256").hexdigest()[:_LENGTH]


def anonymous(pair: RawPair, key: bytes) -> RawPair:
    """Return the pair with hashed names. Its caption is kept, because it was written to be trained on."""
    return replace(
        pair,
        id=hashed(key, "pair", pair.id),
        eye=hashed(key, "eye", pair.eye) if pair.eye else None,
        patient=hashed(key, "patient", pair.patient) if pair.patient else None,
    )


def write_names(path: Path, key: bytes, pairs: Sequence[RawPair]) -> None:
    """Add pairs to the table of original and hashed ids, which must be kept as secret as the key.

    Raises UserError if the file exists and is not such a table.
    """
    rows = _read_names(path) | {(pair.id, hashed(key, "pair", pair.id)) for pair in pairs}
    stream = io.StringIO()
    table = csv.writer(stream, lineterminator="\n")
    table.writerows([_HEADER, *sorted(rows)])
    write_text(path, stream.getvalue(), _OWNER_ONLY)


def _read_names(path: Path) -> set[tuple[str, ...]]:
    if not path.exists():
        return set()
    try:
        header, *rows = csv.reader(io.StringIO(path.read_text(encoding="utf-8")), strict=True)
    except (OSError, ValueError, csv.Error):
        header, rows = [], []
    if header != _HEADER or any(len(row) != len(_HEADER) for row in rows):
        raise FileError(path, "not a name table written by retipair and would be overwritten; name another key file")
    return set(map(tuple, rows))
