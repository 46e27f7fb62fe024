"""Train the autoencoder that both bundled bases share: AutoencoderKL, factor 8, on new photographs in every step."""

import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import bank
import judge
import keeping
import numpy as np
import torch
from diffusers import AutoencoderKL
from torch.nn import functional as F

from retipair.runtime.atomic_io import atomic_write_dir

SEED, BATCH_SIZE, EVAL_PAIRS = 11, 2, 8
EMA_DECAY, WEIGHT_DECAY = 0.999, 1e-3
SAVE_EVERY = 1000


@dataclass(frozen=True)
class Phase:
    """A training phase, on whole joint images or on patches of them; see `keeping.Phase`."""

    steps: int
    patches: bool
    learning_rate: float
    decay_fraction: float
    warmup_steps: int = 0


PHASES = (
    # Patches of a quarter of an image are as effective as whole images, in a quarter of the time.
    Phase(steps=7500, patches=True, learning_rate=2e-3, decay_fraction=0.0, warmup_steps=200),
    # Whole images differ from patches: in the statistics of group normalisation, and in the field's rim and the seam.
    Phase(steps=800, patches=False, learning_rate=1.5e-3, decay_fraction=0.8),
)
CHANNELS, FACTOR = 16, 8
HEAD_CHANNELS = 128
"""Hidden channels of the vessel head."""
LOG_VARIANCE = -20.0
"""Of the posterior, after whitening."""
KL_WEIGHT = 5e-4
MIN_DEVIATION = 0.02
"""Added to the local standard deviation by which the contrast error is divided."""
FA_WEIGHT = 0.3
"""Weight of FA errors relative to CF errors. Half of the FA error comes from the texture of its background."""
VESSEL_PIXEL_WEIGHT = 10.0
"""Additional weight of pixels on or next to a vessel."""
VESSEL_LOSS_WEIGHT = 1.0


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
        "mid_block_add_attention": False,  # convolutions alone generalise to other positions and image sizes
        "force_upcast": False,
    }


class AutoencoderWithVesselHead(torch.nn.Module):
    """The autoencoder, and a small network that segments vessels from its latents.

    Thin vessels of a CF have a contrast of a few grey levels. Pixel errors hardly train the encoder to preserve them,
    however they are weighted; the loss of the vessel head does. The head is discarded after training.
    """

    def __init__(self) -> None:
        super().__init__()
        self.autoencoder = AutoencoderKL(**config())
        self.vessels = torch.nn.Sequential(
            torch.nn.Conv2d(CHANNELS, HEAD_CHANNELS, 3, padding=1),
            torch.nn.SiLU(),
            torch.nn.Conv2d(HEAD_CHANNELS, HEAD_CHANNELS, 3, padding=1),
            torch.nn.SiLU(),
            torch.nn.Conv2d(HEAD_CHANNELS, FACTOR**2, 1),
            torch.nn.PixelShuffle(FACTOR),
        )


class Batch(NamedTuple):
    """A training batch.

    images: in [-1, 1]. clean: the same without sensor noise. vessels: 0 or 1. weights: FA_WEIGHT in the FA, 1 in the
    CF. noise: standard normal, to sample the latents.
    """

    images: torch.Tensor  # (B, 3, H, W)
    clean: torch.Tensor  # (B, 3, H, W)
    vessels: torch.Tensor  # (B, 1, H, W)
    weights: torch.Tensor  # (B, 1, H, W)
    noise: torch.Tensor  # (B, CHANNELS, H / FACTOR, W / FACTOR)


def train(work: Path, device: str, workers: int) -> AutoencoderKL:
    """Return the autoencoder in float32. Train it first if it is missing.

    Training takes about forty minutes on two idle cores.
    """
    if not (folder := work / "autoencoder").exists():
        model = _train(work, device, workers)
        whiten(model, bank.render_photographs(bank.train_eyes(work, workers), 64, SEED, 0, device).joint)
        atomic_write_dir(folder, model.half().save_pretrained)
    return AutoencoderKL.from_pretrained(folder, torch_dtype=torch.float32).to(device).eval()


