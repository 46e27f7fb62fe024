"""The autoencoder that both bundled bases share: AutoencoderKL, factor 8, on endless phantoms. See make.py."""

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

SEED, BATCH, JUDGED = 11, 2, 8
AVERAGE, DECAY = 0.999, 1e-3
KEPT_EVERY = 1000


@dataclass(frozen=True)
class Phase:
    """So many steps on whole joint images, or on patches of them; the learning rate and the share in which it falls."""

    steps: int
    patches: bool
    rate: float
    falling: float
    warmup: int = 0


PHASES = (
    # A quarter of an image costs a quarter of the time and teaches as much.
    Phase(steps=7500, patches=True, rate=2e-3, falling=0.0, warmup=200),
    # The mean brightness that normalisation sees, the field's rim and the seam are those of whole images.
    Phase(steps=800, patches=False, rate=1.5e-3, falling=0.8),
)
CHANNELS, FACTOR = 16, 8
HIDDEN = 128
"""Channels of the small network that tells vessels from latents."""
SURE = -20.0  # log variance
KL = 5e-4
LEAST = 0.02
"""Added to the local deviation that contrast is measured in."""
FA_COUNTS = 0.3
"""The error of the FA, beside that of the CF: half of it is its background's grain."""
NEAR_COUNTS = 10.0
"""What is near a vessel counts so much more."""
TOLD = 1.0
"""Weight of how badly the latents tell where vessels are."""


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


class Pupil(torch.nn.Module):
    """The autoencoder, and a small network that must tell from its latents where vessels are.

    The thin vessels of a CF are a few grey levels deep. An error of pixels teaches the encoder next to nothing about
    them, however it is weighted; having to tell them from the rest does. The small network is thrown away.
    """

    def __init__(self) -> None:
        super().__init__()
        self.autoencoder = AutoencoderKL(**config())
        self.vessels = torch.nn.Sequential(
            torch.nn.Conv2d(CHANNELS, HIDDEN, 3, padding=1),
            torch.nn.SiLU(),
            torch.nn.Conv2d(HIDDEN, HIDDEN, 3, padding=1),
            torch.nn.SiLU(),
            torch.nn.Conv2d(HIDDEN, FACTOR**2, 1),
            torch.nn.PixelShuffle(FACTOR),
        )


class Pictures(NamedTuple):
    """images and the same without noise in [-1, 1]; vessels 0 or 1; counts: FA_COUNTS in the FA, 1 in the CF.

    noise: standard normal, for the latents.
    """

    images: torch.Tensor  # (B, 3, H, W)
    clean: torch.Tensor  # (B, 3, H, W)
    vessels: torch.Tensor  # (B, 1, H, W)
    counts: torch.Tensor  # (B, 1, H, W)
    noise: torch.Tensor  # (B, CHANNELS, H / FACTOR, W / FACTOR)


def train(work: Path, device: str, workers: int) -> AutoencoderKL:
    """The trained autoencoder, float32; about forty minutes on two idle cores, nothing once it is there."""
    if not (folder := work / "autoencoder").exists():
        trained = _learnt(work, device, workers)
        whiten(trained, bank.photographs(bank.train_eyes(work, workers), 64, SEED, 0, device).joint)
        atomic_write_dir(folder, trained.half().save_pretrained)
    return AutoencoderKL.from_pretrained(folder, torch_dtype=torch.float32).to(device).eval()


def judged(work: Path, device: str, workers: int) -> judge.Shown:
    """What every probe looks at: eyes that are never trained on."""
    return judge.shown_to(bank.photographs(bank.held_out_eyes(work, workers), JUDGED, SEED, 0, device).joint)


def _learnt(work: Path, device: str, workers: int) -> AutoencoderKL:
    eyes = bank.train_eyes(work, workers)
    shown = judged(work, device, workers)
    steps = keeping.numbered(PHASES)
    torch.manual_seed(SEED)
    pupil = Pupil().to(device)
    training = keeping.Training(pupil, work / "autoencoder.state", DECAY, AVERAGE)
    averaged = Pupil().to(device).eval()
    loss_in = keeping.Recorded(lambda phase: Loss(pupil))
    begun, errors = time.time(), []
    while training.step < len(steps):
        phase, within = steps[training.step]
        batch = taught(phase, eyes, training.step + 1, device)
        errors.append(_learn(training, *loss_in(phase, batch), keeping.learning_rate(phase, within)))
        if training.step % KEPT_EVERY == 0 or training.step == len(steps):
            averaged.load_state_dict(training.averaged)
            training.log(
                psnr_train=float(10 * torch.log10(4 / torch.stack(errors).mean())),
                **judge.decoded(averaged.autoencoder, shown),
                seconds=time.time() - begun,
            )
            training.save()
            errors.clear()
            begun = time.time()
    averaged.load_state_dict(training.averaged)
    return averaged.autoencoder


