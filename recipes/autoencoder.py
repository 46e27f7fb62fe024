"""Train the autoencoder that both bundled bases share: AutoencoderKL, factor 8, on endless phantoms.

    python recipes/autoencoder.py --out results/recipes

Killed and started again with the same command it goes on to the same weights (on the same number of threads).
Takes about an hour on two cores. The first run draws the bank of eyes.
"""

import argparse
import json
import time
from pathlib import Path

import bank
import keeping
import numpy as np
import torch
from diffusers import AutoencoderKL
from torch.nn import functional as F

SEED = 11
CONFIG = {
    "in_channels": 3,
    "out_channels": 3,
    "down_block_types": ["DownEncoderBlock2D"] * 4,
    "up_block_types": ["UpDecoderBlock2D"] * 4,
    "block_out_channels": [16, 32, 64, 128],
    "layers_per_block": 1,
    "latent_channels": 8,
    "norm_num_groups": 8,
    "sample_size": bank.VIEW,
    "mid_block_add_attention": False,  # what it learns in one place holds in every other, at every size
    "force_upcast": False,
}
PEAK_RATE, BATCH, AVERAGE = 2e-3, 2, 0.999
KL_WEIGHT = 1e-3


def loss_of(model: AutoencoderKL, images: torch.Tensor, generator: torch.Generator) -> tuple[torch.Tensor, float]:
    """Squared error, error of the edges, and a pull of the latents towards N(0, 1). Also the mean squared error."""
    with torch.autocast(images.device.type, torch.bfloat16):
        posterior = model.encode(images).latent_dist
        mean, logvar = posterior.mean.float(), posterior.logvar.float()
        noise = torch.randn(mean.shape, generator=generator).to(mean.device)
        decoded = model.decode(mean + torch.exp(0.5 * logvar) * noise).sample
    decoded = decoded.float()
    squared = F.mse_loss(decoded, images)
    edges = sum((torch.diff(decoded, dim=d) - torch.diff(images, dim=d)).abs().mean() for d in (2, 3))
    kl = 0.5 * (mean**2 + logvar.exp() - 1 - logvar).mean()
    return 10 * squared + F.l1_loss(decoded, images) + edges + KL_WEIGHT * kl, float(squared.detach())


@torch.no_grad()
def psnr(model: AutoencoderKL, images: torch.Tensor) -> float:
    """Mean over images in [-1, 1] of the peak signal-to-noise ratio at 8 bits' full range, dB."""
    decoded = torch.cat([model.decode(model.encode(one).latent_dist.mean).sample for one in images.split(1)])
    error = ((decoded.clamp(-1, 1) - images) ** 2).mean(dim=(1, 2, 3))
    return float((10 * torch.log10(4 / error)).mean())


def latent_scale(model: AutoencoderKL, images: torch.Tensor) -> float:
    """What makes the latents of these images have deviation 1."""
    with torch.no_grad():
        latents = torch.cat([model.encode(one).latent_dist.mean for one in images.split(1)])
    return float(1 / latents.std())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("results/recipes"))
    parser.add_argument("--steps", type=int, default=4000)
    parser.add_argument("--eyes", type=int, default=2000)
    parser.add_argument("--workers", type=int, default=2)
    args = parser.parse_args()

    # Set up
    device = "cuda" if torch.cuda.is_available() else "cpu"
    eyes = bank.fill(args.out / "bank", range(args.eyes), args.workers)
    held_out = bank.fill(args.out / "held_out", range(bank.HELD_OUT, bank.HELD_OUT + 64), args.workers)
    judged, _ = bank.photographs(held_out, 16, SEED, 0, device)
    torch.manual_seed(SEED)
    model = AutoencoderKL(**CONFIG).to(device)
    optimiser = torch.optim.AdamW(model.parameters(), lr=PEAK_RATE, betas=(0.9, 0.99), weight_decay=1e-3)
    average = keeping.Average(model, AVERAGE)
    state_path, log_path = args.out / "autoencoder.state", args.out / "autoencoder_log.jsonl"

    # Resume
    first = 0
    if state := keeping.load(state_path):
        model.load_state_dict(state["model"])
        optimiser.load_state_dict(state["optimiser"])
        average.weights = {name: value.to(device) for name, value in state["average"].items()}
        first = state["step"]
        print(f"goes on from step {first}", flush=True)

    # Train
    begun, errors = time.time(), []
    for step in range(first, args.steps):
        images, _ = bank.photographs(eyes, BATCH, SEED, step + 1, device)
        for group in optimiser.param_groups:
            group["lr"] = keeping.learning_rate(step, args.steps, PEAK_RATE)
        loss, error = loss_of(model, images, torch.Generator().manual_seed(SEED * 10**9 + step))
        optimiser.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimiser.step()
        average.update(model, step)
        errors.append(error)
        if (step + 1) % 250 == 0 or step + 1 == args.steps:
            trained = AutoencoderKL(**CONFIG).to(device)
            trained.load_state_dict(average.weights)
            line = {
                "step": step + 1,
                "psnr_train": float(10 * np.log10(4 / np.mean(errors))),
                "psnr_held_out": psnr(trained, judged),
                "seconds_a_step": (time.time() - begun) / (step + 1 - first),
            }
            errors = []
            print(json.dumps(line), flush=True)
            with log_path.open("a") as log:
                log.write(json.dumps(line) + "\n")
            keeping.save(
                state_path,
                {
                    "step": step + 1,
                    "model": model.state_dict(),
                    "optimiser": optimiser.state_dict(),
                    "average": average.weights,
                },
            )

    # Write
    trained = AutoencoderKL(**CONFIG)
    trained.load_state_dict(average.weights)
    many, _ = bank.photographs(eyes, 32, SEED, 0)
    trained.register_to_config(scaling_factor=latent_scale(trained, many))
    trained.half().save_pretrained(args.out / "autoencoder")


if __name__ == "__main__":
    main()
