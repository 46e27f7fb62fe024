"""A long training that survives: its state is written whole or not at all, so a killed one goes on where it was."""

import gc
import json
import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Generic, Protocol, TypeVar

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
        self._optimiser = torch.optim.AdamW(
            model.parameters(), lr=0.0, betas=(0.9, 0.99), weight_decay=decay, fused=True
        )
        self._weights = list(model.state_dict().values())
        self.averaged = {name: value.detach().clone() for name, value in model.state_dict().items()}
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
        torch._foreach_lerp_(list(self.averaged.values()), self._weights, 1 - keep)
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


class Phase(Protocol):
    """So many steps; the learning rate rises in `warmup` of them and falls in the last share, `falling`."""

    @property
    def steps(self) -> int: ...
    @property
    def rate(self) -> float: ...
    @property
    def falling(self) -> float: ...
    @property
    def warmup(self) -> int: ...


AnyPhase = TypeVar("AnyPhase", bound=Phase)


def numbered(phases: Sequence[AnyPhase]) -> list[tuple[AnyPhase, int]]:
    """Every step of a training, in order: its phase, and which of the phase's it is."""
    return [(phase, step) for phase in phases for step in range(phase.steps)]


class Recorded(Generic[AnyPhase]):
    """The losses of a phase: what loss_of(phase), a module, makes of a batch's tensors.

    On a GPU its kernels are recorded once and replayed, in both directions: there are thousands of small ones, and to
    launch each takes longer than to run it. No graph of an earlier step may be alive when a phase begins.
    """

    def __init__(self, loss_of: Callable[[AnyPhase], torch.nn.Module]) -> None:
        self._loss_of = loss_of
        self._phase: AnyPhase | None = None
        self._loss: Any = None

    def __call__(self, phase: AnyPhase, batch: Sequence[torch.Tensor]) -> tuple[torch.Tensor, torch.Tensor]:
        if phase != self._phase:
            self._phase, self._loss = phase, None
            gc.collect()
            self._loss = self._loss_of(phase)
            if batch[0].device.type == "cuda":
                self._loss = torch.cuda.make_graphed_callables(self._loss, tuple(batch), allow_unused_input=True)
        first, second = self._loss(*batch)
        return first, second


def learning_rate(phase: Phase, step: int) -> float:
    """Up in the warm-up, level, then to zero along a quarter of a cosine."""
    rest = max(0.0, step / phase.steps - (1 - phase.falling)) / (phase.falling or 1)
    return phase.rate * min(1.0, (step + 1) / (phase.warmup or 1)) * math.cos(rest * math.pi / 2)
