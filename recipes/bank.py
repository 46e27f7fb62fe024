"""A bank of eyes: geometries drawn once, photographed for ever. What the bundled bases learn from.

Every eye is a function of its number alone; eyes from HELD_OUT on are never trained on. A killed run goes on.
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
MARGIN = 12  # px on every side, so that the field can be shifted
SIDE = VIEW + 2 * MARGIN
EYES, HELD_OUT = 2000, 1_000_000
_VISIBLE = 0.03
"""Of the widest vessel's thickness."""
BASE_DISEASES: tuple[Disease, ...] = ("healthy", "diabetic")


@dataclass(frozen=True)
class Bank:
    """maps: (eyes, channels, SIDE, SIDE) uint8, read from the disk as needed; diseased (eyes,) bool."""

    maps: np.ndarray
    diseased: np.ndarray


def train_eyes(work: Path, workers: int) -> Bank:
    return fill(work / "bank", range(EYES), workers)


def held_out_eyes(work: Path, workers: int) -> Bank:
    return fill(work / "held_out", range(HELD_OUT, HELD_OUT + 64), workers)


def draw_geometry(number: int) -> tuple[np.ndarray, bool]:
    """Eye `number` of the bank: its maps (channels, SIDE, SIDE) uint8, and whether it is diabetic."""
    torch.set_num_threads(1)
    rng = np.random.default_rng([number, 7])
    disease = BASE_DISEASES[int(rng.random() < 0.5)]
    eye = draw_eye(rng, disease)
    maps = draw_maps(eye, frame_of(eye, SIDE, FIELD * SIDE / VIEW))
    return (maps * 255).round().byte().numpy(), disease == "diabetic"


def fill(folder: Path, numbers: Sequence[int], workers: int) -> Bank:
    """The bank of these eyes in `folder`; draws what is not there yet."""
    folder.mkdir(parents=True, exist_ok=True)
    done_path, maps_path = folder / "done.npy", folder / "maps.npy"
    shape = (len(numbers), len(CHANNELS), SIDE, SIDE)
    fresh = not maps_path.exists()
    maps = np.lib.format.open_memmap(maps_path, "w+" if fresh else "r+", np.uint8, shape if fresh else None)
    assert maps.shape == shape, f"{maps_path} holds {maps.shape[0]} eyes; give another folder"
    done = np.load(done_path) if done_path.exists() else np.full(len(numbers), -1, dtype=np.int8)
    missing = np.flatnonzero(done < 0)
    with ProcessPoolExecutor(workers) as pool:
        drawn = pool.map(draw_geometry, [numbers[i] for i in missing], chunksize=4)
        for count, (index, (values, diseased)) in enumerate(zip(missing, drawn, strict=True), start=1):
            maps[index], done[index] = values, diseased
            if count % 100 == 0 or count == len(missing):
                maps.flush()
                np.save(done_path, done)
                print(f"eyes: {count} of {len(missing)}", flush=True)
    return Bank(np.load(maps_path, mmap_mode="r"), done.astype(bool))


@dataclass(frozen=True)
class Photographs:
    """joint, and clean: the same without a sensor's noise, (B, 3, VIEW, 2 VIEW) in [-1, 1].

    vessels (B, 1, VIEW, 2 VIEW): 1 where a half may show one, else 0.
    """

    joint: torch.Tensor
    clean: torch.Tensor
    vessels: torch.Tensor
    captions: list[str]


def photographs(bank: Bank, count: int, seed: int, step: int, device: torch.device | str = "cpu") -> Photographs:
    """A function of (seed, step) alone."""
    rng = np.random.default_rng([seed, step])
    chosen = rng.integers(len(bank.maps), size=count)
    shifts = rng.integers(0, 2 * MARGIN + 1, (count, 2))
    flips = rng.random(count) < 0.5
    names = rng.choice(BASE_CAMERAS, count)
    looks = [draw_look(rng, CAMERAS[name]) for name in names]
    crops = [
        bank.maps[eye, :, y : y + VIEW, x : x + VIEW][..., :: -1 if flip else 1].copy()
        for eye, (y, x), flip in zip(chosen, shifts, flips, strict=True)
    ]
    maps = torch.from_numpy(np.stack(crops)).to(device).float() / 255
    generators = [torch.Generator().manual_seed(int(one)) for one in rng.integers(2**62, size=count)]
    seen = photograph(maps, looks, generators)
    captions = [caption(name, bool(bank.diseased[eye])) for name, eye in zip(names, chosen, strict=True)]
    return Photographs(_joint(seen.cf, seen.fa), _joint(seen.clean_cf, seen.clean_fa), _vessels(maps), captions)


def _joint(cf: torch.Tensor, fa: torch.Tensor) -> torch.Tensor:
    return torch.cat([cf, fa.expand_as(cf)], dim=-1) * 2 - 1


def _vessels(maps: torch.Tensor) -> torch.Tensor:
    """Beside each other those that a CF shows, and an FA, which shows the finest too."""
    artery, vein, fine = (maps[:, CHANNELS.index(name)][:, None] for name in ("artery", "vein", "fine"))
    both = torch.maximum(artery, vein)
    return (torch.cat([both, torch.maximum(both, fine)], dim=-1) > _VISIBLE).float()


def caption(camera: str, diseased: bool) -> str:
    return f"{'diabetic' if diseased else 'healthy'} eye, {camera} camera"
