"""Train the decoder a second time, to reproduce the grain of photographs, which a squared error removes.

The encoder is frozen, so latents do not change.
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

PHASE = autoencoder.Phase(steps=1500, patches=True, learning_rate=5e-4, decay_fraction=0.8, warmup_steps=50)
WEIGHT_DECAY, EMA_DECAY, SAVE_EVERY = 1e-3, 0.995, 250
GRAIN_WEIGHT = 0.2
"""Weight of the grain loss."""
WINDOW = 32
"""px: size of the windows whose spectra are compared."""
RING_EDGES = (0.10, 0.16, 0.22, 0.28, 0.34, 0.41, 0.50, 0.60, 0.71)
"""Cycles per px: edges of the rings in which spectra are compared. Lower frequencies show anatomy."""
MIN_POWER = (2 / 255) ** 2 / 12
"""Added to every power: the variance of rounding to 8 bits."""


class Loss(torch.nn.Module):
    """Compute the training loss and, for the log, the grain loss alone.

    The training loss is the weighted sum of two losses: the reconstruction loss of the autoencoder, computed on
    smoothed images except near vessels, and the grain loss, which compares the spectra and the detail energy.
    """

    def __init__(self, vae: AutoencoderKL) -> None:
        super().__init__()
        self.vae = vae

    def forward(self, *tensors: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        batch = autoencoder.Batch(*tensors)
        with torch.no_grad():
            latents = self.vae.encode(batch.images).latent_dist.mean
        with torch.autocast(batch.images.device.type, torch.bfloat16, cache_enabled=False):
            decoded = self.vae.decode(latents).sample
        decoded, target = decoded.float(), batch.images
        spectrum_error = (spectra(decoded) - spectra(target)).abs().mean()
        grain = spectrum_error + (log_detail_energy(decoded) - log_detail_energy(target)).abs().mean()
        near_vessel = F.max_pool2d(batch.vessels, 3, stride=1, padding=1)
        predicted, clean = (torch.lerp(smooth(images), images, near_vessel) for images in (decoded, batch.clean))
        return autoencoder.reconstruction_loss(predicted, clean, batch) + GRAIN_WEIGHT * grain, grain.detach()


def spectra(images: torch.Tensor) -> torch.Tensor:
    """Return the log power in each ring, over windows of (B, C, H, W): (2, B, C, rows, columns, rings).

    Index 0 is the log of the mean power of a ring, index 1 the mean of the log power. They differ more for a regular
    pattern, whose power is in few peaks, than for grain.
    """
    frequencies = torch.fft.fftfreq(WINDOW, device=images.device)
    radius = torch.hypot(frequencies[:, None], frequencies).flatten()
    rings = torch.stack([((radius >= low) & (radius < high)).float() for low, high in pairwise(RING_EDGES)])
    hann = torch.hann_window(WINDOW, device=images.device)
    hann = hann[:, None] * hann
    windows = images.unfold(2, WINDOW, WINDOW // 2).unfold(3, WINDOW, WINDOW // 2)  # (B, C, rows, columns, W, W)
    windows = (windows - windows.mean(dim=(-2, -1), keepdim=True)) * hann
    power = torch.fft.fft2(windows).abs().square().flatten(-2) / hann.square().sum() + MIN_POWER
    weights = (rings / rings.sum(dim=1, keepdim=True)).T
    return torch.stack([(power @ weights).log(), power.log() @ weights])


def log_detail_energy(images: torch.Tensor) -> torch.Tensor:
    """Return the mean log of the squared detail at two fine scales, over windows of (B, C, H, W).

    The result is (B, 2 C, rows, columns). It is lower for scattered dots than for grain of the same spectrum, because
    there is no detail between the dots.
    """
    smoothed = smooth(images)
    detail = torch.cat([images - smoothed, smoothed - smooth(smoothed)], dim=1)
    return F.avg_pool2d((detail**2 + MIN_POWER).log(), WINDOW // 2)


def smooth(images: torch.Tensor) -> torch.Tensor:
    """Smooth by a 3 x 3 binomial filter."""
    weights = images.new_full((3, 1, 1, 3), 0.25)
    weights[..., 1] = 0.5
    padded = F.pad(images, (1, 1, 1, 1), mode="replicate")
    return F.conv2d(F.conv2d(padded, weights, groups=3), weights.transpose(2, 3), groups=3)


def train(vae: AutoencoderKL, work: Path, device: str, workers: int) -> AutoencoderKL:
    """Return the autoencoder with the new decoder in float32. Train it first if it is missing.

    Training takes seven minutes on one idle core.
    """
    if not (folder := work / "grained").exists():
        _train_decoder(vae, work, device, workers)
        atomic_write_dir(folder, vae.half().save_pretrained)
    return AutoencoderKL.from_pretrained(folder, torch_dtype=torch.float32).to(device).eval()


def _train_decoder(vae: AutoencoderKL, work: Path, device: str, workers: int) -> None:
    """Train the decoder of `vae` in place."""
    eyes = bank.train_eyes(work, workers)
    decoder = torch.nn.ModuleList([vae.decoder, vae.post_quant_conv])
    vae.requires_grad_(False)
    decoder.requires_grad_(True)
    training = keeping.Training(decoder, work / "grain.state", WEIGHT_DECAY, EMA_DECAY)
    compute_loss = keeping.CudaGraphLoss(lambda phase: Loss(vae))
    held_out = autoencoder.evaluation_set(work, device, workers)
    losses = []
    while training.step < PHASE.steps:
        batch = autoencoder.draw_batch(PHASE, eyes, training.step, device)
        loss, grain = compute_loss(PHASE, batch)
        training.update(loss, keeping.learning_rate(PHASE, training.step))
        losses.append(grain.clone())
        if training.step % SAVE_EVERY == 0 or training.step == PHASE.steps:
            training.log(grain=float(torch.stack(losses).mean()), **_evaluate(vae, decoder, training, held_out))
            training.save()
            losses.clear()
    decoder.load_state_dict(training.averaged)


def _evaluate(
    vae: AutoencoderKL, decoder: torch.nn.Module, training: keeping.Training, held_out: judge.EvaluationSet
) -> dict[str, float]:
    """Evaluate the averaged weights of the decoder."""
    current = {name: value.clone() for name, value in decoder.state_dict().items()}
    decoder.load_state_dict(training.averaged)
    metrics = judge.reconstruction_metrics(vae, held_out)
    decoder.load_state_dict(current)
    return metrics
