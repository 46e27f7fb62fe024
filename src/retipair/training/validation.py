"""Validate: compute the loss with fixed noise, and generate sample pairs."""

from collections.abc import Callable
from pathlib import Path

import torch
from torch.nn import functional as F

from retipair.data.pair import save_image
from retipair.diffusion.guidance import Guidance
from retipair.diffusion.halves import mean_per_half
from retipair.diffusion.noise import generator
from retipair.diffusion.schedule import NoiseSchedule
from retipair.generation.pair_generator import PairGenerator, draw_prompt, synthetic_mark, with_parameters
from retipair.models.denoiser import Denoiser
from retipair.models.lora import AdapterMetadata
from retipair.runtime.console import progress
from retipair.runtime.distributed import DistributedState
from retipair.training.batches import Batches
from retipair.training.plan import VALIDATION_TIMESTEPS, Plan
from retipair.training.step import Training


@torch.no_grad()
def validate(denoise: Denoiser, schedule: NoiseSchedule, batches: Batches, dist: DistributedState) -> dict[str, float]:
    """Return the mean squared error of the noise or v prediction on the validation pairs, with fixed noise.

    The keys are "t{timestep}_cf" and "t{timestep}_fa" for each timestep, and "loss" for the mean of all these values.
    """
    sums = torch.zeros(len(VALIDATION_TIMESTEPS), 3, device=batches.device)  # CF, FA, count
    for row, batch in batches.validation(dist):
        noisy = schedule.add_noise(batch.latents, batch.noise, batch.t)
        prediction = denoise(noisy, batch.t, batch.conditioning)
        target = schedule.target(batch.latents, batch.noise, batch.t)
        sums[row] += F.pad(mean_per_half((prediction - target) ** 2)[0], (0, 1), value=1.0)
    sums = dist.reduce_sum(sums)
    means = (sums[:, :2] / sums[:, 2:]).tolist()
    rows = zip(VALIDATION_TIMESTEPS, means, strict=True)
    parts = {f"t{t}_{half}": value for t, row in rows for half, value in zip(("cf", "fa"), row, strict=True)}
    return {"loss": sum(parts.values()) / len(parts), **parts}


def write_samples(
    folder: Path,
    plan: Plan,
    description: AdapterMetadata,
    training: Training,
    stop_requested: Callable[[], bool] = lambda: False,
) -> float | None:
    """Generate sample pairs from noise with the sampler ddpm, and write them to the folders pair_00, pair_01, ...

    Each folder gets cf.png, fa.png and joint.png. The scale of cross-view guidance is --sample_pair_guidance. Returns
    the mean consistency of the pairs; the consistency is the correlation of the vesselness of CF and FA. Returns None
    if a stop is requested.

    description: the metadata of the adapter, with the prompts to choose from.
    stop_requested: a function that returns True to end the generation after the current pair.
    """
    config, dist = plan.config, training.dist
    assert config.num_samples is not None
    assert config.sample_steps is not None  # make_plan fills in both defaults
    consistencies = torch.zeros(config.num_samples, device=plan.device)
    vae = plan.base.vae(device=plan.device)
    guidance = Guidance(pair_scale=config.sample_pair_guidance)
    modalities = description.pair_modalities
    pair_generator = PairGenerator(
        plan.base, plan.layout, training.denoise, vae, "ddpm", config.sample_steps, guidance, modalities
    )
    numbers = dist.split_between_processes(range(config.num_samples))
    with progress("Sampling", len(numbers)) as advance:
        for number in numbers:
            rng = generator(config.seed, "sample", number)
            prompt = draw_prompt(description.prompts, config.seed, number)
            images = pair_generator.sample(training.batches.conditioning_for(prompt), [rng])[0]
            mark = synthetic_mark(pair_generator, prompt, config.seed, number)
            mark = with_parameters(mark, plan.layout.joint_size)
            for name, image in {"cf": modalities.stored(images.cf), "fa": images.fa, "joint": images.joint}.items():
                save_image(folder / f"pair_{number:02d}" / f"{name}.png", image, mark)
            consistencies[number] = images.pair.consistency()
            advance()
            if stop_requested():
                return None
    return float(dist.reduce_sum(consistencies).mean())
