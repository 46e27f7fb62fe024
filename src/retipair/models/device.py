"""Select the device, dtype and determinism of computations."""

import os
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from functools import cache, partial
from typing import TypeVar

import psutil
import torch

from retipair.runtime.errors import SettingError
from retipair.runtime.profiling import time_interleaved

Setting = TypeVar("Setting")

MIN_BF16_SPEED = 1.25
"""bf16 is chosen for training on a CPU on which its matrix products are at least this many times as fast as in fp32."""
_PROBE_SIDE = 256
"""Rows and columns of the matrices that `cpu_bf16_speed` multiplies; larger ones may take seconds in bf16."""


def choose_device(name: str) -> str:
    """Return the torch device for a value of --device. Raises UserError if the device is not available.

    "auto" chooses CUDA if it is available, else Apple's MPS, else the CPU.
    Under `accelerate launch`, "auto" and "cuda" choose the GPU of the process's LOCAL_RANK.
    """
    if name == "auto":
        if torch.cuda.is_available():
            return choose_device("cuda")
        return "mps" if torch.backends.mps.is_available() else "cpu"
    kind = name.split(":")[0]
    available = {"cpu": True, "cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available()}
    if kind not in available:
        raise SettingError("device", name, "choose auto, cuda, mps or cpu")
    if not available[kind]:
        raise SettingError("device", name, "not available on this machine or in this build of torch; use --device auto")
    if kind != "cuda":
        return kind
    if name == "cuda":
        return f"cuda:{os.environ['LOCAL_RANK']}" if "LOCAL_RANK" in os.environ else "cuda"
    number = name.removeprefix("cuda:")
    if not number.isdigit() or int(number) >= torch.cuda.device_count():
        raise SettingError("device", name, f"choose one of cuda:0 to cuda:{torch.cuda.device_count() - 1}")
    return name


def choose_dtype(precision: str, device: str) -> torch.dtype:
    """Return the dtype for a value of --precision. "auto" is bf16 on CUDA devices that support it, else fp32."""
    if precision == "auto":
        precision = "bf16" if device.startswith("cuda") and torch.cuda.is_bf16_supported() else "fp32"
    return {"fp32": torch.float32, "bf16": torch.bfloat16}[precision]


@cache
def cpu_bf16_speed() -> float:
    """Measure how many times as fast a matrix product is in bf16 as in fp32 on this CPU; takes a fraction of a second.

    The value is far below 1 on CPUs without instructions for bf16 (AVX512-BF16, AMX), and above 1 on others. One thread
    computes both products, because several lose time in different ways when other programs use the cores.
    """
    ones = torch.ones(_PROBE_SIDE, _PROBE_SIDE)
    factors = {dtype: ones.to(dtype) for dtype in (torch.float32, torch.bfloat16)}
    products = {str(dtype): partial(torch.matmul, factor, factor) for dtype, factor in factors.items()}
    with one_thread():
        fp32, bf16 = time_interleaved(products, "cpu", repeats=8, warmup=2).values()
    return min(fp32) / min(bf16)


def free_memory(device: str) -> int:
    """Return the free memory of the device in bytes. For MPS, this is the CPU's free memory, because both share it."""
    return torch.cuda.mem_get_info(device)[0] if device.startswith("cuda") else psutil.virtual_memory().available


@contextmanager
def torch_setting(value: Setting, get: Callable[[], Setting], set_to: Callable[[Setting], object]) -> Iterator[None]:
    """Change a global setting of torch to `value` inside the context, and restore it afterwards."""
    before = get()
    set_to(value)
    try:
        yield
    finally:
        set_to(before)


def one_thread() -> AbstractContextManager[None]:
    """Return a context that limits torch to one thread, because the number of threads may change the rounding."""
    return torch_setting(1, torch.get_num_threads, torch.set_num_threads)


def repeatable(enabled: bool) -> AbstractContextManager[None]:
    """Return a context that makes torch use deterministic algorithms on a GPU, if enabled.

    torch raises an error for operations that have no deterministic algorithm.
    """
    if not enabled:
        return nullcontext()
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # must be set before cuBLAS starts
    return torch_setting(True, torch.are_deterministic_algorithms_enabled, torch.use_deterministic_algorithms)
