"""Save and resume a training. The state is written atomically, so a killed training resumes from its last state."""

import gc
import json
import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Generic, Protocol, TypeVar

import torch


class Training:
    """AdamW, the moving average of the weights (EMA), and the number of completed steps, with a saved state and a log.

    path: of the state. It is loaded if it exists; otherwise the training starts at step `first_step`. The log is next
    to it. origin: describes the weights at that step; a saved state with another origin is rejected. The decay of the
    moving average is lower in the first steps.
    """

    def __init__(
        self,
        model: torch.nn.Module,
        path: Path,
        weight_decay: float,
        ema_decay: float,
        first_step: int = 0,
        origin: str = "",
    ) -> None:
        self.model, self.path, self.step, self._ema_decay, self._origin = model, path, first_step, ema_decay, origin
        self._optimizer = torch.optim.AdamW(
            model.parameters(), lr=0.0, betas=(0.9, 0.99), weight_decay=weight_decay, fused=True
        )
        self._weights = list(model.state_dict().values())
        self.averaged = {name: value.detach().clone() for name, value in model.state_dict().items()}
        if state := load(path):
            if state["origin"] != origin:
                raise SystemExit(f"{path}: the training started from other weights; choose another --out or delete it")
            device = next(model.parameters()).device
            self.step = state["step"]
            self.averaged = {name: value.to(device) for name, value in state["average"].items()}
            model.load_state_dict(state["model"])
            self._optimizer.load_state_dict(state["optimiser"])
            print(f"{path.stem}: resuming from step {self.step}", flush=True)

        self._truncate_log()

    def update(self, loss: torch.Tensor, learning_rate: float) -> None:
        for group in self._optimizer.param_groups:
            group["lr"] = learning_rate
        self._optimizer.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
        self._optimizer.step()
        decay = min(self._ema_decay, (1 + self.step) / (10 + self.step))
        torch._foreach_lerp_(list(self.averaged.values()), self._weights, 1 - decay)
        self.step += 1

    def save(self) -> None:
        state = {"step": self.step, "model": self.model.state_dict(), "optimiser": self._optimizer.state_dict()}
        save(self.path, {**state, "average": self.averaged, "origin": self._origin})

    def _truncate_log(self) -> None:
        """Remove the lines after the saved step; these steps are repeated."""
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
    """Return the saved state, or None if there is none."""
    return torch.load(path, map_location="cpu", weights_only=True) if path.exists() else None


class Phase(Protocol):
    """A training phase. The learning rate rises in `warmup_steps` and falls in the last `decay_fraction` of steps."""

    @property
    def steps(self) -> int: ...
    @property
    def learning_rate(self) -> float: ...
    @property
    def decay_fraction(self) -> float: ...
    @property
    def warmup_steps(self) -> int: ...


AnyPhase = TypeVar("AnyPhase", bound=Phase)


def enumerate_steps(phases: Sequence[AnyPhase]) -> list[tuple[AnyPhase, int]]:
    """Return the phase of each training step, and the index of the step in that phase."""
    return [(phase, step) for phase in phases for step in range(phase.steps)]


class CudaGraphLoss(Generic[AnyPhase]):
    """Compute the losses of a batch with the module loss_of(phase), on a GPU as a CUDA graph.

    The forward and backward passes are recorded once per phase and replayed in each step. They consist of thousands of
    small kernels, which take longer to launch than to run. When a phase starts, no autograd graph of an earlier step
    may be alive.
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
    """Return the learning rate of a step: linear warmup, then constant, then a quarter of a cosine down to zero."""
    progress = max(0.0, step / phase.steps - (1 - phase.decay_fraction)) / (phase.decay_fraction or 1)
    warmup = min(1.0, (step + 1) / (phase.warmup_steps or 1))
    return phase.learning_rate * warmup * math.cos(progress * math.pi / 2)
