"""Train a bundled base's UNet from nothing on latents of endless phantoms.

    python recipes/denoiser.py tiny-sdxl                       # after recipes/autoencoder.py
    python recipes/denoiser.py tiny-sd15 --start results/recipes/tiny-sdxl

Killed and started again with the same command it goes on to the same weights (on the same number of threads).
"""

import argparse
import json
import shutil
import time
from pathlib import Path

import bank
import folders
import keeping
import latents
import numpy as np
import torch
from diffusers import AutoencoderKL, UNet2DConditionModel
from PIL import Image

from retipair.config import DEFAULT_PROMPT
from retipair.data.layout import Layout
from retipair.diffusion.noise import clean_halves, generator, noise_like, with_clean_halves
from retipair.diffusion.objective import HighFrequency, Objective
from retipair.model.base import open_base
from retipair.model.conditioning import encode_prompts
from retipair.model.denoiser import Denoiser
from retipair.painter import Painted, Painter
from retipair.vision.field_of_view import field_of_view
from retipair.vision.ridges import vesselness_correlation

SEED = 31
PEAK_RATE, BATCH, AVERAGE, FALLING = 6e-4, 8, 0.9995, 0.25
HALF_CLEAN = 0.5
PLAIN, UNPROMPTED = 0.45, 0.10
"""Shares of samples with the tool's own prompt, and with none; the others hear what they are."""
NO_HF = HighFrequency(weight=0.0, kernel=7, sigma=1.5, max_timestep=0)


