"""Latents of phantoms, written once and drawn from ever after: encoding in every step would double its time."""

import json
from dataclasses import dataclass
from pathlib import Path

import bank
import keeping
import numpy as np
import torch
from diffusers import AutoencoderKL
from torch.nn import functional as F

from retipair.data.layout import Layout

SEED = 23
VIEWS = (128, 256)
"""Low resolution is learnt first: a step there costs a fifth."""
_AT_ONCE, _PART = 8, 400


@dataclass(frozen=True)
class Latents:
    """values: for each view size (N, C, h, w) float16, scaled, of the same photographs; captions: N of them."""

    values: dict[int, np.ndarray]
    captions: list[str]


def fill(folder: Path, count: int, eyes: bank.Bank, vae: AutoencoderKL, layout: str, device: str) -> Latents:
    """The first `count` photographs' latents in `folder`; encodes what is not there yet, in parts that are kept."""
    folder.mkdir(parents=True, exist_ok=True)
    paths = [folder / f"{start:06d}.pt" for start in range(0, count, _PART)]
    for number, path in enumerate(paths):
        if not path.exists():
            keeping.save(path, _encoded(number, eyes, vae, layout, device))
            print(f"latents: {_PART * (number + 1)} of {count}", flush=True)
    parts = [keeping.load(path) for path in paths]
    values = {view: np.concatenate([part[str(view)].numpy() for part in parts])[:count] for view in VIEWS}
    return Latents(values, [text for part in parts for text in json.loads(part["captions"])][:count])


@torch.no_grad()
def _encoded(number: int, eyes: bank.Bank, vae: AutoencoderKL, layout: str, device: str) -> dict[str, object]:
    values: dict[int, list[torch.Tensor]] = {view: [] for view in VIEWS}
    captions = []
    for start in range(number * _PART, (number + 1) * _PART, _AT_ONCE):
        images, some = bank.photographs(eyes, _AT_ONCE, SEED, start, device)
        captions += some
        for view in VIEWS:
            joint = F.avg_pool2d(images, bank.VIEW // view)
            joint = squeezed(joint) if layout == "squeezed" else joint
            with torch.autocast(torch.device(device).type, torch.bfloat16):
                mean = vae.encode(joint).latent_dist.mean
            values[view].append((mean.float() * vae.config.scaling_factor).half().cpu())
    whole = {str(view): torch.cat(parts) for view, parts in values.items()}
    return {**whole, "captions": json.dumps(captions)}


def squeezed(joint: torch.Tensor) -> torch.Tensor:
    """(B, 3, S, 2S) -> (B, 3, S, S): each half bilinearly to half its width, as the layout does it."""
    size = joint.shape[2]
    layout = Layout("squeezed", size)
    images = ((joint + 1) * 127.5).round().byte().permute(0, 2, 3, 1).cpu().numpy()
    joined = np.stack([layout.join(one[:, :size], one[:, size:, 0]) for one in images])
    return (torch.from_numpy(joined).permute(0, 3, 1, 2).float() / 127.5 - 1).to(joint.device)
