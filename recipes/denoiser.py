"""A bundled base's UNet, from nothing or from another's weights, on latents of phantoms. See make.py."""

import time
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import bank
import folders
import judge
import keeping
import latents
import numpy as np
import torch
from diffusers import AutoencoderKL, UNet2DConditionModel
from diffusers.models.attention_processor import AttnProcessor
from torch.nn import functional as F

from retipair.config import DEFAULT_PROMPT
from retipair.data.layout import Layout
from retipair.data.pair import Pair
from retipair.diffusion.halves import mean_per_half
from retipair.diffusion.losses import Objective
from retipair.diffusion.noise import clean_halves, noise_like, with_clean_halves
from retipair.generation.pair_generator import PairGenerator
from retipair.models.base import open_base
from retipair.models.conditioning import Conditioning, encode_prompts
from retipair.models.denoiser import Denoiser
from retipair.models.vae import weights_sha256
from retipair.runtime.parallel import parallel_map

SEED = 31
AVERAGE, DECAY = 0.999, 1e-2
PHOTOGRAPHS = {"tiny-sdxl": 8000, "tiny-sd15": 4000}
LOGGED_EVERY, KEPT_EVERY, PROBED, PROBE_STEPS = 100, 500, 8, 50


@dataclass(frozen=True)
class Phase:
    """So many steps with so many pairs each; the learning rate rises in `warmup` steps and falls in the last share.

    lateness: of samples without a clean half; t is 1000 u^(1 / lateness), u uniform. What is large is decided late.
    coarse: the weight of the error of what is coarser than 4 latent pixels, which that of the finest detail drowns.
    """

    steps: int
    batch: int
    lateness: float
    coarse: float
    warmup: int = 0
    falling: float = 0.0
    rate: float = 6e-4


PHASES = {
    "tiny-sdxl": (
        Phase(steps=2000, batch=4, lateness=1, coarse=0, warmup=200),
        Phase(steps=1000, batch=8, lateness=1, coarse=4),
        Phase(steps=2000, batch=8, lateness=1.5, coarse=4, falling=0.75),
        # Details are there; where disc and arcades lie is still decided badly, and that is decided last of all.
        Phase(steps=1600, batch=8, lateness=4, coarse=8, warmup=100, falling=0.5),
        Phase(steps=3000, batch=16, lateness=3, coarse=8, warmup=100, falling=0.7),
    ),
    # From the other's weights: it knows eyes, and learns that they are narrower.
    "tiny-sd15": (
        Phase(steps=500, batch=4, lateness=1.5, coarse=4, warmup=200),
        Phase(steps=1000, batch=8, lateness=2.5, coarse=6, falling=0.6),
    ),
}
HALF_CLEAN, HALF_CLEAN_LATENESS = 0.5, 2.0
"""The share of samples with one view left clean; the later, the less the other says of itself: it is read across."""
GUIDED, COMPILED = 0.05, True
PLAIN, UNPROMPTED = 0.45, 0.10
"""Shares of samples with the tool's own prompt, and with none; the others hear what they are."""


