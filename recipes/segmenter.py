"""Train the vessel segmentation network that ships in retipair/vision.

    python recipes/segmenter.py --ship

Takes half an hour on two cores; a GPU is used if available. If killed, the same command resumes the training.
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

TRAIN_EYES, SEED, HELD_OUT_SEED = 240, 4001, 4002
HELD_OUT_EYES, SAVE_EVERY = 32, 200
PATCH_SIZE, BATCH_SIZE = 256, 8


@dataclass(frozen=True)
class Phase:
    """The only phase of the training; see `keeping.Phase`."""

    steps: int = 2000
    learning_rate: float = 2e-3
    decay_fraction: float = 0.7
    warmup_steps: int = 50


PHASE = Phase()
TARGET = "vessels"
"""Name of the target mask: the vessels visible in both views. The finest vessels of an angiogram are not among them."""


@dataclass(frozen=True)
class Dataset:
    """N views with their masks: flat (N, H, W) float16, without shading; mask (valid pixels) and vessels, bool."""

    flat: np.ndarray
    mask: np.ndarray
    vessels: np.ndarray


def load_or_render(folder: Path, amount: int, seed: int) -> Dataset:
    """Load both views of `amount` eyes, each with a random camera of the base; render the missing ones."""
    phantom(PhantomConfig(out=folder, amount=amount, seed=seed))
    views = [view for entry in read_dataset(folder) for view in _load_views(folder, entry)]
    return Dataset(*(np.stack(arrays) for arrays in zip(*views, strict=True)))


def _load_views(folder: Path, entry: PairRecord) -> list[tuple[np.ndarray, np.ndarray, np.ndarray]]:
    pair = load_pair(entry)
    target = np.asarray(Image.open(folder / "truth" / entry.id / f"{TARGET}.png")) > 0
    return [(flattened(view, pair.mask).astype(np.float16), pair.mask, target) for view in (pair.cf, pair.fa)]


def draw_batch(dataset: Dataset, step: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Draw augmented patches of views, masks and vessels, as a function of the step: 3 x (B, 1, size, size)."""
    rng = np.random.default_rng([SEED, step])
    patches = [_draw_patch(dataset, rng) for _ in range(BATCH_SIZE)]
    flat, mask, vessels = (torch.stack(tensors)[:, None] for tensors in zip(*patches, strict=True))
    return flat, mask, vessels


def _draw_patch(dataset: Dataset, rng: np.random.Generator) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    index, rotation, flip = rng.integers(len(dataset.flat)), rng.integers(4), rng.random() < 0.5
    y, x = rng.integers(0, dataset.flat.shape[1] - PATCH_SIZE + 1, 2)
    arrays = (
        array[index, y : y + PATCH_SIZE, x : x + PATCH_SIZE] for array in (dataset.flat, dataset.mask, dataset.vessels)
    )
    flat, mask, vessels = (
        torch.from_numpy(np.rot90(array[:, ::-1] if flip else array, rotation).astype(np.float32)) for array in arrays
    )
    return _augment(flat, rng) * mask, mask, vessels


def _augment(flat: torch.Tensor, rng: np.random.Generator) -> torch.Tensor:
    """Imitate other cameras: random blur, noise and contrast."""
    if rng.random() < 0.3:
        sigma = rng.uniform(0.3, 1.0)
        weights = torch.exp(-0.5 * (torch.arange(-3, 4) / sigma) ** 2)
        kernel = torch.outer(weights, weights) / weights.sum() ** 2
        flat = F.conv2d(flat[None, None], kernel[None, None], padding=3)[0, 0]
    if rng.random() < 0.3:
        noise = torch.from_numpy(rng.normal(0, rng.uniform(0, 0.4), flat.shape).astype(np.float32))
        flat = flat + noise
    return flat * float(rng.uniform(0.8, 1.25))


def compute_loss(logits: torch.Tensor, mask: torch.Tensor, vessels: torch.Tensor) -> torch.Tensor:
    """Return cross-entropy + (1 - soft Dice) inside the mask (Milletari et al. 2016, arXiv 1606.04797)."""
    entropy = (F.binary_cross_entropy_with_logits(logits, vessels, reduction="none") * mask).sum() / mask.sum()
    probability = torch.sigmoid(logits) * mask
    numerator = 2 * (probability * vessels).sum() + 1
    return entropy + 1 - numerator / (probability.sum() + (vessels * mask).sum() + 1)


@torch.no_grad()
def evaluate(segmenter: Segmenter, dataset: Dataset, device: str) -> dict[str, float]:
    """Return the mean Dice with the true vessels by view, without the rim of the field."""
    scores: dict[str, list[float]] = {"cf": [], "fa": []}
    for number, (flat, mask, vessels) in enumerate(zip(dataset.flat, dataset.mask, dataset.vessels, strict=True)):
        inside = inside_rim(mask)
        logits = segmenter(torch.from_numpy(flat.astype(np.float32))[None, None].to(device))[0, 0].cpu().numpy()
        scores["fa" if number % 2 else "cf"].append(dice((logits > 0) & inside, vessels & inside))
    return {view: float(np.mean(values)) for view, values in scores.items()}


def train(work: Path, device: str) -> Segmenter:
    """Train the network or resume, with state and log in `work`; return it with averaged weights."""
    work.mkdir(parents=True, exist_ok=True)
    dataset = load_or_render(work / "eyes", TRAIN_EYES, SEED)
    held_out = load_or_render(work / "held_out", HELD_OUT_EYES, HELD_OUT_SEED)
    torch.manual_seed(SEED)
    segmenter = Segmenter().to(device).to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    training = Training(segmenter, work / "segmenter.pt", 1e-2, 0.995)
    while training.step < PHASE.steps:
        flat, mask, vessels = (tensor.to(device) for tensor in draw_batch(dataset, training.step))
        with torch.autocast(device, dtype=torch.bfloat16):
            logits = segmenter(flat.contiguous(memory_format=torch.channels_last))
        loss = compute_loss(logits.float(), mask, vessels)
        training.update(loss, learning_rate(PHASE, training.step))
        if training.step % SAVE_EVERY == 0 or training.step == PHASE.steps:
            training.save()
            training.log(loss=float(loss), **evaluate(averaged_model(training, device), held_out, device))
    return averaged_model(training, device)


def averaged_model(training: Training, device: str) -> Segmenter:
    segmenter = Segmenter().to(device)
    segmenter.load_state_dict(training.averaged)
    return segmenter.eval()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--out", type=Path, default=Path("results/recipes/segmenter"), help="folder for the training state and results"
    )
    parser.add_argument("--ship", action="store_true", help="write the weights into the package")
    args = parser.parse_args()
    segmenter = train(args.out, "cuda" if torch.cuda.is_available() else "cpu")
    weights = {name: tensor.half().contiguous().cpu() for name, tensor in segmenter.state_dict().items()}
    path = segmentation.WEIGHTS if args.ship else args.out / segmentation.WEIGHTS.name
    settings = {
        "steps": PHASE.steps,
        "rate": PHASE.learning_rate,
        "falling": PHASE.decay_fraction,
        "warmup": PHASE.warmup_steps,
    }
    save_file(weights, path, metadata={"recipe": "recipes/segmenter.py", "training": json.dumps(settings)})
    print(f"{path}: {path.stat().st_size / 1e6:.2f} MB")


if __name__ == "__main__":
    main()
