"""Eyes for training and evaluation: their maps are computed once, photographs of them are rendered when needed.

Each eye is a function of its number. Eyes from number FIRST_HELD_OUT on are not used for training. If a run is
interrupted, the next one computes the missing eyes.
"""

from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from retipair.phantoms.anatomy import draw_eye
from retipair.phantoms.cameras import BASE_CAMERAS, CAMERAS, draw_look
from retipair.phantoms.imaging import photograph
from retipair.phantoms.lesions import Disease
from retipair.phantoms.maps import CHANNELS, FIELD, draw_maps, frame_of

VIEW = 256
MARGIN = 12  # px on each side, for random shifts
MAP_SIZE = VIEW + 2 * MARGIN
TRAIN_EYES, FIRST_HELD_OUT = 2000, 1_000_000
_VISIBLE_THICKNESS = 0.03
"""Minimum thickness of a visible vessel, relative to the widest vessel."""
BASE_DISEASES: tuple[Disease, ...] = ("healthy", "diabetic")


@dataclass(frozen=True)
class EyeMaps:
    """Maps of N eyes: maps (N, channels, MAP_SIZE, MAP_SIZE) uint8, memory-mapped; diabetic (N,) bool."""

    maps: np.ndarray
    diabetic: np.ndarray


def train_eyes(work: Path, workers: int) -> EyeMaps:
    return load_or_draw(work / "bank", range(TRAIN_EYES), workers)


def held_out_eyes(work: Path, workers: int) -> EyeMaps:
    return load_or_draw(work / "held_out", range(FIRST_HELD_OUT, FIRST_HELD_OUT + 64), workers)


def draw_eye_maps(number: int) -> tuple[np.ndarray, bool]:
    """Return the maps (channels, MAP_SIZE, MAP_SIZE) uint8 of an eye, and whether it is diabetic."""
    torch.set_num_threads(1)
    rng = np.random.default_rng([number, 7])
    disease = BASE_DISEASES[int(rng.random() < 0.5)]
    eye = draw_eye(rng, disease)
    maps = draw_maps(eye, frame_of(eye, MAP_SIZE, FIELD * MAP_SIZE / VIEW))
    return (maps * 255).round().byte().numpy(), disease == "diabetic"


def load_or_draw(folder: Path, numbers: Sequence[int], workers: int) -> EyeMaps:
    """Load the maps of these eyes from `folder`; compute the missing ones."""
    folder.mkdir(parents=True, exist_ok=True)
    done_path, maps_path = folder / "done.npy", folder / "maps.npy"
    shape = (len(numbers), len(CHANNELS), MAP_SIZE, MAP_SIZE)
    new = not maps_path.exists()
    maps = np.lib.format.open_memmap(maps_path, "w+" if new else "r+", np.uint8, shape if new else None)
    assert maps.shape == shape, f"{maps_path} has shape {maps.shape} instead of {shape}; choose another --out"
    done = np.load(done_path) if done_path.exists() else np.full(len(numbers), -1, dtype=np.int8)
    missing = np.flatnonzero(done < 0)  # done: 1 diabetic, 0 healthy, -1 missing
    with ProcessPoolExecutor(workers) as pool:
        results = pool.map(draw_eye_maps, [numbers[i] for i in missing], chunksize=4)
        for count, (index, (values, diabetic)) in enumerate(zip(missing, results, strict=True), start=1):
            maps[index], done[index] = values, diabetic
            if count % 100 == 0 or count == len(missing):
                maps.flush()
                np.save(done_path, done)
                print(f"eyes: {count} of {len(missing)}", flush=True)
    return EyeMaps(np.load(maps_path, mmap_mode="r"), done.astype(bool))


@dataclass(frozen=True)
class Photographs:
    """Photographs of B pairs, as joint images.

    joint: (B, 3, VIEW, 2 VIEW) in [-1, 1]. clean: the same without sensor noise. vessels: (B, 1, VIEW, 2 VIEW), 1 where
    the view can show a vessel, else 0.
    """

    joint: torch.Tensor
    clean: torch.Tensor
    vessels: torch.Tensor
    captions: list[str]


def render_photographs(
    eyes: EyeMaps, count: int, seed: int, step: int, device: torch.device | str = "cpu"
) -> Photographs:
    """Photograph `count` random eyes, as a function of (seed, step)."""
    rng = np.random.default_rng([seed, step])
    indices = rng.integers(len(eyes.maps), size=count)
    shifts = rng.integers(0, 2 * MARGIN + 1, (count, 2))
    flips = rng.random(count) < 0.5
    cameras = rng.choice(BASE_CAMERAS, count)
    looks = [draw_look(rng, CAMERAS[camera]) for camera in cameras]
    crops = [
        eyes.maps[index, :, y : y + VIEW, x : x + VIEW][..., :: -1 if flip else 1].copy()
        for index, (y, x), flip in zip(indices, shifts, flips, strict=True)
    ]
    maps = torch.from_numpy(np.stack(crops)).to(device).float() / 255
    generators = [torch.Generator().manual_seed(int(number)) for number in rng.integers(2**62, size=count)]
    views = photograph(maps, looks, generators)
    captions = [caption(camera, bool(eyes.diabetic[i])) for camera, i in zip(cameras, indices, strict=True)]
    joint, clean = _join(views.cf, views.fa), _join(views.clean_cf, views.clean_fa)
    return Photographs(joint, clean, _visible_vessels(maps), captions)


def _join(cf: torch.Tensor, fa: torch.Tensor) -> torch.Tensor:
    return torch.cat([cf, fa.expand_as(cf)], dim=-1) * 2 - 1


def _visible_vessels(maps: torch.Tensor) -> torch.Tensor:
    """Return the vessels of both views side by side; the finest vessels are visible only in the FA."""
    artery, vein, fine = (maps[:, CHANNELS.index(name)][:, None] for name in ("artery", "vein", "fine"))
    in_cf = torch.maximum(artery, vein)
    return (torch.cat([in_cf, torch.maximum(in_cf, fine)], dim=-1) > _VISIBLE_THICKNESS).float()


def caption(camera: str, diabetic: bool) -> str:
    return f"{'diabetic' if diabetic else 'healthy'} eye, {camera} camera"
