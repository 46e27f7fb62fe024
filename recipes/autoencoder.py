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

from retipair.run import write_folder

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
    """So many steps on whole joint images, or on patches of them; the learning rate and the share in which it falls."""

    steps: int
    patches: bool
    rate: float
    falling: float


KL = 5e-4
# The thin vessels of the CF are a few grey levels deep: measured in local contrast, they weigh as much as those of the
# FA; behind a small blur, because most of that error is the photographs' noise, which nothing can learn.
CONTRAST = Contrast(weight=0.5, grain=3, least=0.02)
PHASES = (
    # A quarter of an image costs a quarter of the time and teaches as much.
    Phase(steps=4500, patches=True, rate=2e-3, falling=0.0),
    # The mean brightness that normalisation sees, the field's rim and the seam are those of whole images.
    Phase(steps=800, patches=False, rate=1.5e-3, falling=0.8),
)
CHANNELS = 16
SURE = -20.0  # log variance


def config() -> dict[str, Any]:
    return {
        "in_channels": 3,
        "out_channels": 3,
        "down_block_types": ["DownEncoderBlock2D"] * 4,
        "up_block_types": ["UpDecoderBlock2D"] * 4,
        "block_out_channels": [16, 32, 64, 128],
        "layers_per_block": 1,
        "latent_channels": CHANNELS,
        "norm_num_groups": 8,
        "sample_size": bank.VIEW,
        "mid_block_add_attention": False,  # what it learns in one place holds in every other, at every size
        "force_upcast": False,
    }


def train(work: Path, device: str, workers: int) -> AutoencoderKL:
    """The trained autoencoder, float32; about forty minutes on two idle cores, nothing once it is there."""
    trained = None
    for number, phase in enumerate(PHASES, start=1):
        if not (folder := work / f"autoencoder-{number}").exists():
            write_folder(folder, _train_phase(phase, trained, folder, work, device, workers).save_pretrained)
        trained = AutoencoderKL.from_pretrained(folder).to(device).eval()
    assert trained is not None
    if not (folder := work / "autoencoder").exists():
        images, _ = bank.photographs(bank.train_eyes(work, workers), 64, SEED, 0, device)
        whiten(trained, images)
        write_folder(folder, trained.half().save_pretrained)
    return AutoencoderKL.from_pretrained(folder, torch_dtype=torch.float32).to(device).eval()


def _train_phase(
    phase: Phase, before: AutoencoderKL | None, folder: Path, work: Path, device: str, workers: int
) -> AutoencoderKL:
    eyes, held_out = bank.train_eyes(work, workers), bank.held_out_eyes(work, workers)
    judged, _ = bank.photographs(held_out, 16, SEED, 0, device)
    seed = SEED + PHASES.index(phase)
    torch.manual_seed(seed)
    model = AutoencoderKL(**config()).to(device)
    if before is not None:
        model.load_state_dict(before.state_dict())
    training = keeping.Training(model, folder.with_suffix(".state"), DECAY, AVERAGE)
    averaged = AutoencoderKL(**config()).to(device).eval()
    begun, first, errors = time.time(), training.step, []
    while training.step < phase.steps:
        step = training.step
        images = taught(phase, eyes, seed, step + 1, device)
        loss, error = loss_of(model, images, torch.Generator().manual_seed(seed * 10**9 + step))
        training.update(loss, keeping.learning_rate(step, phase.steps, phase.rate, phase.falling, warmup=200))
        errors.append(error)
        if training.step % KEPT_EVERY == 0 or training.step == phase.steps:
            averaged.load_state_dict(training.averaged)
            training.log(
                psnr_train=float(10 * np.log10(4 / np.mean(errors))),
                psnr_held_out=psnr(averaged, judged),
                seconds_a_step=(time.time() - begun) / (training.step - first),
            )
            errors.clear()
            training.save()
    averaged.load_state_dict(training.averaged)
    return averaged


