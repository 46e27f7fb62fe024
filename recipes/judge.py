"""Judge what the recipes made, by figures on phantoms that nothing was trained on.

    python recipes/judge.py autoencoder
    python recipes/judge.py tiny-sdxl --demo demo --out results/recipes

The first gives PSNR and vessel Dice of decoded against original; the second, after `retipair demo demo`, what the base
draws alone and with the demo's adapter: whether both views share their vessels, and how far the look moved.
"""

import argparse
import json
from collections.abc import Sequence
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
from retipair.demo import SETTINGS, generate_config
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
from retipair.vision.field_of_view import field_of_view
from retipair.vision.ridges import segment

PAIRS = 64
HELD_OUT_SEED = 77_000


def judge_autoencoder(vae: AutoencoderKL, work: Path) -> dict[str, dict[str, float]]:
    """How much of joint images of eyes it has not seen comes through: in one, and with both halves apart."""
    shown = shown_to(bank.photographs(bank.held_out_eyes(work, 1), PAIRS, HELD_OUT_SEED, 0).joint)
    return {"joint": decoded(vae, shown), "apart": decoded(vae, shown, apart=True)}


@dataclass(frozen=True)
class Shown:
    """Joint images (N, 3, S, 2S) in [-1, 1] to judge autoencoders by, and what is seen in each."""

    images: torch.Tensor
    seen: list[PairViews]


def shown_to(images: torch.Tensor) -> Shown:
    return Shown(images, list(parallel_map(looked_at, map(_pair, images.split(1)))))


def looked_at(pair: Pair) -> PairViews:
    """Measured, the vesselness too, which takes longest."""
    seen = prepare_views(pair)
    assert seen.cf.vesselness.shape == seen.fa.vesselness.shape
    return seen


@torch.no_grad()
def decoded(vae: AutoencoderKL, shown: Shown, apart: bool = False) -> dict[str, float]:
    """Means over images, decoded against original.

    PSNR, dB, Dice of the vessels of each view at 512, and what is left of how well both views' vessels agree.
    """
    made, psnr = [], []
    for image in shown.images.split(1):
        parts = image.chunk(2, dim=-1) if apart else [image]
        image_back = torch.cat([vae.decode(vae.encode(part).latent_dist.mean).sample for part in parts], dim=-1)
        made.append(image_back.clamp(-1, 1))
        psnr.append(float(10 * torch.log10(4 / ((made[-1] - image) ** 2).mean())))
    after = list(parallel_map(looked_at, map(_pair, made)))
    cf, fa = np.mean([_same_vessels(*both) for both in zip(shown.seen, after, strict=True)], axis=0).tolist()
    left = agreement(after)["correlation"] / agreement(shown.seen)["correlation"]
    return {"psnr": float(np.mean(psnr)), "vessel_dice_cf": cf, "vessel_dice_fa": fa, "agreement_left": left}


def _same_vessels(before: PairViews, after: PairViews) -> tuple[float, float]:
    """Dice of the CF's and of the FA's vessels."""
    views = ((before.cf, after.cf), (before.fa, after.fa))
    cf, fa = (dice(segment(a.vesselness, before.inside), segment(b.vesselness, before.inside)) for a, b in views)
    return cf, fa


def _pair(joint: torch.Tensor) -> Pair:
    """(1, 3, S, 2S) in [-1, 1] -> a pair."""
    pixels = ((joint[0] + 1) * 127.5).round().byte().permute(1, 2, 0).cpu().numpy()
    cf, fa = np.split(pixels, 2, axis=1)
    return as_pair(cf, fa.mean(axis=2).round().astype(np.uint8))


def as_pair(cf: np.ndarray, fa: np.ndarray) -> Pair:
    return Pair(cf, fa, field_of_view(cf) & field_of_view(fa))


def drawn_alone(name: str, count: int, how: GenerateConfig) -> list[Pair]:
    """The first pairs that a base draws without any adapter."""
    base = open_base(name)
    layout = Layout(base.family.layout, base.view_size)
    heard = encode_prompts(base, [DEFAULT_PROMPT], layout.joint_size, "cpu").rows([0])
    painter = PairGenerator(
        base, layout, Denoiser(base.unet().eval(), torch.float32, "cpu"), base.vae(), how.sampler, how.steps
    )
    return painted(painter, heard, count)


