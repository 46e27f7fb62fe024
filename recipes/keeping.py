"""State of a long recipe: written whole or not at all, so that a killed one goes on to the same weights."""

from pathlib import Path
from typing import Any

import torch


def save(path: Path, state: dict[str, Any]) -> None:
    partial = path.with_suffix(".partial")
    torch.save(state, partial)
    partial.replace(path)


def load(path: Path) -> dict[str, Any] | None:
    """None where nothing was saved yet."""
    return torch.load(path, map_location="cpu", weights_only=True) if path.exists() else None


def learning_rate(step: int, steps: int, peak: float, warmup: int = 200, falling: float = 0.4) -> float:
    """Up in `warmup` steps, level, then to zero along a quarter of a cosine over the last `falling` share."""
    rest = max(0.0, (step / steps - (1 - falling)) / falling)
    return peak * min(1.0, (step + 1) / warmup) * float(torch.cos(torch.tensor(rest * torch.pi / 2)))


class Average:
    """An exponential moving average of weights (Karras et al. 2024 say why); young averages forget faster."""

    def __init__(self, model: torch.nn.Module, decay: float) -> None:
        self.decay = decay
        self.weights = {name: value.detach().clone().float() for name, value in model.state_dict().items()}

    @torch.no_grad()
    def update(self, model: torch.nn.Module, step: int) -> None:
        keep = min(self.decay, (1 + step) / (10 + step))
        for name, value in model.state_dict().items():
            self.weights[name].lerp_(value.float(), 1 - keep)
