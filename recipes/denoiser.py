"""Train the UNet of a bundled base on latents of phantoms, from scratch or from the weights of another base."""

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

SEED = 31
EMA_DECAY, WEIGHT_DECAY = 0.999, 1e-2
IMAGES = {"tiny-sdxl": 8000, "tiny-sd15": 4000}
LOG_EVERY, SAVE_EVERY, EVAL_PAIRS, SAMPLING_STEPS = 100, 500, 8, 50


@dataclass(frozen=True)
class Phase:
    """A training phase; see `keeping.Phase`. batch_size: number of pairs per step.

    timestep_bias: samples without a clean half get t = 1000 u^(1 / timestep_bias), u uniform. Above 1, high timesteps,
    which determine large structures, are drawn more often.
    coarse_weight: weight of the squared error after averaging over 4 x 4 latent pixels. The finest detail dominates the
    error without it.
    """

    steps: int
    batch_size: int
    timestep_bias: float
    coarse_weight: float
    warmup_steps: int = 0
    decay_fraction: float = 0.0
    learning_rate: float = 6e-4


PHASES = {
    "tiny-sdxl": (
        Phase(steps=2000, batch_size=4, timestep_bias=1, coarse_weight=0, warmup_steps=200),
        Phase(steps=1000, batch_size=8, timestep_bias=1, coarse_weight=4),
        Phase(steps=2000, batch_size=8, timestep_bias=1.5, coarse_weight=4, decay_fraction=0.75),
        # Details are learnt by now. The positions of disc and arcades are not; the highest timesteps determine them.
        Phase(steps=1600, batch_size=8, timestep_bias=4, coarse_weight=8, warmup_steps=100, decay_fraction=0.5),
        Phase(steps=3000, batch_size=16, timestep_bias=3, coarse_weight=8, warmup_steps=100, decay_fraction=0.7),
    ),
    # Started from the weights of tiny-sdxl, the network only has to learn the squeezed layout.
    "tiny-sd15": (
        Phase(steps=500, batch_size=4, timestep_bias=1.5, coarse_weight=4, warmup_steps=200),
        Phase(steps=1000, batch_size=8, timestep_bias=2.5, coarse_weight=6, decay_fraction=0.6),
    ),
}
HALF_CLEAN_FRACTION, HALF_CLEAN_TIMESTEP_BIAS = 0.5, 2.0
"""Fraction of samples with one clean half, and their timestep bias.

At high timesteps the noisy half contains little information of its own, so the network must use the clean half.
"""
ATTENTION_LOSS_WEIGHT = 0.05
COMPILE = True
DEFAULT_PROMPT_FRACTION, UNCONDITIONAL_FRACTION = 0.45, 0.10
"""Fractions of samples with the default prompt and with no prompt; the others have their own caption."""