def painted(painter: PairGenerator, heard: Conditioning, count: int) -> list[Pair]:
    """The first pairs that hear this one row, valid where both views show the eye."""
    sources = [generator(HELD_OUT_SEED, "judge", index) for index in range(count)]
    at_once = 1 if painter.vae.device.type == "cpu" else count  # there the bytes of a pair depend on those beside it
    parts = [sources[start : start + at_once] for start in range(0, count, at_once)]
    drawn = [one for part in parts for one in painter.sample(heard.rows([0] * len(part)), part)]
    return [one.pair for one in drawn]


def with_adapter(config: DemoConfig) -> list[Pair]:
    """The first pairs that the demo's adapter draws."""
    wanted = GenerateConfig(**{**vars(generate_config(config, "noise")), "amount": PAIRS, "savedir": "judged"})
    return [load_pair(entry) for entry in read_dataset(generate(wanted))]


def of_demo_camera(work: Path) -> list[Pair]:
    """Pairs of other eyes as the demo has them, aligned and cropped too: only by whom they are drawn should differ."""
    phantoms = replace(SETTINGS.phantoms, out=work / "demo_camera", amount=PAIRS, seed=HELD_OUT_SEED)
    phantom(phantoms)
    aligned = PrepareConfig(raw=phantoms.out / "raw", out=work / "demo_camera_pairs", size=bank.VIEW)
    prepare(aligned)
    return [load_pair(entry) for entry in read_dataset(aligned.out)]


def agreement(pairs: Sequence[PairViews]) -> dict[str, float]:
    result = set_consistency(pairs)
    matched, mispaired = mean(result.matched), mean(result.mispaired)
    return {
        "correlation": matched.correlation,
        "correlation_mispaired": mispaired.correlation,
        "dice": matched.dice,
        "dice_mispaired": mispaired.dice,
    }


def grid(pairs: Sequence[Pair], columns: int = 4) -> Image.Image:
    rows = [np.concatenate([pair.cf, np.repeat(pair.fa[..., None], 3, axis=2)], axis=1) for pair in pairs]
    rows = [np.concatenate(rows[i : i + columns], axis=1) for i in range(0, len(rows), columns)]
    return Image.fromarray(np.concatenate(rows, axis=0))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=["autoencoder", "tiny-sdxl", "tiny-sd15"])
    parser.add_argument("--demo", type=Path, default=Path("demo"))
    parser.add_argument("--out", type=Path, default=Path("results/recipes"))
    args = parser.parse_args()
    if args.what == "autoencoder":
        vae = AutoencoderKL.from_pretrained(args.out / "autoencoder", torch_dtype=torch.float32)
        print(json.dumps(judge_autoencoder(vae, args.out), indent=2))
        return
    config = DemoConfig(out=args.demo, system=args.what.removeprefix("tiny-"))  # type: ignore[arg-type]
    sets = {
        "phantoms": of_demo_camera(args.out),
        "base": drawn_alone(args.what, PAIRS, generate_config(config, "noise")),
        "adapter": with_adapter(config),
    }
    for name, pairs in sets.items():
        grid(pairs[:16]).save(args.out / f"{args.what}_{name}.png")
    seen = {name: list(parallel_map(looked_at, pairs)) for name, pairs in sets.items()}
    found: dict[str, object] = {name: agreement(pairs) for name, pairs in seen.items()}
    rows = {name: np.stack([distribution.features(pair) for pair in pairs]) for name, pairs in seen.items()}
    floor = distribution.null_mmd2(rows["phantoms"])
    far = {name: distribution.mmd2(rows[name], rows["phantoms"], rows["phantoms"]) for name in ("base", "adapter")}
    found["mmd2"] = far | {
        "floor": floor,
        "fallen": distribution.relative_improvement(far["base"], far["adapter"], floor),
    }
    print(json.dumps(found, indent=2))
    (args.out / f"{args.what}_judged.json").write_text(json.dumps(found, indent=2) + "\n")


if __name__ == "__main__":
    main()
