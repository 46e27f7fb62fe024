"""The autoencoder that both bundled bases share: AutoencoderKL, factor 8, on endless phantoms. See make.py."""

import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import bank
import keeping
import numpy as np
import torch
from diffusers import AutoencoderKL
from torch.nn import functional as F

SEED, BATCH = 11, 2
AVERAGE, DECAY = 0.999, 1e-3
KEPT_EVERY = 250


@dataclass(frozen=True)
class Contrast:
    """The error of what is coarser than `grain` px and finer than about 10, in units of the local deviation + least."""

    weight: float
    grain: int
    least: float


@dataclass(frozen=True)
class Phase:
    """So many steps with so many latent channels; the learning rate and the share in which it falls; loss weights."""

    channels: int
    steps: int
    rate: float
    falling: float
    edges: float
    kl: float
    contrast: Contrast | None


PHASES = (
    Phase(channels=8, steps=3000, rate=2e-3, falling=0.4, edges=1.0, kl=1e-3, contrast=None),
    # Eight channels see eyes within half an hour; the thin vessels of the CF need more, and a loss that asks for them:
    # measured in local contrast they, a few grey levels deep, weigh as much as those of the FA.
    Phase(channels=16, steps=2000, rate=1.5e-3, falling=0.0, edges=0.0, kl=3e-4, contrast=Contrast(0.3, 1, 0.04)),
    # What is left of that error is mostly the photographs' noise, which nothing can learn: vessels outlast a blur.
    Phase(channels=16, steps=1600, rate=1.5e-3, falling=0.6, edges=0.0, kl=3e-4, contrast=Contrast(0.5, 3, 0.02)),
)


def config(channels: int) -> dict[str, Any]:
    return {
        "in_channels": 3,
        "out_channels": 3,
        "down_block_types": ["DownEncoderBlock2D"] * 4,
        "up_block_types": ["UpDecoderBlock2D"] * 4,
        "block_out_channels": [16, 32, 64, 128],
        "layers_per_block": 1,
        "latent_channels": channels,
        "norm_num_groups": 8,
        "sample_size": bank.VIEW,
        "mid_block_add_attention": False,  # what it learns in one place holds in every other, at every size
        "force_upcast": False,
    }


def train(work: Path, device: str, workers: int) -> AutoencoderKL:
    """The trained autoencoder, float32; about an hour and a half on two idle cores, nothing once it is there."""
    trained = None
    for number, phase in enumerate(PHASES, start=1):
        folder = work / f"autoencoder-{number}"
        if not folder.exists():
            _train_phase(phase, trained, folder, work, device, workers).half().save_pretrained(folder)
        trained = AutoencoderKL.from_pretrained(folder, torch_dtype=torch.float32).to(device).eval()
    assert trained is not None
    return trained


def _train_phase(
    phase: Phase, before: AutoencoderKL | None, folder: Path, work: Path, device: str, workers: int
) -> AutoencoderKL:
    eyes, held_out = bank.train_eyes(work, workers), bank.held_out_eyes(work, workers)
    judged, _ = bank.photographs(held_out, 16, SEED, 0, device)
    seed = SEED + PHASES.index(phase)
    torch.manual_seed(seed)
    model = AutoencoderKL(**config(phase.channels)).to(device)
    if before is not None:
        widen(model, before)
    training = keeping.Training(model, folder.with_suffix(".state"), DECAY, AVERAGE)
    averaged = AutoencoderKL(**config(phase.channels)).to(device).eval()
    begun, first, errors = time.time(), training.step, []
    while training.step < phase.steps:
        step = training.step
        images, _ = bank.photographs(eyes, BATCH, seed, step + 1, device)
        loss, error = loss_of(phase, model, images, torch.Generator().manual_seed(seed * 10**9 + step))
        training.update(loss, keeping.learning_rate(step, phase.steps, phase.rate, phase.falling))
        errors.append(error)
        if training.step % KEPT_EVERY == 0:
            averaged.load_state_dict(training.averaged)
            training.log(
                psnr_train=float(10 * np.log10(4 / np.mean(errors))),
                psnr_held_out=psnr(averaged, judged),
                seconds_a_step=(time.time() - begun) / (training.step - first),
            )
            errors.clear()
            training.save()
    averaged.load_state_dict(training.averaged)
    some, _ = bank.photographs(eyes, 32, seed, 0, device)
    averaged.register_to_config(scaling_factor=latent_scale(averaged, some))
    return averaged


@torch.no_grad()
def widen(model: AutoencoderKL, before: AutoencoderKL) -> None:
    """Take over an autoencoder of fewer latent channels: at first the new ones are encoded, and not yet decoded."""
    narrow, wide = before.config.latent_channels, model.config.latent_channels
    kept = [*range(narrow), *range(wide, wide + narrow)]  # means, then log variances
    own, old = model.state_dict(), before.state_dict()
    for name, value in old.items():
        if own[name].shape == value.shape:
            own[name].copy_(value)
        elif name.startswith("encoder.conv_out") or name == "quant_conv.bias":
            own[name][kept] = value
        elif name == "quant_conv.weight":
            own[name][np.ix_(kept, kept)] = value
            own[name][np.ix_(kept, [k for k in range(2 * wide) if k not in kept])] = 0
        elif name == "post_quant_conv.bias":
            own[name][:narrow] = value
        elif name == "post_quant_conv.weight":
            own[name][:narrow, :narrow], own[name][:narrow, narrow:] = value, 0
        else:
            assert name == "decoder.conv_in.weight", name
            own[name][:, :narrow], own[name][:, narrow:] = value, 0


def loss_of(
    phase: Phase, model: AutoencoderKL, images: torch.Tensor, generator: torch.Generator
) -> tuple[torch.Tensor, float]:
    """Squared and absolute error, error of edges or of local contrast, and a pull of the latents towards N(0, 1).

    Also the mean squared error.
    """
    with torch.autocast(images.device.type, torch.bfloat16):
        posterior = model.encode(images).latent_dist
        mean, logvar = posterior.mean.float(), posterior.logvar.float()
        noise = torch.randn(mean.shape, generator=generator).to(mean.device)
        decoded = model.decode(mean + torch.exp(0.5 * logvar) * noise).sample
    decoded = decoded.float()
    squared = F.mse_loss(decoded, images)
    kl = 0.5 * (mean**2 + logvar.exp() - 1 - logvar).mean()
    total = 10 * squared + F.l1_loss(decoded, images) + phase.kl * kl
    if phase.edges:
        edges = [(torch.diff(decoded, dim=d) - torch.diff(images, dim=d)).abs().mean() for d in (2, 3)]
        total = total + phase.edges * sum(edges)
    if phase.contrast:
        total = total + phase.contrast.weight * contrast_error(phase.contrast, decoded, images)
    return total, float(squared.detach())


def contrast_error(contrast: Contrast, decoded: torch.Tensor, images: torch.Tensor) -> torch.Tensor:
    """Mean absolute error of the contrast."""
    fine, made = (_mean(one, contrast.grain) - _mean(one, 11) for one in (images, decoded))
    deviation = _mean(fine**2, 11).mean(dim=1, keepdim=True).sqrt() + contrast.least
    return ((made - fine).abs() / deviation).mean()


def _mean(images: torch.Tensor, size: int) -> torch.Tensor:
    """Over size x size px, twice."""
    for _ in range(2 if size > 1 else 0):
        images = F.avg_pool2d(F.pad(images, (size // 2,) * 4, mode="replicate"), size, stride=1)
    return images


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
