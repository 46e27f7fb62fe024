"""Run the training step of the original scripts (`train.py`, `test_gen.py`), as a baseline for `bench`.

retipair replaces these scripts, and keeps their file names and flags. The step was written from a description of them.
Everything is computed in fp32. Every step loads and encodes the pairs and encodes the prompt again. Both views of a
pair share one noise offset per channel. The high-frequency loss is applied at every timestep, with zero padding.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch.nn import functional as F

from retipair.data.dataset import PairRecord, load_views
from retipair.data.layout import Layout
from retipair.diffusion.noise import generator
from retipair.models.base import Base
from retipair.models.conditioning import encode_once, stack_conditioning, with_size_ids
from retipair.models.denoiser import Denoiser
from retipair.models.lora import adapter_parameters, add_adapter, lora_config
from retipair.models.vae import encode_sample
from retipair.runtime.profiling import time_once

RANK, RATE, WEIGHT_DECAY = 16, 5e-5, 1e-2
OFFSET, HF_WEIGHT, KERNEL, SIGMA, CLEAN_RANGE = 0.1, 0.5, 7, 1.5, 10.0
PHASES = ("encoders", "autoencoder", "loop")


@dataclass
class BaselineStep:
    """A training run of the baseline, loaded and ready to run steps.

    seconds: the duration of each phase in every step so far, by the name of the phase.
    """

    base: Base
    layout: Layout
    entries: Sequence[PairRecord]
    prompt: str
    batch_size: int
    device: str
    seconds: dict[str, list[float]] = field(default_factory=lambda: {phase: [] for phase in PHASES})

    def __post_init__(self) -> None:
        self.unet = self.base.unet(device=self.device).train()
        add_adapter(self.unet, lora_config(RANK, RANK, "attention", dora=False, rslora=False))
        self.vae = self.base.vae(device=self.device)
        self.text = self.base.text_pipeline(device=self.device)
        self.schedule = self.base.schedule
        self.denoise = Denoiser(self.unet, torch.float32, self.device)
        parameters = list(adapter_parameters(self.unet).values())
        self.optimizer = torch.optim.AdamW(parameters, lr=RATE, weight_decay=WEIGHT_DECAY)
        self.number = 0

    def step(self) -> None:
        """Run one training step, and time its phases. The device is synchronised after each phase, at little cost."""
        phases = {"autoencoder": self._encode_images, "encoders": self._encode_prompts, "loop": self._update}
        for phase, function in phases.items():
            self.seconds[phase].append(time_once(function, self.device))
        self.number += 1

    def _encode_images(self) -> None:
        """Encode the next batch of pairs to latents (B, C, h, w)."""
        first = self.number * self.batch_size
        chosen = [self.entries[(first + offset) % len(self.entries)] for offset in range(self.batch_size)]
        joints = [self.layout.join(*load_views(entry, self.layout.view_size)) for entry in chosen]
        rng = generator(0, "original", self.number)
        self.latents = torch.cat([encode_sample(self.vae, joint, rng) for joint in joints])

    def _encode_prompts(self) -> None:
        rows = stack_conditioning([encode_once(self.text, self.prompt, self.device)] * self.batch_size)
        self.conditioning = with_size_ids(rows, self.base, self.layout.joint_size)

    def _update(self) -> None:
        latents, device = self.latents, self.latents.device
        noise = torch.randn_like(latents)
        noise = noise + OFFSET * torch.randn(*latents.shape[:2], 1, 1, device=device)
        t = torch.randint(self.schedule.num_timesteps, (len(latents),), device=device)
        noisy = self.schedule.add_noise(latents, noise, t)
        prediction = self.denoise(noisy, t, self.conditioning)
        target = self.schedule.target(latents, noise, t)  # the noise: all bases of the original scripts predict it
        clean = self.schedule.clean_latents(prediction, noisy, t).clamp(-CLEAN_RANGE, CLEAN_RANGE)
        loss = F.mse_loss(prediction, target) + HF_WEIGHT * F.l1_loss(_high_pass(clean), _high_pass(latents))
        loss.backward()
        self.optimizer.step()
        self.optimizer.zero_grad()


def _high_pass(latents: torch.Tensor) -> torch.Tensor:
    """Return x - GaussianBlur(x) for the latents x (B, C, h, w) of joint images, with zero padding."""
    offsets = torch.arange(KERNEL, device=latents.device) - KERNEL // 2
    weights = torch.exp(-0.5 * (offsets / SIGMA) ** 2)
    square = torch.outer(weights, weights) / weights.sum() ** 2
    channels = latents.shape[1]
    kernel = square.expand(channels, 1, KERNEL, KERNEL)
    return latents - F.conv2d(latents, kernel, padding=KERNEL // 2, groups=channels)
