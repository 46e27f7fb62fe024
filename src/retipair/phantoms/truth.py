"""Render, write and read the ground truth of a pair: label images and numbers."""

import json
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import torch

from retipair.phantoms.anatomy import Eye
from retipair.phantoms.lesions import LESION_KINDS
from retipair.phantoms.maps import CHANNELS, DISC_ASPECT, Frame, vessel_mask
from retipair.phantoms.vessels import FA_ONLY, SEEN_BY_BOTH
from retipair.runtime.atomic_io import write_text
from retipair.runtime.errors import DamagedError, FileError
from retipair.runtime.schema import from_values

TRUTH_NAME = "truth.json"
TRUTH_SCHEMA = "retipair.phantom-truth/1"
LAYERS = ("vessels", "arteries_veins", "fine", "disc", "lesions", "field")
"""Names of the label images next to truth.json, {layer}.png."""
ARTERY, VEIN, CROSSING = 1, 2, 3
"""Labels in arteries_veins.png."""

_COVERED = {"leakage": float(np.exp(-2))}  # leakage has no edge; this is its brightness at its radius


@dataclass(frozen=True, kw_only=True)
class Truth:
    """The content of truth.json: one rendered pair. Positions are (x, y) px in the CF, pixel centres at integers.

    `eye`: number of the pair, from 1; with `seed` and the settings it determines everything else. `phase` of the dye: 0
    arterial, 1 late. `disc_radii`: horizontal and vertical. `fa_to_cf` (3x3): the true homography. `wrong_points`:
    indices, from 0, of the points in the files that are gross errors. A lesion: kind, x, y, radius. `source_sha256`:
    hash of seed, number and settings. `files_sha256`: hashes of views, points and label images, by path.
    """

    id: str
    eye: int
    seed: int
    side: str
    disease: str
    camera: str
    phase: float
    disc: list[float]
    disc_radii: list[float]
    fovea: list[float]
    fa_to_cf: list[list[float]]
    wrong_points: list[int]
    lesions: list[dict[str, str | float]]
    consistency: float | None
    source_sha256: str
    files_sha256: dict[str, str]
    schema: str = TRUTH_SCHEMA


def write_truth(path: Path, truth: Truth) -> None:
    """Write truth.json atomically; create its folder."""
    values = asdict(truth)
    ordered = {"schema": values.pop("schema"), **values}
    lines = (f"  {json.dumps(key)}: {json.dumps(value, allow_nan=False)}" for key, value in ordered.items())
    text = "{\n" + ",\n".join(lines) + "\n}\n"
    write_text(path, text)


def read_truth(path: Path) -> Truth:
    """Read a truth.json that `write_truth` wrote. Raises UserError if it is invalid."""
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise DamagedError(path, f"cannot be read ({error}); run `retipair phantom` again") from None
    truth = from_values(Truth, values, str(path), "run `retipair phantom` again")
    if truth.schema != TRUTH_SCHEMA:
        raise FileError(path, "written by another version of retipair; run `retipair phantom` again")
    return truth


def draw_layers(eye: Eye, maps: torch.Tensor, frame: Frame, field: np.ndarray) -> dict[str, np.ndarray]:
    """Render the LAYERS, (size, size) uint8 each, 0 outside the field (size, size) bool.

    maps (C, size, size): those of the eye in `frame`. Masks are 0 and 255. arteries_veins: ARTERY, VEIN or CROSSING.
    lesions: 1 + the index of the kind in LESION_KINDS; where two kinds overlap, the first.
    """
    artery, vein = (vessel_mask(tree, SEEN_BY_BOTH, frame) for tree in (eye.arteries, eye.veins))
    fine = vessel_mask(eye.arteries, FA_ONLY, frame) | vessel_mask(eye.veins, FA_ONLY, frame)
    disc = maps[CHANNELS.index("disc")].numpy() > 0.5
    masks = {"vessels": artery | vein, "fine": fine & ~artery & ~vein, "disc": disc, "field": field}
    labels = {"arteries_veins": ARTERY * artery + VEIN * vein, "lesions": _lesion_kinds(eye, maps, frame)}
    layers = {name: mask * np.uint8(255) for name, mask in masks.items()} | labels
    return {name: layers[name].astype(np.uint8) * field for name in LAYERS}


def _lesion_kinds(eye: Eye, maps: torch.Tensor, frame: Frame) -> np.ndarray:
    kinds = np.zeros((frame.size, frame.size), dtype=np.uint8)
    for number, kind in reversed([*enumerate(LESION_KINDS, start=1)]):
        kinds[maps[CHANNELS.index(kind)].numpy() > _COVERED.get(kind, 0.5)] = number
        # Label the centres too, so that lesions smaller than a pixel are labelled.
        columns, rows = np.rint(frame.pixels(_centres(eye, kind))).astype(int).T
        inside = (columns >= 0) & (rows >= 0) & (columns < frame.size) & (rows < frame.size)
        kinds[rows[inside], columns[inside]] = number
    return kinds


def _centres(eye: Eye, kind: str) -> np.ndarray:
    return np.array([(lesion.x, lesion.y) for lesion in eye.lesions if lesion.kind == kind]).reshape(-1, 2)


def places(eye: Eye, frame: Frame) -> tuple[list[float], list[float], list[float]]:
    """Return disc, disc_radii and fovea of truth.json."""
    disc, fovea = frame.pixels(np.array([eye.disc, (0.0, 0.0)])).round(3).tolist()
    radius = eye.disc_radius * frame.px_per_mm
    return disc, [round(radius / DISC_ASPECT**0.5, 3), round(radius * DISC_ASPECT**0.5, 3)], fovea


def seen_lesions(eye: Eye, frame: Frame, field: np.ndarray) -> list[dict[str, str | float]]:
    """Return the lesions whose centre lies in the field (size, size) bool, as in truth.json."""
    listed: list[dict[str, str | float]] = []
    for lesion in eye.lesions:
        x, y = frame.pixels(np.array([[lesion.x, lesion.y]]))[0]
        column, row = round(x), round(y)
        if 0 <= column < frame.size and 0 <= row < frame.size and field[row, column]:
            radius = lesion.radius * frame.px_per_mm
            listed.append({"kind": lesion.kind, "x": round(x, 3), "y": round(y, 3), "radius": round(radius, 3)})
    return listed
