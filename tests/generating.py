"""Run `retipair generate`, and read what it wrote."""

from pathlib import Path

import numpy as np
from PIL import Image

from compare import contents
from retipair.data.manifest import GeneratedPair, read_manifest
from retipair.interfaces.cli import main


def command(results: Path, out: Path, *more: object) -> list[str]:
    """Generate four pairs in two steps from run "exp"."""
    flags = ["-n", "exp", "--results", results, "--out", out, "--amount", 4, "--steps", 2, *more]
    return [str(part) for part in ("generate", *flags)]


def draw(results: Path, out: Path, *more: object) -> Path:
    assert main(command(results, out, *more)) == 0
    return out


def images(folder: Path, index: int) -> dict[str, bytes]:
    return contents(folder / str(index))


def records(folder: Path) -> list[GeneratedPair]:
    found = list(read_manifest(folder))
    return [record for record in found if isinstance(record, GeneratedPair)]


def pixels(path: Path) -> np.ndarray:
    return np.asarray(Image.open(path))
