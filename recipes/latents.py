"""Encode photographs into latents once and store them; encoding in every training step would double its time."""

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
_BATCH_SIZE, _PER_FILE = 8, 400


@dataclass(frozen=True)
class Latents:
    """Stored latents of N images: values (N, C, h, w) float16, scaled; captions: N texts."""

    values: np.ndarray
    captions: list[str]


def load_or_encode(
    folder: Path, count: int, eyes: bank.EyeMaps, vae: AutoencoderKL, layout: str, device: str
) -> Latents:
    """Load the latents of the first `count` photographs from the files in `folder`; encode the missing ones."""
    folder.mkdir(parents=True, exist_ok=True)
    paths = [folder / f"{start:06d}.pt" for start in range(0, count, _PER_FILE)]
    for number, path in enumerate(paths):
        if not path.exists():
            keeping.save(path, _encode(number, eyes, vae, layout, device))
            print(f"latents: {_PER_FILE * (number + 1)} of {count}", flush=True)
    parts = [keeping.load(path) for path in paths]
    values = np.concatenate([part["values"].numpy() for part in parts])[:count]
    return Latents(values, [text for part in parts for text in json.loads(part["captions"])][:count])


@torch.no_grad()
def _encode(number: int, eyes: bank.EyeMaps, vae: AutoencoderKL, layout: str, device: str) -> dict[str, object]:
    """Return the content of the file with this number."""
    values, captions = [], []
    for start in range(number * _PER_FILE, (number + 1) * _PER_FILE, _BATCH_SIZE):
        photographs = bank.render_photographs(eyes, _BATCH_SIZE, SEED, start, device)
        captions += photographs.captions
        joint = squeeze(photographs.joint) if layout == "squeezed" else photographs.joint
        mean = vae.encode(joint).latent_dist.mean  # fp32: rounding in bfloat16 hides fine directions
        values.append((mean * vae.config.scaling_factor).half().cpu())
    return {"values": torch.cat(values), "captions": json.dumps(captions)}


def squeeze(joint: torch.Tensor) -> torch.Tensor:
    """Resize both halves to half their width, as the squeezed layout does: (B, 3, S, 2S) -> (B, 3, S, S)."""
    size = joint.shape[2]
    layout = Layout("squeezed", size)
    images = ((joint + 1) * 127.5).round().byte().permute(0, 2, 3, 1).cpu().numpy()
    squeezed = np.stack([layout.join(image[:, :size], image[:, size:, 0]) for image in images])
    return (torch.from_numpy(squeezed).permute(0, 3, 1, 2).float() / 127.5 - 1).to(joint.device)
