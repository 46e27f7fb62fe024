"""Optimise the adapter with AdamW, a learning rate schedule and a moving average; save and restore their state."""

import math
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch

from retipair.config import TrainConfig
from retipair.models.lora import MovingAverage, UNet, adapter_parameters
from retipair.runtime.errors import UserError

ORIGINAL_CONSTANT_STEPS, ORIGINAL_STEPS = 4_000, 15_000


class LoraOptimizer:
    """The parameters of the adapter, their optimiser and their moving average, after `step_count` steps."""

    def __init__(self, unet: UNet, config: TrainConfig) -> None:
        self.config = config
        self.parameters = adapter_parameters(unet)
        self.step_count = 0
        self._optimizer = _build_optimizer(config, list(self.parameters.values()))
        self._skips_nonfinite = bool(self._optimizer.defaults.get("fused"))
        self._average = MovingAverage(self.parameters.values(), config.ema_decay) if config.ema_decay else None

    @property
    def learning_rate(self) -> float:
        return learning_rate(self.step_count, self.config)

    def step(self) -> torch.Tensor:
        """Take one optimiser step with the accumulated gradients. Skip it if a gradient contains NaN or infinity.

        A skipped step changes neither the adapter, nor the state of the optimiser, nor the moving average, but it
        counts in `step_count`. Returns a () bool tensor on the device, True if all gradients are finite. With a fused
        optimiser (AdamW on CUDA), the step does not synchronise the GPU. With other optimisers, this
        method waits until the GPU has computed whether the gradients are finite.
        """
        for group in self._optimizer.param_groups:
            group["lr"] = self.learning_rate
        gradients = [parameter.grad for parameter in self.parameters.values() if parameter.grad is not None]
        norm = torch.nn.utils.get_total_norm(gradients)
        finite = norm.isfinite()
        if self.config.max_grad_norm > 0:
            torch.nn.utils.clip_grads_with_norm_(self.parameters.values(), self.config.max_grad_norm, norm)
        if self._skips_nonfinite:
            self._optimizer.found_inf = (~finite).float()  # type: ignore[attr-defined] # if 1, step() does nothing
            self._optimizer.step()
        elif finite:
            self._optimizer.step()
        self._optimizer.zero_grad(set_to_none=True)
        if self._average is not None:
            self._average.update(self.parameters.values(), finite)
        self.step_count += 1
        return finite

    @contextmanager
    def ema_weights(self) -> Iterator[None]:
        """Replace the adapter's weights by their moving average inside the context. Do nothing without --ema_decay."""
        if self._average is None:
            yield
            return
        self._average.store(self.parameters.values())
        self._average.copy_to(self.parameters.values())
        try:
            yield
        finally:
            self._average.restore(self.parameters.values())

    def state(self) -> dict[str, torch.Tensor]:
        """Return, by name, the tensors that the next step depends on.

        These are the adapter's weights before averaging, the state of the optimiser, and the moving average.
        """
        tensors = {f"adapter.{name}": p.detach().clone() for name, p in self.parameters.items()}
        for number, entry in self._optimizer.state_dict()["state"].items():
            tensors |= {f"optimizer.{number}.{name}": torch.as_tensor(value) for name, value in entry.items()}
        if self._average is not None:
            tensors |= {f"average.{number}": value for number, value in enumerate(self._average.shadow_params)}
            tensors["average.updates"] = self._average.updates
        return tensors

    def restore(self, step: int, tensors: dict[str, torch.Tensor]) -> None:
        """Load `tensors`, which `state` returned after `step` steps."""
        self.step_count = step
        for name, parameter in self.parameters.items():
            parameter.data.copy_(tensors[f"adapter.{name}"])
        moments: dict[int, dict[str, torch.Tensor | int]] = {}
        for key in tensors:
            if key.startswith("optimizer."):
                _, number, name = key.split(".", 2)
                value = tensors[key]
                is_count = value.dtype == torch.int64 and value.ndim == 0  # adamw8bit counts its steps as an int
                moments.setdefault(int(number), {})[name] = int(value) if is_count else value
        self._optimizer.load_state_dict({**self._optimizer.state_dict(), "state": moments})
        if self._average is not None:
            self._average.updates.fill_(tensors.get("average.updates", step))  # absent in older checkpoints
            for index, shadow in enumerate(self._average.shadow_params):
                shadow.copy_(tensors[f"average.{index}"])


def learning_rate(step: int, config: TrainConfig) -> float:
    """Return the learning rate after `step` steps: the value of the schedule, times a factor that rises linearly to 1
    during the warm-up.

    The schedule "original" is constant for 4,000 steps and then falls to `lr_end` at `max_steps` along a cosine. In a
    run of fewer than 15,000 steps, the constant part is 4,000 / 15,000 of the run.
    """
    warmup = min(1.0, (step + 1) / config.lr_warmup_steps) if config.lr_warmup_steps else 1.0
    if config.lr_schedule == "constant":
        return warmup * config.learning_rate
    constant = 0
    if config.lr_schedule == "original":
        constant = min(ORIGINAL_CONSTANT_STEPS, round(config.max_steps * ORIGINAL_CONSTANT_STEPS / ORIGINAL_STEPS))
    fraction = min(max(step - constant, 0) / max(config.max_steps - constant, 1), 1.0)
    end = min(config.lr_end, config.learning_rate)
    return warmup * (end + (config.learning_rate - end) * (1 + math.cos(math.pi * fraction)) / 2)


def _build_optimizer(config: TrainConfig, parameters: list[torch.nn.Parameter]) -> torch.optim.Optimizer:
    options: dict[str, Any] = {"lr": config.learning_rate, "weight_decay": config.weight_decay}
    if config.optimizer == "adamw":
        return torch.optim.AdamW(parameters, fused=parameters[0].is_cuda or None, **options)
    try:
        from bitsandbytes.optim import AdamW8bit
    except ImportError:
        raise UserError("--optimizer adamw8bit needs bitsandbytes: pip install 'retipair[adamw8bit]'") from None
    return AdamW8bit(parameters, **options)
