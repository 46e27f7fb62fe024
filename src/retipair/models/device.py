"""Where to compute, and in what arithmetic."""

import os
from collections.abc import Iterator
from contextlib import contextmanager

import psutil
import torch

from retipair.runtime.errors import UserError


def choose_device(name: str) -> str:
    """The device a flag means: "auto" is CUDA, else Apple's MPS, else the CPU. Raises UserError if it is not there.

    Of the processes that `accelerate launch` starts each has a GPU of its own.
    """
    if name == "auto":
        if torch.cuda.is_available():
            return choose_device("cuda")
        return "mps" if torch.backends.mps.is_available() else "cpu"
    kind = name.split(":")[0]
    there = {"cpu": True, "cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available()}
    if kind not in there:
        raise UserError(f"--device {name}: choose auto, cuda, mps or cpu")
    if not there[kind]:
        raise UserError(f"--device {name}: this machine (or this build of torch) has none; use --device auto")
    if kind != "cuda":
        return kind
    if name == "cuda":
        return f"cuda:{os.environ['LOCAL_RANK']}" if "LOCAL_RANK" in os.environ else "cuda"
    number = name.removeprefix("cuda:")
    if not number.isdigit() or int(number) >= torch.cuda.device_count():
        raise UserError(f"--device {name}: there are cuda:0 to cuda:{torch.cuda.device_count() - 1}")
    return name


def choose_dtype(precision: str, device: str) -> torch.dtype:
    """The frozen base's dtype: bf16 on CUDA that has it, fp32 elsewhere, unless the flag says otherwise."""
    if precision == "auto":
        precision = "bf16" if device.startswith("cuda") and torch.cuda.is_bf16_supported() else "fp32"
    return {"fp32": torch.float32, "bf16": torch.bfloat16}[precision]


def free_memory(device: str) -> int:
    """Bytes that nobody uses there; a Mac's GPU shares those of the CPU."""
    return torch.cuda.mem_get_info(device)[0] if device.startswith("cuda") else psutil.virtual_memory().available


@contextmanager
def one_thread() -> Iterator[None]:
    """The last bits of a convolution may depend on the number of threads."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


@contextmanager
def repeatable(asked: bool) -> Iterator[None]:
    """Inside, if it is asked for, a GPU gives the same bits each time, or says what cannot; a CPU does anyway."""
    if not asked:
        yield
        return
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # cuBLAS reads it when it is first used
    before = torch.are_deterministic_algorithms_enabled()
    torch.use_deterministic_algorithms(True)
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(before)
