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
_AT_ONCE = 8


@dataclass(frozen=True)
class Latents:
    """values (N, C, h, w) float16, scaled; captions: N of them."""

    values: np.ndarray
    captions: list[str]


def fill(folder: Path, count: int, eyes: bank.Bank, vae: AutoencoderKL, layout: str, device: str) -> Latents:
    """The first `count` photographs' latents in `folder`; encodes what is not there yet, in parts that are kept."""
    folder.mkdir(parents=True, exist_ok=True)
    parts = [folder / f"{start:06d}.pt" for start in range(0, count, 500)]
    for number, path in enumerate(parts):
        if not path.exists():
            keeping.save(path, _encoded(number, 500, eyes, vae, layout, device))
            print(f"latents: {500 * (number + 1)} of {count}", flush=True)
    loaded = [keeping.load(path) for path in parts]
    values = np.concatenate([part["values"].numpy() for part in loaded])[:count]
    return Latents(values, [text for part in loaded for text in json.loads(part["captions"])][:count])


@torch.no_grad()
def _encoded(number: int, count: int, eyes: bank.Bank, vae: AutoencoderKL, layout: str, device: str) -> dict:
    values, captions = [], []
    for start in range(0, count, _AT_ONCE):
        images, some = bank.photographs(
            eyes, min(_AT_ONCE, count - start), SEED, number * count + start, device
        )
        if layout == "squeezed":
            images = squeezed(images)
        with torch.autocast(torch.device(device).type, torch.bfloat16):
            mean = vae.encode(images).latent_dist.mean
        values.append((mean.float() * vae.config.scaling_factor).half().cpu())
        captions += some
    return {"values": torch.cat(values), "captions": json.dumps(captions)}


def squeezed(joint: torch.Tensor) -> torch.Tensor:
    """(B, 3, S, 2S) -> (B, 3, S, S): each half bilinearly to half its width, as the layout does it."""
    layout = Layout("squeezed", joint.shape[2])
    images = ((joint + 1) * 127.5).round().byte().permute(0, 2, 3, 1).cpu().numpy()
    halves = [layout.join(one[:, : joint.shape[2]], one[:, joint.shape[2] :, 0]) for one in images]
    stacked = torch.from_numpy(np.stack(halves)).permute(0, 3, 1, 2).float() / 127.5 - 1
    return stacked.to(joint.device)