class Recipe:
    """Everything fixed before the first step."""

    def __init__(self, name: str, work: Path, data: latents.Latents, vae: AutoencoderKL, device: str) -> None:
        self.name, self.device, self.data, self.vae = name, device, data, vae
        folder = work / f"{name}-empty"
        if not folder.exists():
            folders.write_base(folder, name, folders.new_unet(name), vae)
            vae.float()
        self.base = open_base(str(folder))
        self.layout = Layout(self.base.system.layout, folders.VIEW)
        self.prompts = [DEFAULT_PROMPT, *sorted(set(data.captions))]
        self.heard = encode_prompts(self.base, self.prompts, self.layout.joint_size, device)
        self.scheduler = self.base.scheduler("ddpm")
        self.objective = Objective(self.scheduler, NO_HF)

    def denoiser(self, unet: UNet2DConditionModel) -> Denoiser:
        return Denoiser(unet, torch.float32, self.device)

    def loss(self, unet: UNet2DConditionModel, step: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Of one batch, a function of (weights, step) alone; also the errors of half-clean samples."""
        keys = [(SEED, "sample", step * BATCH + row) for row in range(BATCH)]
        rng = np.random.default_rng([SEED, step])
        chosen = rng.integers(len(self.data.values), size=BATCH)
        clean_latents = torch.from_numpy(self.data.values[chosen]).float().to(self.device)
        rows = [self._prompt(index, share) for index, share in zip(chosen, rng.random(BATCH), strict=True)]
        t = torch.from_numpy((rng.permutation(BATCH) + rng.random(BATCH)) / BATCH * 1000).long().to(self.device)
        noise = noise_like(clean_latents, *keys)
        clean = clean_halves(HALF_CLEAN, torch.device(self.device), *((*key, "clean") for key in keys))
        noisy = with_clean_halves(self.scheduler.add_noise(clean_latents, noise, t), clean_latents, clean)
        with torch.autocast(torch.device(self.device).type, torch.bfloat16):
            prediction = self.denoiser(unet)(noisy, t, self.heard.rows(rows))
        losses = self.objective(prediction, clean_latents, noise, t, clean)
        return losses.total, losses.mse.detach()

    def _prompt(self, index: int, share: float) -> int:
        if share < UNPROMPTED:
            return len(self.prompts)
        return 0 if share < UNPROMPTED + PLAIN else self.prompts.index(self.data.captions[index])

    @torch.no_grad()
    def looking_across(self, unet: UNet2DConditionModel) -> dict[str, float]:
        """Error of one half at t = 700 beside the other half clean: its own, and another eye's."""
        own, other = [], []
        for start in range(0, 32, 8):
            values = torch.from_numpy(self.data.values[start : start + 8]).float().to(self.device)
            t = torch.full((8,), 700, device=self.device)
            noise = noise_like(values, *((SEED, "across", start + row) for row in range(8)))
            noisy = self.scheduler.add_noise(values, noise, t)
            for half in (0, 1):
                clean = torch.zeros(8, 2, dtype=torch.bool, device=self.device)
                clean[:, half] = True
                for errors, beside in ((own, values), (other, values.roll(1, dims=0))):
                    with torch.autocast(torch.device(self.device).type, torch.bfloat16):
                        prediction = self.denoiser(unet)(
                            with_clean_halves(noisy, beside, clean), t, self.heard.rows([0] * 8)
                        )
                    mse = self.objective(prediction, values, noise, t, clean).mse
                    errors.append(float(mse[:, 1 - half].mean()))
        return {"own": float(np.mean(own)), "other": float(np.mean(other))}

    def paint(self, unet: UNet2DConditionModel, count: int, steps: int = 20) -> list[Painted]:
        painter = Painter(self.base, self.layout, self.denoiser(unet), self.vae, "ddim", steps)
        with torch.autocast(torch.device(self.device).type, torch.bfloat16):
            return [
                one
                for index in range(count)
                for one in painter.paint(self.heard.rows([0]), [generator(SEED, "paint", index)])
            ]


def consistency(painted: list[Painted]) -> dict[str, float]:
    """Mean vesselness correlation at 512 of pairs, and of each CF with the next one's FA."""
    views = [(_at_512(one.cf), _at_512(one.fa)) for one in painted]
    masks = [field_of_view(cf) & field_of_view(fa) for cf, fa in views]
    matched = [vesselness_correlation(*view, mask) for view, mask in zip(views, masks, strict=True)]
    mispaired = [
        vesselness_correlation(views[i][0], views[i - 1][1], masks[i] & masks[i - 1]) for i in range(len(views))
    ]
    return {"matched": float(np.mean(matched)), "mispaired": float(np.mean(mispaired))}


def _at_512(view: np.ndarray) -> np.ndarray:
    return np.asarray(Image.fromarray(view).resize((512, 512), Image.Resampling.BICUBIC))


def grid(painted: list[Painted], columns: int = 2) -> Image.Image:
    joints = [np.concatenate([one.cf, np.repeat(one.fa[..., None], 3, axis=2)], axis=1) for one in painted]
    rows = [np.concatenate(joints[i : i + columns], axis=1) for i in range(0, len(joints), columns)]
    return Image.fromarray(np.concatenate(rows, axis=0))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("name", choices=list(folders.UNETS))
    parser.add_argument("--out", type=Path, default=Path("results/recipes"))
    parser.add_argument("--steps", type=int, default=16000)
    parser.add_argument("--eyes", type=int, default=2000)
    parser.add_argument("--photographs", type=int, default=8000)
    parser.add_argument("--start", type=Path, help="a base whose UNet's weights, where they fit, are the start")
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--probe", type=int, default=500)
    args = parser.parse_args()

    # Set up
    device = "cuda" if torch.cuda.is_available() else "cpu"
    vae = AutoencoderKL.from_pretrained(args.out / "autoencoder").float().to(device).eval()
    eyes = bank.fill(args.out / "bank", range(args.eyes), args.workers)
    layout = "side_by_side" if args.name == "tiny-sdxl" else "squeezed"
    data = latents.fill(args.out / f"latents-{layout}", args.photographs, eyes, vae, layout, device)
    recipe = Recipe(args.name, args.out, data, vae, device)
    torch.manual_seed(SEED)
    unet = folders.new_unet(args.name).to(device)
    if args.start:
        _take_over(unet, args.start)
    trained = folders.new_unet(args.name).to(device).eval()
    optimiser = torch.optim.AdamW(unet.parameters(), lr=PEAK_RATE, betas=(0.9, 0.99), weight_decay=1e-2)
    average = keeping.Average(unet, AVERAGE)
    state_path, log_path = args.out / f"{args.name}.state", args.out / f"{args.name}_log.jsonl"

    # Resume
    first = 0
    if state := keeping.load(state_path):
        unet.load_state_dict(state["model"])
        optimiser.load_state_dict(state["optimiser"])
        average.weights = {name: value.to(device) for name, value in state["average"].items()}
        first = state["step"]
        print(f"goes on from step {first}", flush=True)

    # Train
    begun, window = time.time(), []
    for step in range(first, args.steps):
        for group in optimiser.param_groups:
            group["lr"] = keeping.learning_rate(step, args.steps, PEAK_RATE, falling=FALLING)
        loss, _ = recipe.loss(unet, step)
        optimiser.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(unet.parameters(), 1.0)
        optimiser.step()
        average.update(unet, step)
        window.append(float(loss.detach()))
        if (step + 1) % 100 == 0:
            line = {"step": step + 1, "loss": float(np.mean(window))}
            line["seconds_a_step"] = (time.time() - begun) / (step + 1 - first)
            window = []
            if (step + 1) % args.probe == 0 or step + 1 == args.steps:
                trained.load_state_dict(average.weights)
                line |= recipe.looking_across(trained)
                painted = recipe.paint(trained, 8)
                line |= consistency(painted)
                grid(painted).save(args.out / f"{args.name}_{step + 1:06d}.png")
                keeping.save(
                    state_path,
                    {
                        "step": step + 1,
                        "model": unet.state_dict(),
                        "optimiser": optimiser.state_dict(),
                        "average": average.weights,
                    },
                )
            print(json.dumps(line), flush=True)
            with log_path.open("a") as log:
                log.write(json.dumps(line) + "\n")

    # Write
    trained.load_state_dict(average.weights)
    shutil.rmtree(args.out / args.name, ignore_errors=True)
    folders.write_base(args.out / args.name, args.name, trained, vae)


def _take_over(unet: UNet2DConditionModel, folder: Path) -> None:
    """Start from another base's weights, where shapes agree."""
    source = UNet2DConditionModel.from_pretrained(folder, subfolder="unet").state_dict()
    own = unet.state_dict()
    own.update({name: value.float() for name, value in source.items() if name in own and own[name].shape == value.shape})
    unet.load_state_dict(own)


if __name__ == "__main__":
    main()