def evaluation_set(work: Path, device: str, workers: int) -> judge.EvaluationSet:
    """Return the images of held-out eyes by which the autoencoder is evaluated during training."""
    eyes = bank.held_out_eyes(work, workers)
    return judge.evaluation_set(bank.render_photographs(eyes, EVAL_PAIRS, SEED, 0, device).joint)


def _train(work: Path, device: str, workers: int) -> AutoencoderKL:
    eyes = bank.train_eyes(work, workers)
    held_out = evaluation_set(work, device, workers)
    steps = keeping.enumerate_steps(PHASES)
    torch.manual_seed(SEED)
    model = AutoencoderWithVesselHead().to(device)
    training = keeping.Training(model, work / "autoencoder.state", WEIGHT_DECAY, EMA_DECAY)
    averaged = AutoencoderWithVesselHead().to(device).eval()
    compute_loss = keeping.CudaGraphLoss(lambda phase: Loss(model))
    started, errors = time.time(), []
    while training.step < len(steps):
        phase, index = steps[training.step]
        batch = draw_batch(phase, eyes, training.step + 1, device)
        errors.append(_update(training, *compute_loss(phase, batch), keeping.learning_rate(phase, index)))
        if training.step % SAVE_EVERY == 0 or training.step == len(steps):
            averaged.load_state_dict(training.averaged)
            training.log(
                psnr_train=float(10 * torch.log10(4 / torch.stack(errors).mean())),
                **judge.reconstruction_metrics(averaged.autoencoder, held_out),
                seconds=time.time() - started,
            )
            training.save()
            errors.clear()
            started = time.time()
    averaged.load_state_dict(training.averaged)
    return averaged.autoencoder


def _update(training: keeping.Training, loss: torch.Tensor, error: torch.Tensor, learning_rate: float) -> torch.Tensor:
    """Update the weights and return the error."""
    training.update(loss, learning_rate)
    return error.clone()  # a CUDA graph overwrites its outputs in the next step