def taught(phase: Phase, eyes: bank.Bank, seed: int, step: int, device: str) -> torch.Tensor:
    """A batch (BATCH, 3, H, W) in [-1, 1], a function of (seed, step) alone."""
    if not phase.patches:
        return bank.photographs(eyes, BATCH, seed, step, device)[0]
    [image], _ = bank.photographs(eyes, 1, seed, step, device)
    height, width = image.shape[1] // 2, image.shape[2] // 2
    rng = np.random.default_rng([seed, step, 1])
    corners = rng.integers(0, (height // 8 + 1, width // 8 + 1), (BATCH, 2)) * 8
    return torch.stack([image[:, y : y + height, x : x + width] for y, x in corners])


def loss_of(model: AutoencoderKL, images: torch.Tensor, generator: torch.Generator) -> tuple[torch.Tensor, float]:
    """Squared and absolute error, error of local contrast, and a pull of the latents towards N(0, 1).

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
    total = 10 * squared + F.l1_loss(decoded, images) + KL * kl
    total = total + CONTRAST.weight * contrast_error(CONTRAST, decoded, images)
    return total, float(squared.detach())


def contrast_error(contrast: Contrast, decoded: torch.Tensor, images: torch.Tensor) -> torch.Tensor:
    """Mean absolute error of the contrast."""
    fine, made = (_mean(one, contrast.grain) - _mean(one, 11) for one in (images, decoded))
    deviation = _mean(fine**2, 11).mean(dim=1, keepdim=True).sqrt() + contrast.least
    return ((made - fine).abs() / deviation).mean()


def _mean(images: torch.Tensor, size: int) -> torch.Tensor:
    """Over size x size px, twice; one axis after the other."""
    half = size // 2
    for _ in range(2):
        images = F.avg_pool2d(F.pad(images, (half, half, 0, 0), mode="replicate"), (1, size), stride=1)
        images = F.avg_pool2d(F.pad(images, (0, 0, half, half), mode="replicate"), (size, 1), stride=1)
    return images


@torch.no_grad()
def psnr(model: AutoencoderKL, images: torch.Tensor) -> float:
    """Mean over images in [-1, 1] of the peak signal-to-noise ratio, dB."""
    decoded = torch.cat([model.decode(model.encode(one).latent_dist.mean).sample for one in images.split(1)])
    error = ((decoded.clamp(-1, 1) - images) ** 2).mean(dim=(1, 2, 3))
    return float((10 * torch.log10(4 / error)).mean())


@torch.no_grad()
def whiten(model: AutoencoderKL, images: torch.Tensor) -> None:
    """Turn and scale the latents' axes: over these images, drawn latents have mean 0, deviation 1 and no correlation.

    What is decoded stays the same. As learnt, 4 directions of 16, brightness and colour, held 97 % of the variance: a
    denoiser taught by squared error would see little of the others, which are the vessels. The posterior's variance
    counts here, so that what is mostly noise is not blown up; then it goes, because denoisers are to learn the means.
    """
    posteriors = [model.encode(one).latent_dist for one in images.split(1)]
    means = torch.cat([one.mean for one in posteriors]).movedim(1, -1).flatten(0, -2).double()  # (positions, C)
    noise = torch.cat([one.var for one in posteriors]).mean(dim=(0, 2, 3)).double()
    centre = means.mean(0)
    variances, axes = torch.linalg.eigh(means.T.cov() + noise.diag())
    forth, back = (axes @ (variances**power).diag() @ axes.T for power in (-0.5, 0.5))
    channels = len(centre)
    given, taken = model.quant_conv, model.post_quant_conv
    weight, bias = given.weight[..., 0, 0].double(), given.bias.double()
    given.weight[:channels, :, 0, 0] = (forth @ weight[:channels]).float()
    given.bias[:channels] = (forth @ (bias[:channels] - centre)).float()
    given.weight[channels:] = 0
    given.bias[channels:] = SURE
    weight = taken.weight[..., 0, 0].double()
    taken.bias += (weight @ centre).float()
    taken.weight[..., 0, 0] = (weight @ back).float()
    model.register_to_config(scaling_factor=1.0)
