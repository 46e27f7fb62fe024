"""The autoencoder that both bundled bases share: AutoencoderKL, factor 8, on endless phantoms. See make.py."""

import time
from pathlib import Path

import bank
import keeping
import numpy as np
import torch
from diffusers import AutoencoderKL
from torch.nn import functional as F

SEED, STEPS, BATCH = 11, 3000, 2
PEAK_RATE, FALLING, AVERAGE, DECAY = 2e-3, 0.4, 0.999, 1e-3
KL_WEIGHT = 1e-3
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


def train(work: Path, device: str, workers: int) -> AutoencoderKL:
    """The trained autoencoder, float32; about half an hour on two idle cores, nothing once it is there."""
    if (work / "autoencoder").exists():
        return AutoencoderKL.from_pretrained(work / "autoencoder", torch_dtype=torch.float32).to(device).eval()
    eyes, held_out = bank.train_eyes(work, workers), bank.held_out_eyes(work, workers)
    judged, _ = bank.photographs(held_out, 16, SEED, 0, device)
    torch.manual_seed(SEED)
    model = AutoencoderKL(**CONFIG).to(device)
    training = keeping.Training(model, work / "autoencoder.state", DECAY, AVERAGE)
    averaged = AutoencoderKL(**CONFIG).to(device).eval()
    begun, first, errors = time.time(), training.step, []
    while training.step < STEPS:
        step = training.step
        images, _ = bank.photographs(eyes, BATCH, SEED, step + 1, device)
        loss, error = loss_of(model, images, torch.Generator().manual_seed(SEED * 10**9 + step))
        training.update(loss, keeping.learning_rate(step, STEPS, PEAK_RATE, FALLING))
        errors.append(error)
        if training.step % 250 == 0:
            averaged.load_state_dict(training.averaged)
            training.log(
                psnr_train=float(10 * np.log10(4 / np.mean(errors))),
                psnr_held_out=psnr(averaged, judged),
                seconds_a_step=(time.time() - begun) / (training.step - first),
            )
            errors.clear()
            training.save()
    averaged.load_state_dict(training.averaged)
    some, _ = bank.photographs(eyes, 32, SEED, 0, device)
    averaged.register_to_config(scaling_factor=latent_scale(averaged, some))
    averaged.half().save_pretrained(work / "autoencoder")
    return averaged.float()


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
    """Mean over images in [-1, 1] of the peak signal-to-noise ratio, dB."""
    decoded = torch.cat([model.decode(model.encode(one).latent_dist.mean).sample for one in images.split(1)])
    error = ((decoded.clamp(-1, 1) - images) ** 2).mean(dim=(1, 2, 3))
    return float((10 * torch.log10(4 / error)).mean())


@torch.no_grad()
def latent_scale(model: AutoencoderKL, images: torch.Tensor) -> float:
    """What makes the latents of these images have deviation 1."""
    latents = torch.cat([model.encode(one).latent_dist.mean for one in images.split(1)])
    return float(1 / latents.std())
