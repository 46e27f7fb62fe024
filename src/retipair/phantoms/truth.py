"""Render, write and read the ground truth of a synthetic pair: its label images and its truth.json."""

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
"""Names of the label images. They are written as {name}.png next to truth.json."""
ARTERY, VEIN, CROSSING = 1, 2, 3
"""Pixel values in arteries_veins.png. CROSSING marks pixels where an artery and a vein overlap."""

# A lesion is labelled where its map exceeds this value, 0.5 for kinds that are not listed. Leakage has no edge; it
# is labelled up to its radius, where its map has this value.
_LABEL_THRESHOLDS = {"leakage": float(np.exp(-2))}


@dataclass(frozen=True, kw_only=True)
class Truth:
    """The content of truth.json: the ground truth of one rendered pair.

    Positions are (x, y) px in the CF; pixel centres have integer coordinates.

    eye: the number of the pair, from 1. Together with `seed` and the settings, it determines all other fields.
    phase: the phase of the dye, from 0 (arterial) to 1 (late).
    disc, fovea: the centres of the optic disc and of the fovea.
    disc_radii: the horizontal and the vertical radius of the optic disc, px.
    fa_to_cf: the true homography (3, 3) from FA px to CF px.
    wrong_points: the indices, from 0, of the grossly misplaced landmarks in the point files.
    lesions: kind, x, y and radius (px) of each lesion whose centre is in the field of view of the CF.
    consistency: the correlation of the vesselness of both views; None for an unregistered pair.
    source_sha256: the hash of the number of the pair and of the settings that it depends on, including the seed.
    files_sha256: the hashes of views, mask, point files and label images, by path relative to OUT.
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
    """Write a truth.json atomically. Its folder is created if it does not exist."""
    values = asdict(truth)
    ordered = {"schema": values.pop("schema"), **values}
    lines = (f"  {json.dumps(key)}: {json.dumps(value, allow_nan=False)}" for key, value in ordered.items())
    text = "{\n" + ",\n".join(lines) + "\n}\n"
    write_text(path, text)


def read_truth(path: Path) -> Truth:
    """Read a truth.json that `write_truth` wrote. Raises UserError if the file is invalid or has another schema."""
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise DamagedError(path, f"cannot be read ({error}); run `retipair phantom` again") from None
    truth = from_values(Truth, values, str(path), "run `retipair phantom` again")
    if truth.schema != TRUTH_SCHEMA:
        raise FileError(path, "written by another version of retipair; run `retipair phantom` again")
    return truth


def draw_layers(eye: Eye, maps: torch.Tensor, frame: Frame, field: np.ndarray) -> dict[str, np.ndarray]:
    """Render the label images, by the names in LAYERS, (size, size) uint8 each. All are 0 outside the field of view.

    "arteries_veins" has the values ARTERY, VEIN and CROSSING. "lesions" has the value 1 + the index of the kind in
    LESION_KINDS. Where two kinds overlap, the pixel has the value of the kind that LESION_KINDS lists first. The other
    images are masks with the value 255.

    maps: the maps of the eye in `frame`, (C, size, size).
    field: the field of view, (size, size) bool.
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
        kinds[maps[CHANNELS.index(kind)].numpy() > _LABEL_THRESHOLDS.get(kind, 0.5)] = number
        # The pixel at the centre is always labelled, so that lesions smaller than a pixel are not lost.
        columns, rows = np.rint(frame.pixels(_centres(eye, kind))).astype(int).T
        inside = (columns >= 0) & (rows >= 0) & (columns < frame.size) & (rows < frame.size)
        kinds[rows[inside], columns[inside]] = number
    return kinds


def _centres(eye: Eye, kind: str) -> np.ndarray:
    return np.array([(lesion.x, lesion.y) for lesion in eye.lesions if lesion.kind == kind]).reshape(-1, 2)


def places(eye: Eye, frame: Frame) -> tuple[list[float], list[float], list[float]]:
    """Return (disc, disc_radii, fovea), the fields of truth.json with these names."""
    disc, fovea = frame.pixels(np.array([eye.disc, (0.0, 0.0)])).round(3).tolist()
    radius = eye.disc_radius * frame.px_per_mm
    return disc, [round(radius / DISC_ASPECT**0.5, 3), round(radius * DISC_ASPECT**0.5, 3)], fovea


def seen_lesions(eye: Eye, frame: Frame, field: np.ndarray) -> list[dict[str, str | float]]:
    """Return `lesions` of truth.json: the lesions whose centre lies in the field of view `field` (size, size) bool."""
    listed: list[dict[str, str | float]] = []
    for lesion in eye.lesions:
        x, y = frame.pixels(np.array([[lesion.x, lesion.y]]))[0]
        column, row = round(x), round(y)
        if 0 <= column < frame.size and 0 <= row < frame.size and field[row, column]:
            radius = lesion.radius * frame.px_per_mm
            listed.append({"kind": lesion.kind, "x": round(x, 3), "y": round(y, 3), "radius": round(radius, 3)})
    return listed