class Guide:
    """Tells attention to look at the same place in the other half, where it is too rarely found by itself.

    The cross-entropy of the first head's attention, of the first layer of every block on the way up that has one
    (guided attention: Tachibana et al. 2018, arXiv 1710.08969). A convolutional network knows its place only by its
    borders: without this, after 4,500 steps, it could not even copy one half into the other.
    """

    ROWS = 2
    """Of a batch: the place is the same in all."""

    def __init__(self, unet: UNet2DConditionModel) -> None:
        self._seen: dict[int, torch.Tensor] = {}
        self._layers = [block.attentions[0] for block in unet.up_blocks if getattr(block, "attentions", None)]
        for number, layer in enumerate(self._layers):
            layer.proj_in.register_forward_hook(partial(self._see, number))

    def _see(self, number: int, module: torch.nn.Module, given: object, hidden: torch.Tensor) -> None:
        self._seen[number] = hidden[: self.ROWS]

    def losses(self, aspect: float) -> torch.Tensor:
        """Of each layer, coarse to fine, (layers,); after a forward pass on latents `aspect` times as wide as high."""
        seen, self._seen = self._seen, {}
        return torch.stack([self._loss(layer, seen[n], aspect) for n, layer in enumerate(self._layers)])

    def _loss(self, layer: torch.nn.Module, hidden: torch.Tensor, aspect: float) -> torch.Tensor:
        block = layer.transformer_blocks[0]
        attention, tokens = block.attn1, hidden.shape[1]  # hidden: (ROWS, tokens, channels)
        width = round((tokens * aspect) ** 0.5)
        place = torch.arange(tokens, device=hidden.device).view(-1, width)
        counterpart = place.roll(width // 2, dims=1).flatten()
        normed, head = block.norm1(hidden), attention.inner_dim // attention.heads
        query, key = attention.to_q(normed)[..., :head], attention.to_k(normed)[..., :head]
        logits = (query @ key.mT).float() * attention.scale
        return F.cross_entropy(logits.flatten(0, 1), counterpart.repeat(len(hidden)))


class Lesson:
    """Everything fixed before the first step."""

    def __init__(self, name: str, work: Path, data: latents.Latents, vae: AutoencoderKL, device: str) -> None:
        self.device, self.vae, self.captions = device, vae, data.captions
        self.values = torch.from_numpy(data.values).to(device)
        self.steps = keeping.numbered(PHASES[name])
        folder = work / f"{name}-empty"  # its text encoders and its sampler are what is wanted
        folders.write_base(folder, name, folders.new_unet(name), vae)
        self.base = open_base(str(folder))
        self.layout = Layout(self.base.family.layout, bank.VIEW)
        self.prompts = [DEFAULT_PROMPT, *sorted(set(data.captions))]
        self.heard = encode_prompts(self.base, self.prompts, self.layout.joint_size, device)
        self.objective = Objective(self.base.schedule, terms={})

    def denoiser(self, unet: UNet2DConditionModel) -> Denoiser:
        return Denoiser(unet, torch.float32, self.device)

    def draw(self, step: int) -> list[torch.Tensor]:
        """A function of the step alone: latents, noise, both as t says, t, which halves are clean, what is heard."""
        phase, _ = self.steps[step]
        count = phase.batch
        keys = [(SEED, "sample", step, row) for row in range(count)]
        rng = np.random.default_rng([SEED, step])
        chosen = rng.integers(len(self.values), size=count)
        values = self.values[chosen].float()
        rows = [self._prompt(index, share) for index, share in zip(chosen, rng.random(count), strict=True)]
        clean = clean_halves(HALF_CLEAN, torch.device(self.device), *((*key, "clean") for key in keys))
        u = torch.from_numpy((rng.permutation(count) + rng.random(count)) / count).to(self.device)
        lateness = torch.where(clean.any(dim=1), HALF_CLEAN_LATENESS, phase.lateness)
        t = (1000 * u ** (1 / lateness)).long()
        noise = noise_like(values, *keys)
        noisy = with_clean_halves(self.base.schedule.add_noise(values, noise, t), values, clean)
        heard = [one for one in vars(self.heard.rows(rows)).values() if one is not None]
        return [values, noise, noisy, t, clean, *heard]

    def _prompt(self, index: int, share: float) -> int:
        if share < UNPROMPTED:
            return len(self.prompts)
        return 0 if share < UNPROMPTED + PLAIN else self.prompts.index(self.captions[index])

    @torch.no_grad()
    def looking_across(self, unet: UNet2DConditionModel) -> dict[str, float]:
        """Error of one half at t = 700 beside the other half clean: its own, and another eye's."""
        own, other = [], []
        for start in range(0, 4 * PROBED, PROBED):
            values = self.values[start : start + PROBED].float()
            t = torch.full((PROBED,), 700, device=self.device)
            noise = noise_like(values, *((SEED, "across", start + row) for row in range(PROBED)))
            noisy = self.base.schedule.add_noise(values, noise, t)
            for half in (0, 1):
                clean = torch.zeros(PROBED, 2, dtype=torch.bool, device=self.device)
                clean[:, half] = True
                for errors, beside in ((own, values), (other, values.roll(1, dims=0))):
                    with torch.autocast(torch.device(self.device).type, torch.bfloat16):
                        prediction = self.denoiser(unet)(
                            with_clean_halves(noisy, beside, clean), t, self.heard.rows([0] * PROBED)
                        )
                    mse = self.objective(prediction, noisy, values, noise, t, clean).values["mse"]
                    errors.append(float(mse[:, 1 - half].mean()))
        return {"own": float(np.mean(own)), "other": float(np.mean(other))}

    def paint(self, unet: UNet2DConditionModel, count: int) -> list[Pair]:
        painter = PairGenerator(self.base, self.layout, self.denoiser(unet), self.vae, "ddpm", PROBE_STEPS)
        with torch.autocast(torch.device(self.device).type, torch.bfloat16):
            return judge.painted(painter, self.heard.rows([0]), count)


class Loss(torch.nn.Module):
    """Of a batch of a lesson's: of the prediction, and of each guided layer."""

    def __init__(self, lesson: Lesson, unet: UNet2DConditionModel, guide: Guide, coarse: float) -> None:
        super().__init__()
        self.lesson, self.unet, self.guide, self.coarse = lesson, unet, guide, coarse

    def forward(self, *batch: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        values, noise, noisy, t, clean, *heard = batch
        counts = (~clean).float()
        with torch.autocast(values.device.type, torch.bfloat16, cache_enabled=False):
            prediction = self.lesson.denoiser(self.unet)(noisy, t, Conditioning(*heard))
            guidance = self.guide.losses(noisy.shape[-1] / noisy.shape[-2])
        fine = self.lesson.objective(prediction, noisy, values, noise, t, clean).total
        error = prediction - self.lesson.base.schedule.target(values, noise, t)
        coarse = (mean_per_half(F.avg_pool2d(error, 4) ** 2) * counts).sum() / counts.sum()
        return fine + self.coarse * coarse, guidance


def train(
    name: str, work: Path, vae: AutoencoderKL, device: str, workers: int, start: Path | None, done: int = 0
) -> UNet2DConditionModel:
    """The trained UNet, float32; hours on two cores.

    start: a base whose UNet's weights, where they fit, are kept; done: the steps that these have behind them already.
    """
    layout = open_base(f"random:{name}").family.layout
    seen = work / f"latents-{layout}-{weights_sha256(vae, vae.state_dict())[:8]}"
    data = latents.fill(seen, PHOTOGRAPHS[name], bank.train_eyes(work, workers), vae, layout, device)
    torch.manual_seed(SEED)
    unet = folders.new_unet(name).to(device)
    if start:
        _take_over(unet, start)
    if device == "cpu":
        unet.set_attn_processor(AttnProcessor())  # with one head and bfloat16 faster there than the fused kernel
    if COMPILED and device == "cpu":
        unet.compile_repeated_blocks(dynamic=False)  # each batch size by itself, so that a resumed step is the same
    guide = Guide(unet)
    origin = f"{open_base(str(start)).fingerprint()} after {done} steps" if start else ""
    training = keeping.Training(unet, work / f"{name}.state", DECAY, AVERAGE, done, origin)
    averaged = folders.new_unet(name).to(device).eval()
    lesson = Lesson(name, work, data, vae, device)
    loss_in = keeping.Recorded(lambda phase: Loss(lesson, unet, guide, phase.coarse))
    total, losses = len(lesson.steps), []
    begun = time.time()
    while training.step < total:
        phase, within = lesson.steps[training.step]
        batch = lesson.draw(training.step)
        losses.append(_learn(training, *loss_in(phase, batch), keeping.learning_rate(phase, within)))
        if training.step % LOGGED_EVERY == 0 or training.step == total:
            mean_loss, *looked = torch.stack(losses).mean(0).tolist()
            figures = {"loss": mean_loss, "guide": looked, "seconds": time.time() - begun}
            if training.step % KEPT_EVERY == 0 or training.step == total:
                averaged.load_state_dict(training.averaged)
                drawn = lesson.paint(averaged, PROBED)
                figures |= lesson.looking_across(averaged) | judge.agreement(list(parallel_map(judge.looked_at, drawn)))
                judge.grid(drawn, columns=2).save(work / f"{name}_{training.step:06d}.png")
                training.save()
            training.log(**figures)
            losses.clear()
            begun = time.time()
    averaged.load_state_dict(training.averaged)
    return averaged


def _learn(training: keeping.Training, loss: torch.Tensor, guidance: torch.Tensor, rate: float) -> torch.Tensor:
    """Returns the losses, (1 + layers,)."""
    training.update(loss + GUIDED * guidance.mean(), rate)
    return torch.cat([loss[None], guidance]).detach()


def _take_over(unet: UNet2DConditionModel, start: Path) -> None:
    """Start from another base's weights, where shapes agree."""
    source, own = open_base(str(start)).unet().state_dict(), unet.state_dict()
    own.update({name: value for name, value in source.items() if name in own and own[name].shape == value.shape})
    unet.load_state_dict(own)
