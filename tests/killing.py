"""Commands that die by SIGKILL in the middle of their work, as on a cluster."""

import json
import os
import signal
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from importlib import import_module
from pathlib import Path
from typing import Any

import retipair


@dataclass(frozen=True)
class Death:
    """A command, and the call of a function ("module:name") just before which it is killed, counted from 1."""

    command: list[str]
    function: str
    call: int


def kill_all(deaths: Sequence[Death]) -> None:
    """Run commands in one process of their own, a fork for each (torch takes long to start); each must die there."""
    text = json.dumps([asdict(death) for death in deaths])
    environment = {**os.environ, "PYTHONPATH": str(Path(retipair.__file__).parent.parent), "CUDA_VISIBLE_DEVICES": ""}
    done = subprocess.run(
        [sys.executable, __file__],
        input=text,
        capture_output=True,
        text=True,
        env=environment,
        timeout=60 + 20 * len(deaths),
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == ["killed"] * len(deaths), done.stderr


def _die(death: Death) -> None:
    from retipair.interfaces.cli import main

    place, _, name = death.function.partition(":")
    *within, last = name.split(".")
    owner: Any = import_module(place)
    for part in within:
        owner = getattr(owner, part)
    original, calls = getattr(owner, last), 0

    def counted(*arguments: Any, **more: Any) -> Any:
        nonlocal calls
        calls += 1
        if calls == death.call:
            os.kill(os.getpid(), signal.SIGKILL)
        return original(*arguments, **more)

    setattr(owner, last, counted)
    with open(os.devnull, "w") as nowhere:  # noqa: PTH123 - a device
        os.dup2(nowhere.fileno(), 1)
    os._exit(main(death.command))


def _main() -> None:
    import torch

    import retipair.generation.generate
    import retipair.training.train  # noqa: F401 - loaded once for all forks

    torch.set_num_threads(1)
    for death in (Death(**values) for values in json.load(sys.stdin)):
        if (child := os.fork()) == 0:
            _die(death)
        _, status = os.waitpid(child, 0)
        killed = os.WIFSIGNALED(status) and os.WTERMSIG(status) == signal.SIGKILL
        print("killed" if killed else f"ended:{status}", flush=True)


if __name__ == "__main__":
    _main()
