"""The network that says which pixels are vessels: what ships in retipair/vision.

    python recipes/segmenter.py --ship

Half an hour on two cores; a GPU is used where there is one. Killed and started again it goes on.
"""

import argparse
import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from keeping import Training, learning_rate
from PIL import Image
from safetensors.torch import save_file
from torch.nn import functional as F

from retipair.config import PhantomConfig
from retipair.data.dataset import PairRecord, load_pair, read_dataset
from retipair.metrics.consistency import dice
from retipair.phantoms.phantom import phantom
from retipair.vision import segmentation
from retipair.vision.ridges import flattened, inside_rim
from retipair.vision.segmentation import Segmenter

EYES, SEED, HELD_OUT_SEED = 240, 4001, 4002
HELD_OUT, KEPT_EVERY = 32, 200
CROP, BATCH = 256, 8


@dataclass(frozen=True)
class Steps:
    """The whole training is one phase."""

    steps: int = 2000
    rate: float = 2e-3
    falling: float = 0.7
    warmup: int = 50


PHASE = Steps()
TRUTH = "vessels"
"""What both views show: of a pair's views the same is asked, and an angiogram's finest vessels are another matter."""


@dataclass(frozen=True)
class Lessons:
    """Views without their shading (N, H, W) float16, what of each is valid and what is vessel (N, H, W) bool."""

    flat: np.ndarray
    mask: np.ndarray
    vessels: np.ndarray


def eyes(folder: Path, amount: int, seed: int) -> Lessons:
    """Both views of rendered eyes of every camera; what is drawn already is kept."""
    phantom(PhantomConfig(out=folder, amount=amount, seed=seed))
    views = [view for entry in read_dataset(folder) for view in views_of(folder, entry)]
    return Lessons(*(np.stack(parts) for parts in zip(*views, strict=True)))


def views_of(folder: Path, entry: PairRecord) -> list[tuple[np.ndarray, np.ndarray, np.ndarray]]:
    pair = load_pair(entry)
    true = np.asarray(Image.open(folder / "truth" / entry.id / f"{TRUTH}.png")) > 0
    return [(flattened(view, pair.mask).astype(np.float16), pair.mask, true) for view in (pair.cf, pair.fa)]


def batch(lessons: Lessons, step: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """A function of the step alone: (B, 1, CROP, CROP) of each part; turned, mirrored, scaled and spoilt at random."""
    rng = np.random.default_rng([SEED, step])
    parts = [_crop(lessons, rng) for _ in range(BATCH)]
    flat, mask, vessels = (torch.stack(one)[:, None] for one in zip(*parts, strict=True))
    return flat, mask, vessels


def _crop(lessons: Lessons, rng: np.random.Generator) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    index, turns, mirrored = rng.integers(len(lessons.flat)), rng.integers(4), rng.random() < 0.5
    y, x = rng.integers(0, lessons.flat.shape[1] - CROP + 1, 2)
    arrays = (one[index, y : y + CROP, x : x + CROP] for one in (lessons.flat, lessons.mask, lessons.vessels))
    flat, mask, vessels = (
        torch.from_numpy(np.rot90(one[:, ::-1] if mirrored else one, turns).astype(np.float32)) for one in arrays
    )
    return _spoilt(flat, rng) * mask, mask, vessels


def _spoilt(flat: torch.Tensor, rng: np.random.Generator) -> torch.Tensor:
    """As other cameras would have it: softer or noisier, flatter or harder."""
    if rng.random() < 0.3:
        sigma = rng.uniform(0.3, 1.0)
        weights = torch.exp(-0.5 * (torch.arange(-3, 4) / sigma) ** 2)
        kernel = torch.outer(weights, weights) / weights.sum() ** 2
        flat = F.conv2d(flat[None, None], kernel[None, None], padding=3)[0, 0]
    if rng.random() < 0.3:
        noise = torch.from_numpy(rng.normal(0, rng.uniform(0, 0.4), flat.shape).astype(np.float32))
        flat = flat + noise
    return flat * float(rng.uniform(0.8, 1.25))


def loss_of(logits: torch.Tensor, mask: torch.Tensor, vessels: torch.Tensor) -> torch.Tensor:
    """Cross-entropy, and one minus soft Dice (Milletari et al. 2016, arXiv 1606.04797), within the mask."""
    entropy = (F.binary_cross_entropy_with_logits(logits, vessels, reduction="none") * mask).sum() / mask.sum()
    likely = torch.sigmoid(logits) * mask
    both = 2 * (likely * vessels).sum() + 1
    return entropy + 1 - both / (likely.sum() + (vessels * mask).sum() + 1)


@torch.no_grad()
def judged(segmenter: Segmenter, lessons: Lessons, device: str) -> dict[str, float]:
    """Mean Dice with the truth, inside the field's rim, by view."""
    found: dict[str, list[float]] = {"cf": [], "fa": []}
    for number, (flat, mask, vessels) in enumerate(zip(lessons.flat, lessons.mask, lessons.vessels, strict=True)):
        inside = inside_rim(mask)
        logits = segmenter(torch.from_numpy(flat.astype(np.float32))[None, None].to(device))[0, 0].cpu().numpy()
        found["fa" if number % 2 else "cf"].append(dice((logits > 0) & inside, vessels & inside))
    return {name: float(np.mean(values)) for name, values in found.items()}


def train(work: Path, device: str) -> Segmenter:
    """The averaged weights; state and log lie in `work`."""
    work.mkdir(parents=True, exist_ok=True)
    lessons, held_out = eyes(work / "eyes", EYES, SEED), eyes(work / "held_out", HELD_OUT, HELD_OUT_SEED)
    torch.manual_seed(SEED)
    segmenter = Segmenter().to(device).to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    training = Training(segmenter, work / "segmenter.pt", 1e-2, 0.995)
    while training.step < PHASE.steps:
        flat, mask, vessels = (one.to(device) for one in batch(lessons, training.step))
        with torch.autocast(device, dtype=torch.bfloat16):
            logits = segmenter(flat.contiguous(memory_format=torch.channels_last))
        loss = loss_of(logits.float(), mask, vessels)
        training.update(loss, learning_rate(PHASE, training.step))
        if training.step % KEPT_EVERY == 0 or training.step == PHASE.steps:
            training.save()
            training.log(loss=float(loss), **judged(averaged(training, device), held_out, device))
    return averaged(training, device)


def averaged(training: Training, device: str) -> Segmenter:
    segmenter = Segmenter().to(device)
    segmenter.load_state_dict(training.averaged)
    return segmenter.eval()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--out", type=Path, default=Path("results/recipes/segmenter"), help="where state and result lie"
    )
    parser.add_argument("--ship", action="store_true", help="put the weights into the package")
    args = parser.parse_args()
    segmenter = train(args.out, "cuda" if torch.cuda.is_available() else "cpu")
    weights = {name: tensor.half().contiguous().cpu() for name, tensor in segmenter.state_dict().items()}
    path = segmentation.WEIGHTS if args.ship else args.out / segmentation.WEIGHTS.name
    save_file(weights, path, metadata={"recipe": "recipes/segmenter.py", "training": json.dumps(vars(PHASE))})
    print(f"{path}: {path.stat().st_size / 1e6:.2f} MB")


if __name__ == "__main__":
    main()
