"""Evaluate the results of the recipes, on phantoms that were not used for training.

    python recipes/judge.py autoencoder
    python recipes/judge.py tiny-sdxl --demo demo --out results/recipes

The first command compares decoded images with the originals: PSNR, and Dice of the vessels. The second needs the
results of `retipair demo demo`. It generates pairs with the base alone and with the demo's adapter. It measures whether
both views show the same vessels, and how close the pairs are to photographs of the demo's camera.
"""

import argparse
import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import bank
import numpy as np
import torch
from diffusers import AutoencoderKL
from PIL import Image

from retipair.config import DEFAULT_PROMPT, DemoConfig, GenerateConfig, PrepareConfig
from retipair.data.dataset import load_pair, read_dataset
from retipair.data.layout import Layout
from retipair.data.pair import Pair
from retipair.diffusion.noise import generator
from retipair.generation.generate import generate
from retipair.generation.pair_generator import PairGenerator
from retipair.metrics import distribution
from retipair.metrics.consistency import dice, mean, set_consistency
from retipair.metrics.views import PairViews, prepare_views
from retipair.models.base import open_base
from retipair.models.conditioning import Conditioning, encode_prompts
from retipair.models.denoiser import Denoiser
from retipair.phantoms.phantom import phantom
from retipair.preparation.prepare import prepare
from retipair.runtime.parallel import parallel_map
from retipair.trials.demo import SETTINGS, generate_config
from retipair.vision.field_of_view import field_of_view
from retipair.vision.ridges import segment

PAIRS = 64
HELD_OUT_SEED = 77_000


def evaluate_autoencoder(vae: AutoencoderKL, work: Path) -> dict[str, dict[str, float]]:
    """Return the reconstruction metrics on held-out eyes: both halves encoded in one image, and separately."""
    images = evaluation_set(bank.render_photographs(bank.held_out_eyes(work, 1), PAIRS, HELD_OUT_SEED, 0).joint)
    return {"joint": reconstruction_metrics(vae, images), "apart": reconstruction_metrics(vae, images, separate=True)}


@dataclass(frozen=True)
class EvaluationSet:
    """Joint images (N, 3, S, 2S) in [-1, 1] by which autoencoders are evaluated, and their prepared views."""

    images: torch.Tensor
    views: list[PairViews]


def evaluation_set(images: torch.Tensor) -> EvaluationSet:
    return EvaluationSet(images, prepare_all(map(_to_pair, images.split(1))))


def prepare_all(pairs: Iterable[Pair]) -> list[PairViews]:
    """Prepare the views of pairs in parallel, including the vesselness, which takes longest."""
    return list(parallel_map(_prepare, pairs))


def _prepare(pair: Pair) -> PairViews:
    views = prepare_views(pair)
    assert views.cf.vesselness.shape == views.fa.vesselness.shape  # the first access computes and caches them
    return views


@torch.no_grad()
def reconstruction_metrics(vae: AutoencoderKL, originals: EvaluationSet, separate: bool = False) -> dict[str, float]:
    """Compare decoded images with the originals and return the mean of each metric.

    PSNR in dB, Dice of the vessels of each view at 512 px, and the agreement of both views as a fraction of that in the
    originals. separate: encode both halves separately.
    """
    decoded, psnr = [], []
    for image in originals.images.split(1):
        parts = image.chunk(2, dim=-1) if separate else [image]
        output = torch.cat([vae.decode(vae.encode(part).latent_dist.mean).sample for part in parts], dim=-1)
        decoded.append(output.clamp(-1, 1))
        psnr.append(float(10 * torch.log10(4 / ((decoded[-1] - image) ** 2).mean())))
    views = prepare_all(map(_to_pair, decoded))
    cf, fa = np.mean([_vessel_dice(*both) for both in zip(originals.views, views, strict=True)], axis=0).tolist()
    left = agreement(views)["correlation"] / agreement(originals.views)["correlation"]
    return {"psnr": float(np.mean(psnr)), "vessel_dice_cf": cf, "vessel_dice_fa": fa, "agreement_left": left}


def _vessel_dice(original: PairViews, decoded: PairViews) -> tuple[float, float]:
    """Return the Dice of the vessels in the original and the decoded view: CF, FA."""
    inside = original.inside
    views = ((original.cf, decoded.cf), (original.fa, decoded.fa))
    cf, fa = (dice(segment(a.vesselness, inside), segment(b.vesselness, inside)) for a, b in views)
    return cf, fa


def _to_pair(joint: torch.Tensor) -> Pair:
    """Convert a joint image (1, 3, S, 2S) in [-1, 1] to a pair."""
    pixels = ((joint[0] + 1) * 127.5).round().byte().permute(1, 2, 0).cpu().numpy()
    cf, fa = np.split(pixels, 2, axis=1)
    return as_pair(cf, fa.mean(axis=2).round().astype(np.uint8))


