"""Validation: the loss at fixed noise, and sample pairs."""

from collections.abc import Callable
from pathlib import Path

import torch
from torch.nn import functional as F

from retipair.data.pair import save_image
from retipair.diffusion.halves import mean_per_half
from retipair.diffusion.noise import generator
from retipair.diffusion.schedule import NoiseSchedule
from retipair.generation.pair_generator import PairGenerator, draw_prompt, synthetic_mark
from retipair.models.denoiser import Denoiser
from retipair.models.lora import AdapterMetadata
from retipair.runtime.console import progress
from retipair.runtime.distributed import DistributedState
from retipair.training.batches import Batches
from retipair.training.plan import (
    VALIDATION_TIMESTEPS,
    Plan,
)
from retipair.training.step import Training


@torch.no_grad()
def validate(denoise: Denoiser, schedule: NoiseSchedule, batches: Batches, dist: DistributedState) -> dict[str, float]:
    """Mean squared error on unseen pairs with fixed noise: the mean, then one figure for each timestep and half."""
    sums = torch.zeros(len(VALIDATION_TIMESTEPS), 3, device=batches.device)  # CF, FA, how many
    for row, batch in batches.validation(dist):
        noisy = schedule.add_noise(batch.latents, batch.noise, batch.t)
        prediction = denoise(noisy, batch.t, batch.conditioning)
        target = schedule.target(batch.latents, batch.noise, batch.t)
        sums[row] += F.pad(mean_per_half((prediction - target) ** 2)[0], (0, 1), value=1.0)
    sums = dist.reduce_sum(sums)
    means = (sums[:, :2] / sums[:, 2:]).tolist()
    named = zip(VALIDATION_TIMESTEPS, means, strict=True)
    parts = {f"t{t}_{half}": value for t, row in named for half, value in zip(("cf", "fa"), row, strict=True)}
    return {"loss": sum(parts.values()) / len(parts), **parts}


def write_samples(
    folder: Path, plan: Plan, description: AdapterMetadata, training: Training, told: Callable[[], bool] = lambda: False
) -> float | None:
    """Sample pairs as `generate` would, pair_00 on, and write cf, fa and joint of each.

    Returns how well their halves match: the mean correlation of the vessels of both views; None as soon as it is told
    to stop.
    """
    config, dist = plan.config, training.dist
    assert config.num_samples is not None
    assert config.sample_steps is not None  # the plan fills both in
    matches = torch.zeros(config.num_samples, device=plan.device)
    vae = plan.base.vae(device=plan.device)
    painter = PairGenerator(plan.base, plan.layout, training.denoise, vae, "ddpm", config.sample_steps)
    mine = dist.split_between_processes(range(config.num_samples))
    with progress("Sampling", len(mine)) as advance:
        for number in mine:
            source = generator(config.seed, "sample", number)
            prompt = draw_prompt(description.prompts, config.seed, number)
            painted = painter.sample(training.batches.conditioning_for(prompt), [source])[0]
            mark = synthetic_mark(painter, prompt, config.seed, number)
            for name, image in {"cf": painted.cf, "fa": painted.fa, "joint": painted.joint}.items():
                save_image(folder / f"pair_{number:02d}" / f"{name}.png", image, mark)
            matches[number] = painted.pair.consistency()
            advance()
            if told():
                return None
    return float(dist.reduce_sum(matches).mean())
