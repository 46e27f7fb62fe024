"""Take one training step, and build the objects that it uses."""

from dataclasses import dataclass, replace
from functools import partial
from itertools import product

import torch
from torch.profiler import record_function

from retipair.config import TrainConfig
from retipair.diffusion.losses import Objective, Term, high_frequency
from retipair.diffusion.noise import with_clean_halves
from retipair.diffusion.schedule import NoiseSchedule
from retipair.models.denoiser import Denoiser
from retipair.models.lora import UNet, add_adapter, set_adapter
from retipair.runtime.distributed import DistributedState
from retipair.training.batches import Batch, Batches, make_batches
from retipair.training.initial_adapter import InitialAdapter
from retipair.training.meters import LossMeter
from retipair.training.nonfinite import NonFiniteCounter, find_nonfinite
from retipair.training.optimizer import LoraOptimizer
from retipair.training.plan import Data, Plan, adapter_config

PARTS = ("draw", "forward", "losses", "backward", "update")
"""Names of the parts of a training step, as they appear in a profile of the PyTorch profiler."""


@dataclass(frozen=True)
class Training:
    """The loaded networks, latents and counters that a training step uses."""

    config: TrainConfig
    batches: Batches
    unet: UNet
    denoise: Denoiser
    schedule: NoiseSchedule
    objective: Objective
    optimizer: LoraOptimizer
    meter: LossMeter
    nonfinite: NonFiniteCounter
    dist: DistributedState


def build_training(plan: Plan, data: Data, dist: DistributedState, initial: InitialAdapter | None = None) -> Training:
    """Encode the pairs whose latents are not cached, load the UNet of the base, and add the initial adapter to it."""
    config = plan.config
    with dist.main_process_first():
        batches = make_batches(plan, data)
    unet = plan.base.unet(plan.dtype, plan.device, plan.strategy.stored)
    add_adapter(unet, adapter_config(config), config.seed)
    if initial:
        set_adapter(initial.path, unet, initial.lora, plan.base)
    if plan.strategy.checkpointing:
        unet.enable_gradient_checkpointing()
    denoise = Denoiser(unet.train(), plan.dtype, plan.device)
    objective = Objective(plan.base.schedule, loss_terms(config), config.min_snr_gamma)
    optimizer, meter = LoraOptimizer(unet, config), LossMeter(objective.names, plan.device)
    nonfinite = NonFiniteCounter(plan.device)
    return Training(config, batches, unet, denoise, plan.base.schedule, objective, optimizer, meter, nonfinite, dist)


def loss_terms(config: TrainConfig) -> dict[str, Term]:
    """Return the losses that are added to the squared error, by their names in the logs.

    With weight 0, the high-frequency loss "hf" is not computed, but the logs still have it, as 0. To add another loss,
    return it only if its weight is above 0, so that the logs of runs without it do not change.
    """
    filtered = partial(high_frequency, kernel=config.hf_kernel, sigma=config.hf_sigma)
    return {"hf": Term(filtered, config.hf_lambda, config.hf_max_timestep)}


def training_step(training: Training) -> float:
    """Take one optimiser step, whose samples are split between the processes, and return its learning rate."""
    config, optimizer, dist = training.config, training.optimizer, training.dist
    for part in range(config.gradient_accumulation_steps):
        with record_function("draw"):
            batch = training.batches.batch_of(samples_of(config, optimizer.step_count, part, dist))
            noisy, inputs = network_inputs(training, batch)
        with record_function("forward"):
            prediction = training.denoise(inputs, batch.t, batch.conditioning)
        with record_function("losses"):
            losses = training.objective(prediction, noisy, batch.latents, batch.noise, batch.t, batch.clean)
            training.meter.add(losses, batch.t)
        with record_function("backward"):
            (losses.total / config.gradient_accumulation_steps).backward()
    rate = optimizer.learning_rate
    with record_function("update"):
        dist.reduce_mean_([parameter.grad for parameter in optimizer.parameters.values() if parameter.grad is not None])
        training.nonfinite.add(optimizer.step(), optimizer.step_count - 1)
    return rate


def network_inputs(training: Training, batch: Batch) -> tuple[torch.Tensor, torch.Tensor]:
    """Return (latents with noise in both halves, input of the network), (B, C, h, w) each.

    The two differ where `batch.clean` is True: there, the input of the network has the latents without noise.
    """
    noisy = training.schedule.add_noise(batch.latents, batch.noise, batch.t)
    return noisy, with_clean_halves(noisy, batch.latents, batch.clean)


def samples_of(config: TrainConfig, step: int, part: int, dist: DistributedState) -> range:
    """Return the sample numbers that this process uses in one forward pass.

    step: the number of the step.
    part: the number of the forward pass within the step; above 0 only with gradient accumulation.
    """
    forward = (step * config.gradient_accumulation_steps + part) * dist.num_processes + dist.process_index
    return range(forward * config.batch_size, (forward + 1) * config.batch_size)


@torch.no_grad()
def describe_nonfinite_step(training: Training, data: Data, step: int) -> str:
    """Describe what was NaN or infinite in step number `step`, by repeating the forward passes of all processes.

    If the latents and the predictions are finite, the text says that the gradient is not, and lists all pairs.
    """
    pairs: list[str] = []
    states = [replace(training.dist, process_index=rank) for rank in range(training.dist.num_processes)]
    for part, dist in product(range(training.config.gradient_accumulation_steps), states):
        samples = samples_of(training.config, step, part, dist)
        batch = training.batches.batch_of(samples)
        names = [data.train[pair].id for pair in training.batches.pairs_of(samples)]
        _, inputs = network_inputs(training, batch)
        if cause := find_nonfinite(batch, names, training.denoise(inputs, batch.t, batch.conditioning)):
            return cause
        pairs += names
    return f"the gradient of {'pair' if len(pairs) == 1 else 'pairs'} {', '.join(dict.fromkeys(pairs))}"
