"""Latents of phantoms, written once and drawn from ever after: encoding in every step would double its time."""

import json
from dataclasses import dataclass
from pathlib import Path

import bank
import keeping
import numpy as np
import torch
from diffusers import AutoencoderKL

from retipair.data.layout import Layout

SEED = 23
_AT_ONCE, _PART = 8, 400


@dataclass(frozen=True)
class Latents:
    """values: (N, C, h, w) float16, scaled; captions: N of them."""

    values: np.ndarray
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
    values = np.concatenate([part["values"].numpy() for part in parts])[:count]
    return Latents(values, [text for part in parts for text in json.loads(part["captions"])][:count])


@torch.no_grad()
def _encoded(number: int, eyes: bank.Bank, vae: AutoencoderKL, layout: str, device: str) -> dict[str, object]:
    values, captions = [], []
    for start in range(number * _PART, (number + 1) * _PART, _AT_ONCE):
        seen = bank.photographs(eyes, _AT_ONCE, SEED, start, device)
        captions += seen.captions
        joint = squeezed(seen.joint) if layout == "squeezed" else seen.joint
        mean = vae.encode(joint).latent_dist.mean  # in float32: in bfloat16 the finest directions drown in rounding
        values.append((mean * vae.config.scaling_factor).half().cpu())
    return {"values": torch.cat(values), "captions": json.dumps(captions)}


def squeezed(joint: torch.Tensor) -> torch.Tensor:
    """(B, 3, S, 2S) -> (B, 3, S, S): each half bilinearly to half its width, as the layout does it."""
    size = joint.shape[2]
    layout = Layout("squeezed", size)
    images = ((joint + 1) * 127.5).round().byte().permute(0, 2, 3, 1).cpu().numpy()
    joined = np.stack([layout.join(one[:, :size], one[:, size:, 0]) for one in images])
    return (torch.from_numpy(joined).permute(0, 3, 1, 2).float() / 127.5 - 1).to(joint.device)
