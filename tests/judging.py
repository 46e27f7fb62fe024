"""Real and generated pairs to judge, and what evaluate made of them."""

import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from eyes import draw_pair
from retipair.data.augmentation import Variant, apply_variant
from retipair.data.manifest import GeneratedPair, write_manifest
from retipair.data.pair import save_image

SIZE = 128
SPLITS = ["train"] * 5 + ["val"] * 2
COPIED = 1
"""The index of the generated pair that is a training pair in another pose."""
COPY_POSE = Variant(flip_vertical=True, turn_degrees=100, scale=0.9)


def generated_record(index: int) -> GeneratedPair:
    return GeneratedPair(
        **{"id": str(index), "index": index, "seed": 0, "attempt": 0, "mode": "noise", "source_id": None},
        **{"source_eye": None, "strength": None, "prompt": "an eye", "size": SIZE, "base": "tiny-sdxl"},
        cf=f"{index}/cf.png",
        fa=f"{index}/fa.png",
        adapter_sha256="0" * 64,
        settings_sha256="0" * 64,
        fa_chroma=1.5,
        consistency=0.5,
    )


def write_generated(folder: Path, amount: int) -> Path:
    """Drawn eyes that nobody trained on, but for the first, which is one of write_prepared's in another pose."""
    records = [generated_record(index) for index in range(1, amount + 1)]
    for record in records:
        cf, fa = draw_pair(2 if record.index == COPIED else 100 + record.index, SIZE)
        views = apply_variant(cf, fa, COPY_POSE) if record.index == COPIED else (cf, fa)
        for path, view in zip((record.cf, record.fa), views, strict=True):
            save_image(folder / path, np.ascontiguousarray(view))
    write_manifest(folder, records)
    return folder


def write_run(folder: Path) -> None:
    """What evaluate reads of a run, its curves, and the folder of an adapter within it."""
    training = [
        {"kind": "training", "step": step, "mse_cf": 1 / step, "mse_fa": 2 / step, "seconds": spent, "memory_gib": 2.5}
        for step, spent in ((1, 1.0), (2, 3.0), (3, 20.0), (4, 22.0))  # a validation after the second
    ]
    validation = [{"kind": "validation", "step": step, "loss": 0.5, "t200_cf": 0.5, "t200_fa": 0.6} for step in (0, 4)]
    (folder / "best_checkpoint").mkdir(parents=True)
    settings = {"name": "exp", "batch_size": 2}
    (folder / "config.json").write_text(json.dumps({"settings": settings, "memory_way": "no memory savings"}))
    (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in training + validation))
    for step in (0, 4):
        samples = folder / f"step_{step:06d}_random_pairs/pair_00"
        save_image(samples / "cf.png", np.full((64, 64, 3), 60 + step, np.uint8))
        save_image(samples / "fa.png", np.full((64, 64), 90 + step, np.uint8))


def write_image_model(folder: Path) -> None:
    """A DINOv2, as transformers saves one, small and with random weights."""
    from transformers import Dinov2Config, Dinov2Model  # after diffusers, or both chatter of torchvision

    small = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "mlp_ratio": 2}
    torch.manual_seed(0)
    Dinov2Model(Dinov2Config(image_size=56, patch_size=14, **small)).save_pretrained(folder)


@dataclass(frozen=True)
class Evaluated:
    """Both folders, what evaluate left, and the command that did."""

    real: Path
    generated: Path
    out: Path
    command: list[str]
