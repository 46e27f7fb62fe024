"""Names of pairs, eyes and patients -> keyed hashes, so that what is shared leads back to nobody without the key."""

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
from retipair.runtime.errors import UserError

_OWNER_ALONE = 0o600
_HEADER = ["id", "anonymous"]
_LENGTH = 16  # hex digits: among a million names two are alike once in 37,000,000 keys


def read_key(path: Path) -> bytes:
    """The key in a file, which is made if it is missing. Raises UserError, naming it, for other files."""
    if not path.exists():
        write_text(path, f"{secrets.token_hex(32)}\n", _OWNER_ALONE)
    try:
        text = path.read_text(encoding="ascii").strip()
    except (OSError, ValueError):
        text = ""
    if not re.fullmatch("[0-9a-f]{64}", text):
        raise UserError(f"{path}: no key of ours (64 hex digits); name a file that is not there yet, and it is made")
    return bytes.fromhex(text)


def hashed(key: bytes, kind: str, name: str) -> str:
    """HMAC-SHA256 (RFC 2104) of a name, 16 hex digits: the same for the same key, kind and name."""
    return hmac.new(key, f"{kind}\0{name}".encode(), "sha256").hexdigest()[:_LENGTH]


def anonymous(pair: RawPair, key: bytes) -> RawPair:
    """The same pair under other names; its caption, which somebody wrote to be learnt, stays."""
    return replace(
        pair,
        id=hashed(key, "pair", pair.id),
        eye=hashed(key, "eye", pair.eye) if pair.eye else None,
        patient=hashed(key, "patient", pair.patient) if pair.patient else None,
    )


def write_names(path: Path, key: bytes, pairs: Sequence[RawPair]) -> None:
    """Add pairs to a table of old and new ids, to look one up by; it belongs beside the key, and nowhere else.

    Raises UserError for a file there that is none.
    """
    rows = _read_names(path) | {(pair.id, hashed(key, "pair", pair.id)) for pair in pairs}
    stream = io.StringIO()
    table = csv.writer(stream, lineterminator="\n")
    table.writerows([_HEADER, *sorted(rows)])
    write_text(path, stream.getvalue(), _OWNER_ALONE)


def _read_names(path: Path) -> set[tuple[str, ...]]:
    if not path.exists():
        return set()
    try:
        header, *rows = csv.reader(io.StringIO(path.read_text(encoding="utf-8")), strict=True)
    except (OSError, ValueError, csv.Error):
        header, rows = [], []
    if header != _HEADER or any(len(row) != len(_HEADER) for row in rows):
        raise UserError(f"{path}: no table of names of ours, and would be overwritten; name another key file")
    return set(map(tuple, rows))