def _learn(training: keeping.Training, loss: torch.Tensor, error: torch.Tensor, rate: float) -> torch.Tensor:
    """Returns the error."""
    training.update(loss, rate)
    return error.clone()  # a recorded loss overwrites its own


def taught(phase: Phase, eyes: bank.Bank, step: int, device: str) -> Pictures:
    """A batch of BATCH pictures, a function of the step alone."""
    count = 1 if phase.patches else BATCH
    seen = bank.photographs(eyes, count, SEED, step, device)
    counts = torch.ones_like(seen.vessels)
    counts[..., bank.VIEW :] = FA_COUNTS
    layers = torch.cat([seen.joint, seen.clean, seen.vessels, counts], dim=1)
    if phase.patches:
        layers = _patches(layers[0], step)
    height, width = layers.shape[2:]
    source = torch.Generator().manual_seed(SEED * 10**9 + step)
    noise = torch.randn((BATCH, CHANNELS, height // FACTOR, width // FACTOR), generator=source)
    return Pictures(*layers.split([3, 3, 1, 1], dim=1), noise.to(device))


def _patches(image: torch.Tensor, step: int) -> torch.Tensor:
    """BATCH parts of (C, H, W), half as high and wide, where latents can begin."""
    height, width = image.shape[1] // 2, image.shape[2] // 2
    rng = np.random.default_rng([SEED, step, 1])
    corners = rng.integers(0, (height // FACTOR + 1, width // FACTOR + 1), (BATCH, 2)) * FACTOR
    return torch.stack([image[:, y : y + height, x : x + width] for y, x in corners])


class Loss(torch.nn.Module):
    """Squared and absolute error, error of local contrast, what latents tell of vessels, and a pull to N(0, 1).

    Also the mean squared error.
    """

    def __init__(self, pupil: Pupil) -> None:
        super().__init__()
        self.pupil = pupil

    def forward(self, *batch: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        seen = Pictures(*batch)
        with torch.autocast(seen.images.device.type, torch.bfloat16, cache_enabled=False):
            posterior = self.pupil.autoencoder.encode(seen.images).latent_dist
            mean, logvar = posterior.mean.float(), posterior.logvar.float()
            latents = mean + torch.exp(0.5 * logvar) * seen.noise
            decoded, told = self.pupil.autoencoder.decode(latents).sample, self.pupil.vessels(latents)
        total = error_of(decoded.float(), seen.clean, seen)
        kl = 0.5 * (mean**2 + logvar.exp() - 1 - logvar).mean()
        error = ((decoded.detach().float() - seen.clean) ** 2).mean()
        return total + KL * kl + TOLD * _missed(told.float(), seen), error


def error_of(decoded: torch.Tensor, clean: torch.Tensor, seen: Pictures) -> torch.Tensor:
    """Squared and absolute error and that of local contrast; what is near a vessel, and the CF, counts more."""
    error, near = decoded - clean, F.max_pool2d(seen.vessels, 3, stride=1, padding=1)
    weight = seen.counts * (1 + NEAR_COUNTS * near)
    return (weight / weight.mean() * (10 * error**2 + error.abs() + _contrast(decoded, clean))).mean()


def _contrast(decoded: torch.Tensor, clean: torch.Tensor) -> torch.Tensor:
    """Absolute error of what is finer than about 10 px, in units of its local deviation, each (B, 3, H, W)."""
    made, fine = (one - _mean(one, 11) for one in (decoded, clean))
    return (made - fine).abs() / (_mean(fine**2, 11).mean(dim=1, keepdim=True).sqrt() + LEAST)


def _missed(told: torch.Tensor, seen: Pictures) -> torch.Tensor:
    """Cross-entropy of vessel or not; vessels, which are few, count three times, and the CF more than the FA."""
    rare = told.new_full((), 3.0)
    return F.binary_cross_entropy_with_logits(told, seen.vessels, seen.counts, pos_weight=rare)


def _mean(images: torch.Tensor, size: int) -> torch.Tensor:
    """Over size x size px, twice; one axis after the other."""
    half = size // 2
    for _ in range(2):
        images = F.avg_pool2d(F.pad(images, (half, half, 0, 0), mode="replicate"), (1, size), stride=1)
        images = F.avg_pool2d(F.pad(images, (0, 0, half, half), mode="replicate"), (size, 1), stride=1)
    return images


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