def draw_batch(phase: Phase, eyes: bank.EyeMaps, step: int, device: str) -> Batch:
    """Render a batch of BATCH_SIZE images or patches, as a function of the step."""
    count = 1 if phase.patches else BATCH_SIZE
    photographs = bank.render_photographs(eyes, count, SEED, step, device)
    weights = torch.ones_like(photographs.vessels)
    weights[..., bank.VIEW :] = FA_WEIGHT
    layers = torch.cat([photographs.joint, photographs.clean, photographs.vessels, weights], dim=1)
    if phase.patches:
        layers = _crop_patches(layers[0], step)
    height, width = layers.shape[2:]
    generator = torch.Generator().manual_seed(SEED * 10**9 + step)
    noise = torch.randn((BATCH_SIZE, CHANNELS, height // FACTOR, width // FACTOR), generator=generator)
    return Batch(*layers.split([3, 3, 1, 1], dim=1), noise.to(device))


def _crop_patches(image: torch.Tensor, step: int) -> torch.Tensor:
    """Crop BATCH_SIZE patches of half the height and width of (C, H, W), aligned with the latent pixels."""
    height, width = image.shape[1] // 2, image.shape[2] // 2
    rng = np.random.default_rng([SEED, step, 1])
    corners = rng.integers(0, (height // FACTOR + 1, width // FACTOR + 1), (BATCH_SIZE, 2)) * FACTOR
    return torch.stack([image[:, y : y + height, x : x + width] for y, x in corners])


class Loss(torch.nn.Module):
    """Compute the training loss and, for the log, the mean squared error.

    The loss is the weighted sum of the reconstruction loss, the KL divergence from N(0, 1) and the vessel loss.
    """

    def __init__(self, model: AutoencoderWithVesselHead) -> None:
        super().__init__()
        self.model = model

    def forward(self, *tensors: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        batch = Batch(*tensors)
        with torch.autocast(batch.images.device.type, torch.bfloat16, cache_enabled=False):
            posterior = self.model.autoencoder.encode(batch.images).latent_dist
            mean, logvar = posterior.mean.float(), posterior.logvar.float()
            latents = mean + torch.exp(0.5 * logvar) * batch.noise
            decoded, logits = self.model.autoencoder.decode(latents).sample, self.model.vessels(latents)
        reconstruction = reconstruction_loss(decoded.float(), batch.clean, batch)
        kl = 0.5 * (mean**2 + logvar.exp() - 1 - logvar).mean()
        mse = ((decoded.detach().float() - batch.clean) ** 2).mean()
        return reconstruction + KL_WEIGHT * kl + VESSEL_LOSS_WEIGHT * _vessel_loss(logits.float(), batch), mse


def reconstruction_loss(decoded: torch.Tensor, clean: torch.Tensor, batch: Batch) -> torch.Tensor:
    """Return the squared, absolute and contrast error, with higher weights near vessels and in the CF."""
    error, near_vessel = decoded - clean, F.max_pool2d(batch.vessels, 3, stride=1, padding=1)
    weight = batch.weights * (1 + VESSEL_PIXEL_WEIGHT * near_vessel)
    return (weight / weight.mean() * (10 * error**2 + error.abs() + _contrast_error(decoded, clean))).mean()


def _contrast_error(decoded: torch.Tensor, clean: torch.Tensor) -> torch.Tensor:
    """Return the absolute error of details finer than about 10 px, relative to their local standard deviation.

    All tensors are (B, 3, H, W).
    """
    predicted, target = (images - _local_mean(images, 11) for images in (decoded, clean))
    deviation = _local_mean(target**2, 11).mean(dim=1, keepdim=True).sqrt()
    return (predicted - target).abs() / (deviation + MIN_DEVIATION)


def _vessel_loss(logits: torch.Tensor, batch: Batch) -> torch.Tensor:
    """Return the cross-entropy of the vessel head.

    Vessel pixels, which are few, have three times the weight of others. The CF has a higher weight than the FA.
    """
    pos_weight = logits.new_full((), 3.0)
    return F.binary_cross_entropy_with_logits(logits, batch.vessels, batch.weights, pos_weight=pos_weight)


def _local_mean(images: torch.Tensor, size: int) -> torch.Tensor:
    """Average over size x size px, twice. The axes are averaged one after the other."""
    half = size // 2
    for _ in range(2):
        images = F.avg_pool2d(F.pad(images, (half, half, 0, 0), mode="replicate"), (1, size), stride=1)
        images = F.avg_pool2d(F.pad(images, (0, 0, half, half), mode="replicate"), (size, 1), stride=1)
    return images


@torch.no_grad()
def whiten(model: AutoencoderKL, images: torch.Tensor) -> None:
    """Whiten the latents of a model, in place: mean 0, standard deviation 1 and no correlation over these images.

    The transform is folded into the 1x1 convolutions before and after the latents, so decoded images do not change.
    Without whitening, 4 of 16 directions, which encode brightness and colour, held 97 % of the variance. The others
    encode the vessels, to which the squared error of a denoiser is then hardly sensitive.

    The covariance includes the variance of the posterior, so that directions with mostly noise are not amplified. The
    variance of the posterior is then set to almost 0, because denoisers are trained on the means.
    """
    posteriors = [model.encode(image).latent_dist for image in images.split(1)]
    means = torch.cat([posterior.mean for posterior in posteriors])
    means = means.movedim(1, -1).flatten(0, -2).double()  # (positions, C)
    variance = torch.cat([posterior.var for posterior in posteriors]).mean(dim=(0, 2, 3)).double()
    centre = means.mean(0)
    eigenvalues, axes = torch.linalg.eigh(means.T.cov() + variance.diag())
    whitening, inverse = (axes @ (eigenvalues**power).diag() @ axes.T for power in (-0.5, 0.5))
    channels = len(centre)
    before, after = model.quant_conv, model.post_quant_conv
    weight, bias = before.weight[..., 0, 0].double(), before.bias.double()
    before.weight[:channels, :, 0, 0] = (whitening @ weight[:channels]).float()
    before.bias[:channels] = (whitening @ (bias[:channels] - centre)).float()
    before.weight[channels:] = 0
    before.bias[channels:] = LOG_VARIANCE
    weight = after.weight[..., 0, 0].double()
    after.bias += (weight @ centre).float()
    after.weight[..., 0, 0] = (weight @ inverse).float()
    model.register_to_config(scaling_factor=1.0)
