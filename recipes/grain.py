"""The decoder learns grain: what squared error smooths away, so that drawn views have the spectrum of photographs.

The encoder stays as it is, and with it every latent.
"""

from itertools import pairwise
from pathlib import Path

import autoencoder
import bank
import judge
import keeping
import torch
from diffusers import AutoencoderKL
from torch.nn import functional as F

from retipair.runtime.atomic_io import atomic_write_dir

PHASE = autoencoder.Phase(steps=1500, patches=True, rate=5e-4, falling=0.8, warmup=50)
DECAY, AVERAGE, KEPT_EVERY = 1e-3, 0.995, 250
COUNTS = 0.2
"""Weight of the grain."""
WINDOW = 32
"""px: where grain is compared."""
RINGS = (0.10, 0.16, 0.22, 0.28, 0.34, 0.41, 0.50, 0.60, 0.71)
"""Cycles per px: between them, spectra are compared; coarser things are anatomy."""
LEAST = (2 / 255) ** 2 / 12
"""Added to every power: rounding to 8 bits."""


class Loss(torch.nn.Module):
    """The autoencoder's own error, but of the smoothed picture where no vessel is near; and that of the grain.

    Also the latter alone.
    """

    def __init__(self, vae: AutoencoderKL) -> None:
        super().__init__()
        self.vae = vae

    def forward(self, *batch: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        seen = autoencoder.Pictures(*batch)
        with torch.no_grad():
            latents = self.vae.encode(seen.images).latent_dist.mean
        with torch.autocast(seen.images.device.type, torch.bfloat16, cache_enabled=False):
            decoded = self.vae.decode(latents).sample
        made, real = decoded.float(), seen.images
        grain = (spectra(made) - spectra(real)).abs().mean() + (spread(made) - spread(real)).abs().mean()
        near = F.max_pool2d(seen.vessels, 3, stride=1, padding=1)
        shape, clean = (torch.lerp(smooth(one), one, near) for one in (made, seen.clean))
        return autoencoder.error_of(shape, clean, seen) + COUNTS * grain, grain.detach()


def spectra(images: torch.Tensor) -> torch.Tensor:
    """Log of the power in each of RINGS over windows of (B, C, H, W): (2, B, C, rows, columns, rings).

    Of its mean, and the mean of its log, which tells grain from a pattern: the latter has few, high peaks.
    """
    ticks = torch.fft.fftfreq(WINDOW, device=images.device)
    radius = torch.hypot(ticks[:, None], ticks).flatten()
    rings = torch.stack([((radius >= low) & (radius < high)).float() for low, high in pairwise(RINGS)])
    hann = torch.hann_window(WINDOW, device=images.device)
    hann = hann[:, None] * hann
    windows = images.unfold(2, WINDOW, WINDOW // 2).unfold(3, WINDOW, WINDOW // 2)  # (B, C, rows, columns, W, W)
    windows = (windows - windows.mean(dim=(-2, -1), keepdim=True)) * hann
    power = torch.fft.fft2(windows).abs().square().flatten(-2) / hann.square().sum() + LEAST
    weights = (rings / rings.sum(dim=1, keepdim=True)).T
    return torch.stack([(power @ weights).log(), power.log() @ weights])


def spread(images: torch.Tensor) -> torch.Tensor:
    """Mean of the log of fine detail's squares, at two scales, over windows of (B, C, H, W): (B, 2 C, rows, columns).

    It tells grain from scattered dots, whose spectrum is as even: between dots there is nothing.
    """
    once = smooth(images)
    detail = torch.cat([images - once, once - smooth(once)], dim=1)
    return F.avg_pool2d((detail**2 + LEAST).log(), WINDOW // 2)


def smooth(images: torch.Tensor) -> torch.Tensor:
    """By a 3 x 3 binomial."""
    weights = images.new_full((3, 1, 1, 3), 0.25)
    weights[..., 1] = 0.5
    padded = F.pad(images, (1, 1, 1, 1), mode="replicate")
    return F.conv2d(F.conv2d(padded, weights, groups=3), weights.transpose(2, 3), groups=3)


def train(vae: AutoencoderKL, work: Path, device: str, workers: int) -> AutoencoderKL:
    """The same with another decoder, float32; seven minutes on one idle core, nothing once it is there."""
    if not (folder := work / "grained").exists():
        _learn(vae, work, device, workers)
        atomic_write_dir(folder, vae.half().save_pretrained)
    return AutoencoderKL.from_pretrained(folder, torch_dtype=torch.float32).to(device).eval()


def _learn(vae: AutoencoderKL, work: Path, device: str, workers: int) -> None:
    eyes = bank.train_eyes(work, workers)
    decoder = torch.nn.ModuleList([vae.decoder, vae.post_quant_conv])
    vae.requires_grad_(False)
    decoder.requires_grad_(True)
    training = keeping.Training(decoder, work / "grain.state", DECAY, AVERAGE)
    loss_in = keeping.Recorded(lambda phase: Loss(vae))
    judged = autoencoder.judged(work, device, workers)
    grains = []
    while training.step < PHASE.steps:
        batch = autoencoder.taught(PHASE, eyes, training.step, device)
        loss, grain = loss_in(PHASE, batch)
        training.update(loss, keeping.learning_rate(PHASE, training.step))
        grains.append(grain.clone())
        if training.step % KEPT_EVERY == 0 or training.step == PHASE.steps:
            training.log(grain=float(torch.stack(grains).mean()), **_judged(vae, decoder, training, judged))
            training.save()
            grains.clear()
    decoder.load_state_dict(training.averaged)


def _judged(
    vae: AutoencoderKL, decoder: torch.nn.Module, training: keeping.Training, shown: judge.Shown
) -> dict[str, float]:
    """Of the averaged weights."""
    own = {name: value.clone() for name, value in decoder.state_dict().items()}
    decoder.load_state_dict(training.averaged)
    figures = judge.decoded(vae, shown)
    decoder.load_state_dict(own)
    return figures