class GuidedAttention:
    """Compute a loss that guides self-attention to the same position in the other half.

    It is the cross-entropy of the first head's attention, in the first attention layer of each up block that has one
    (guided attention: Tachibana et al. 2018, arXiv 1710.08969). A convolutional network can infer positions only from
    the image borders. Without this loss, it could not even copy one half into the other after 4,500 steps.
    """

    SAMPLES = 2
    """Number of samples of a batch that are used; the target is the same for all."""

    def __init__(self, unet: UNet2DConditionModel) -> None:
        self._hidden_states: dict[int, torch.Tensor] = {}
        self._layers = [block.attentions[0] for block in unet.up_blocks if getattr(block, "attentions", None)]
        for index, layer in enumerate(self._layers):
            layer.proj_in.register_forward_hook(partial(self._store, index))

    def _store(self, index: int, module: torch.nn.Module, inputs: object, output: torch.Tensor) -> None:
        self._hidden_states[index] = output[: self.SAMPLES]

    def losses(self, aspect: float) -> torch.Tensor:
        """Return the loss of each layer, coarse to fine, (layers,), for the last forward pass.

        aspect: width / height of the latents.
        """
        hidden_states, self._hidden_states = self._hidden_states, {}
        return torch.stack([self._loss(layer, hidden_states[i], aspect) for i, layer in enumerate(self._layers)])

    def _loss(self, layer: torch.nn.Module, hidden: torch.Tensor, aspect: float) -> torch.Tensor:
        block = layer.transformer_blocks[0]
        attention, tokens = block.attn1, hidden.shape[1]  # hidden: (SAMPLES, tokens, channels)
        width = round((tokens * aspect) ** 0.5)
        positions = torch.arange(tokens, device=hidden.device).view(-1, width)
        target = positions.roll(width // 2, dims=1).flatten()
        normed, head = block.norm1(hidden), attention.inner_dim // attention.heads
        query, key = attention.to_q(normed)[..., :head], attention.to_k(normed)[..., :head]
        logits = (query @ key.mT).float() * attention.scale
        return F.cross_entropy(logits.flatten(0, 1), target.repeat(len(hidden)))


class TrainingSetup:
    """Data, conditioning and objective of a training: everything except the UNet."""

    def __init__(self, name: str, work: Path, data: latents.Latents, vae: AutoencoderKL, device: str) -> None:
        self.device, self.vae, self.captions = device, vae, data.captions
        self.latents = torch.from_numpy(data.values).to(device)
        self.steps = keeping.enumerate_steps(PHASES[name])
        folder = work / f"{name}-empty"  # for its text encoders and its scheduler; the UNet is not used
        folders.write_base(folder, name, folders.new_unet(name), vae)
        self.base = open_base(str(folder))
        self.layout = Layout(self.base.family.layout, bank.VIEW)
        self.prompts = [DEFAULT_PROMPT, *sorted(set(data.captions))]
        self.conditioning = encode_prompts(self.base, self.prompts, self.layout.joint_size, device)
        self.objective = Objective(self.base.schedule, terms={})

    def denoiser(self, unet: UNet2DConditionModel) -> Denoiser:
        return Denoiser(unet, torch.float32, self.device)

    def draw_batch(self, step: int) -> list[torch.Tensor]:
        """Draw a batch, as a function of the step.

        Returns latents, noise, noisy latents, t, clean halves, and the tensors of the conditioning.
        """
        phase, _ = self.steps[step]
        count = phase.batch_size
        keys = [(SEED, "sample", step, row) for row in range(count)]
        rng = np.random.default_rng([SEED, step])
        indices = rng.integers(len(self.latents), size=count)
        values = self.latents[indices].float()
        rows = [self._prompt_row(index, u) for index, u in zip(indices, rng.random(count), strict=True)]
        clean = clean_halves(HALF_CLEAN_FRACTION, torch.device(self.device), *((*key, "clean") for key in keys))
        uniform = torch.from_numpy((rng.permutation(count) + rng.random(count)) / count).to(self.device)  # stratified
        bias = torch.where(clean.any(dim=1), HALF_CLEAN_TIMESTEP_BIAS, phase.timestep_bias)
        t = (1000 * uniform ** (1 / bias)).long()
        noise = noise_like(values, *keys)
        noisy = with_clean_halves(self.base.schedule.add_noise(values, noise, t), values, clean)
        conditioning = [tensor for tensor in vars(self.conditioning.rows(rows)).values() if tensor is not None]
        return [values, noise, noisy, t, clean, *conditioning]

    def _prompt_row(self, index: int, uniform: float) -> int:
        """Return the row of the conditioning for an image, chosen by a uniform random number."""
        if uniform < UNCONDITIONAL_FRACTION:
            return len(self.prompts)
        if uniform < UNCONDITIONAL_FRACTION + DEFAULT_PROMPT_FRACTION:
            return 0
        return self.prompts.index(self.captions[index])

    @torch.no_grad()
    def half_clean_errors(self, unet: UNet2DConditionModel) -> dict[str, float]:
        """Return the error of a half at t = 700 if the other half is clean.

        own: the clean half is of the same eye; other: of another eye.
        """
        own, other = [], []
        for start in range(0, 4 * EVAL_PAIRS, EVAL_PAIRS):
            values = self.latents[start : start + EVAL_PAIRS].float()
            t = torch.full((EVAL_PAIRS,), 700, device=self.device)
            noise = noise_like(values, *((SEED, "across", start + row) for row in range(EVAL_PAIRS)))
            noisy = self.base.schedule.add_noise(values, noise, t)
            for half in (0, 1):
                clean = torch.zeros(EVAL_PAIRS, 2, dtype=torch.bool, device=self.device)
                clean[:, half] = True
                for errors, clean_values in ((own, values), (other, values.roll(1, dims=0))):
                    with torch.autocast(torch.device(self.device).type, torch.bfloat16):
                        prediction = self.denoiser(unet)(
                            with_clean_halves(noisy, clean_values, clean), t, self.conditioning.rows([0] * EVAL_PAIRS)
                        )
                    mse = self.objective(prediction, noisy, values, noise, t, clean).values["mse"]
                    errors.append(float(mse[:, 1 - half].mean()))
        return {"own": float(np.mean(own)), "other": float(np.mean(other))}

    def generate(self, unet: UNet2DConditionModel, count: int) -> list[Pair]:
        """Generate pairs with the default prompt."""
        generator = PairGenerator(self.base, self.layout, self.denoiser(unet), self.vae, "ddpm", SAMPLING_STEPS)
        with torch.autocast(torch.device(self.device).type, torch.bfloat16):
            return judge.generate_pairs(generator, self.conditioning.rows([0]), count)


class Loss(torch.nn.Module):
    """Compute the denoising loss of a batch, and the guided attention loss of each layer."""

    def __init__(
        self, setup: TrainingSetup, unet: UNet2DConditionModel, attention: GuidedAttention, coarse_weight: float
    ) -> None:
        super().__init__()
        self.setup, self.unet, self.attention, self.coarse_weight = setup, unet, attention, coarse_weight

    def forward(self, *batch: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        values, noise, noisy, t, clean, *conditioning = batch
        counts = (~clean).float()
        with torch.autocast(values.device.type, torch.bfloat16, cache_enabled=False):
            prediction = self.setup.denoiser(self.unet)(noisy, t, Conditioning(*conditioning))
            attention = self.attention.losses(noisy.shape[-1] / noisy.shape[-2])
        fine = self.setup.objective(prediction, noisy, values, noise, t, clean).total
        error = prediction - self.setup.base.schedule.target(values, noise, t)
        coarse = (mean_per_half(F.avg_pool2d(error, 4) ** 2) * counts).sum() / counts.sum()
        return fine + self.coarse_weight * coarse, attention


def train(
    name: str, work: Path, vae: AutoencoderKL, device: str, workers: int, start: Path | None, done: int = 0
) -> UNet2DConditionModel:
    """Train the UNet of a base, or resume, and return it in float32. Takes hours on two cores.

    start: a base whose UNet weights are the initial ones, where shapes match. done: the number of steps of the recipe
    that these weights were already trained for.
    """
    layout = open_base(f"random:{name}").family.layout
    folder = work / f"latents-{layout}-{weights_sha256(vae, vae.state_dict())[:8]}"
    data = latents.load_or_encode(folder, IMAGES[name], bank.train_eyes(work, workers), vae, layout, device)
    torch.manual_seed(SEED)
    unet = folders.new_unet(name).to(device)
    if start:
        _load_matching_weights(unet, start)
    if device == "cpu":
        unet.set_attn_processor(AttnProcessor())  # faster on a CPU than the fused kernel, with one head and bfloat16
    if COMPILE and device == "cpu":
        unet.compile_repeated_blocks(dynamic=False)  # separately for each batch size, so that resuming is reproducible
    attention = GuidedAttention(unet)
    origin = f"{open_base(str(start)).fingerprint()} after {done} steps" if start else ""
    training = keeping.Training(unet, work / f"{name}.state", WEIGHT_DECAY, EMA_DECAY, done, origin)
    averaged = folders.new_unet(name).to(device).eval()
    setup = TrainingSetup(name, work, data, vae, device)
    compute_loss = keeping.CudaGraphLoss(lambda phase: Loss(setup, unet, attention, phase.coarse_weight))
    total, losses = len(setup.steps), []
    started = time.time()
    while training.step < total:
        phase, index = setup.steps[training.step]
        batch = setup.draw_batch(training.step)
        losses.append(_update(training, *compute_loss(phase, batch), keeping.learning_rate(phase, index)))
        if training.step % LOG_EVERY == 0 or training.step == total:
            mean_loss, *attention_losses = torch.stack(losses).mean(0).tolist()
            metrics = {"loss": mean_loss, "guide": attention_losses, "seconds": time.time() - started}
            if training.step % SAVE_EVERY == 0 or training.step == total:
                averaged.load_state_dict(training.averaged)
                pairs = setup.generate(averaged, EVAL_PAIRS)
                metrics |= setup.half_clean_errors(averaged) | judge.agreement(judge.prepare_all(pairs))
                judge.grid(pairs, columns=2).save(work / f"{name}_{training.step:06d}.png")
                training.save()
            training.log(**metrics)
            losses.clear()
            started = time.time()
    averaged.load_state_dict(training.averaged)
    return averaged


def _update(
    training: keeping.Training, loss: torch.Tensor, attention: torch.Tensor, learning_rate: float
) -> torch.Tensor:
    """Update the weights and return all losses, (1 + layers,)."""
    training.update(loss + ATTENTION_LOSS_WEIGHT * attention.mean(), learning_rate)
    return torch.cat([loss[None], attention]).detach()


def _load_matching_weights(unet: UNet2DConditionModel, start: Path) -> None:
    """Load, from another base, the weights whose name and shape match."""
    source, own = open_base(str(start)).unet().state_dict(), unet.state_dict()
    own.update({name: value for name, value in source.items() if name in own and own[name].shape == value.shape})
    unet.load_state_dict(own)