def as_pair(cf: np.ndarray, fa: np.ndarray) -> Pair:
    return Pair(cf, fa, field_of_view(cf) & field_of_view(fa))


def generate_with_base(name: str, count: int, config: GenerateConfig) -> list[Pair]:
    """Generate pairs with a base alone, without an adapter."""
    base = open_base(name)
    layout = Layout(base.family.layout, base.view_size)
    conditioning = encode_prompts(base, [DEFAULT_PROMPT], layout.joint_size, "cpu").rows([0])
    denoiser = Denoiser(base.unet().eval(), torch.float32, "cpu")
    pair_generator = PairGenerator(base, layout, denoiser, base.vae(), config.sampler, config.steps)
    return generate_pairs(pair_generator, conditioning, count)


def generate_pairs(pair_generator: PairGenerator, conditioning: Conditioning, count: int) -> list[Pair]:
    """Generate `count` pairs with the same conditioning, a single row."""
    generators = [generator(HELD_OUT_SEED, "judge", index) for index in range(count)]
    # On a CPU, the pixels of a pair depend on the other pairs of its batch.
    batch_size = 1 if pair_generator.vae.device.type == "cpu" else count
    batches = [generators[start : start + batch_size] for start in range(0, count, batch_size)]
    images = [image for batch in batches for image in pair_generator.sample(conditioning.rows([0] * len(batch)), batch)]
    return [image.pair for image in images]


def generate_with_adapter(config: DemoConfig) -> list[Pair]:
    """Generate pairs with the adapter of the demo."""
    settings = GenerateConfig(**{**vars(generate_config(config, "noise")), "amount": PAIRS, "savedir": "judged"})
    return [load_pair(entry) for entry in read_dataset(generate(settings))]


def render_reference_pairs(work: Path) -> list[Pair]:
    """Render pairs of other eyes with the demo's camera, then align and crop them as the demo does."""
    phantoms = replace(SETTINGS.phantoms, out=work / "demo_camera", amount=PAIRS, seed=HELD_OUT_SEED)
    phantom(phantoms)
    aligned = PrepareConfig(raw=phantoms.out / "raw", out=work / "demo_camera_pairs", size=bank.VIEW)
    prepare(aligned)
    return [load_pair(entry) for entry in read_dataset(aligned.out)]


def agreement(pairs: Sequence[PairViews]) -> dict[str, float]:
    """Return the mean consistency of the views, of the same pair and mispaired."""
    result = set_consistency(pairs)
    matched, mispaired = mean(result.matched), mean(result.mispaired)
    return {
        "correlation": matched.correlation,
        "correlation_mispaired": mispaired.correlation,
        "dice": matched.dice,
        "dice_mispaired": mispaired.dice,
    }


def grid(pairs: Sequence[Pair], columns: int = 4) -> Image.Image:
    images = [np.concatenate([pair.cf, np.repeat(pair.fa[..., None], 3, axis=2)], axis=1) for pair in pairs]
    rows = [np.concatenate(images[i : i + columns], axis=1) for i in range(0, len(images), columns)]
    return Image.fromarray(np.concatenate(rows, axis=0))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", choices=["autoencoder", "tiny-sdxl", "tiny-sd15"])
    parser.add_argument("--demo", type=Path, default=Path("demo"), help="folder of the demo")
    parser.add_argument("--out", type=Path, default=Path("results/recipes"), help="folder of the recipes' results")
    args = parser.parse_args()
    if args.model == "autoencoder":
        vae = AutoencoderKL.from_pretrained(args.out / "autoencoder", torch_dtype=torch.float32)
        print(json.dumps(evaluate_autoencoder(vae, args.out), indent=2))
        return
    config = DemoConfig(out=args.demo, system=args.model.removeprefix("tiny-"))  # type: ignore[arg-type]
    sets = {
        "phantoms": render_reference_pairs(args.out),
        "base": generate_with_base(args.model, PAIRS, generate_config(config, "noise")),
        "adapter": generate_with_adapter(config),
    }
    for name, pairs in sets.items():
        grid(pairs[:16]).save(args.out / f"{args.model}_{name}.png")
    views = {name: prepare_all(pairs) for name, pairs in sets.items()}
    results: dict[str, object] = {name: agreement(pairs) for name, pairs in views.items()}
    features = {name: np.stack([distribution.features(pair) for pair in pairs]) for name, pairs in views.items()}
    reference = features["phantoms"]
    floor = distribution.null_mmd2(reference)
    distances = {name: distribution.mmd2(features[name], reference, reference) for name in ("base", "adapter")}
    results["mmd2"] = distances | {
        "floor": floor,
        "fallen": distribution.relative_improvement(distances["base"], distances["adapter"], floor),
    }
    print(json.dumps(results, indent=2))
    (args.out / f"{args.model}_judged.json").write_text(json.dumps(results, indent=2) + "\n")


if __name__ == "__main__":
    main()
