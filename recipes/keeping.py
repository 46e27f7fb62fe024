"""A long training that survives: its state is written whole or not at all, so a killed one goes on where it was."""

import json
import math
from pathlib import Path
from typing import Any

import torch


class Training:
    """Weights under AdamW, their moving average, and the step they are at; the log lies beside the state.

    The average warms up: a young one forgets faster. Where there is no state, it begins at step `first`.

    origin: what the weights were at that step; a state that began otherwise is refused.
    """

    def __init__(
        self, model: torch.nn.Module, path: Path, decay: float, average: float, first: int = 0, origin: str = ""
    ) -> None:
        self.model, self.path, self.step, self._average, self._origin = model, path, first, average, origin
        self._optimiser = torch.optim.AdamW(model.parameters(), lr=0.0, betas=(0.9, 0.99), weight_decay=decay)
        self.averaged = {name: value.detach().clone().float() for name, value in model.state_dict().items()}
        if state := load(path):
            if state["origin"] != origin:
                raise SystemExit(f"{path}: was begun from other weights; give another --out, or remove it")
            device = next(model.parameters()).device
            self.step = state["step"]
            self.averaged = {name: value.to(device) for name, value in state["average"].items()}
            model.load_state_dict(state["model"])
            self._optimiser.load_state_dict(state["optimiser"])
            print(f"{path.stem}: goes on from step {self.step}", flush=True)

        self._cut_log()

    def update(self, loss: torch.Tensor, rate: float) -> None:
        for group in self._optimiser.param_groups:
            group["lr"] = rate
        self._optimiser.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
        self._optimiser.step()
        keep = min(self._average, (1 + self.step) / (10 + self.step))
        with torch.no_grad():
            for name, value in self.model.state_dict().items():
                self.averaged[name].lerp_(value.float(), 1 - keep)
        self.step += 1

    def save(self) -> None:
        state = {"step": self.step, "model": self.model.state_dict(), "optimiser": self._optimiser.state_dict()}
        save(self.path, {**state, "average": self.averaged, "origin": self._origin})

    def _cut_log(self) -> None:
        """Lines of steps that were lost would stand there twice."""
        log = self.path.with_suffix(".jsonl")
        lines = log.read_text().splitlines(keepends=True) if log.exists() else []
        log.write_text("".join(line for line in lines if json.loads(line)["step"] <= self.step))

    def log(self, **values: float | list[float]) -> None:
        line = json.dumps({"step": self.step, **values})
        print(line, flush=True)
        with self.path.with_suffix(".jsonl").open("a") as stream:
            stream.write(line + "\n")


def save(path: Path, state: dict[str, Any]) -> None:
    partial = path.with_suffix(".partial")
    torch.save(state, partial)
    partial.replace(path)


def load(path: Path) -> dict[str, Any] | None:
    """None where nothing was saved yet."""
    return torch.load(path, map_location="cpu", weights_only=True) if path.exists() else None


def learning_rate(step: int, steps: int, peak: float, falling: float, warmup: int) -> float:
    """Up in `warmup` steps, level, then to zero along a quarter of a cosine over the last `falling` share."""
    rest = max(0.0, step / steps - (1 - falling)) / (falling or 1)
    return peak * min(1.0, (step + 1) / (warmup or 1)) * math.cos(rest * math.pi / 2)
