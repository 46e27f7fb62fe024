"""Estimate the peak memory of training and generation with meta tensors, before anything is loaded."""

from dataclasses import dataclass
from functools import cache
from typing import NamedTuple

import torch
from torch import nn

from retipair.models.base import Base
from retipair.models.empty import empty_text_encoders, empty_unet, empty_vae
from retipair.models.lora import adapter_parameters, add_adapter, lora_config
from retipair.models.memory_strategies import MemoryStrategy
from retipair.models.peak_memory import PeakMemoryMode, emulate_autocast, fused_attention, meta_forward
from retipair.models.quantization import quantize

Estimate = dict[str, int]
"""Peak memory in bytes, by the name of the phase of training or generation."""


class Adapter(NamedTuple):
    """Settings of an adapter: the arguments of `lora_config`."""

    rank: int
    alpha: float
    targets: str
    dora: bool
    rslora: bool


MOMENTS = {"adamw": 8, "adamw8bit": 2}
"""Bytes of optimiser state per trainable parameter, by the name of the optimiser."""


@dataclass(frozen=True)
class Workload:
    """Properties of a training or a generation that determine its memory.

    adapter: the settings of the adapter to train; None for generation (`generation_memory` takes the adapter's size).
    latents: the shape (B, C, h, w) of the latents of one UNet call.
    dtype: the dtype of the frozen weights.
    """

    base: Base
    adapter: Adapter | None
    latents: tuple[int, int, int, int]
    dtype: torch.dtype
    device: str

    @property
    def text(self) -> int:
        """Bytes needed to encode prompts: the weights of the text encoders. Their activations are negligible."""
        return sum(_bytes(encoder) for encoder in empty_text_encoders(self.base))

    def loading(self, step: "StepMemory") -> int:
        """Return the peak bytes of loading the UNet. On a CPU, all weights are in memory before they are quantized."""
        return step.unquantized if self.device == "cpu" else step.weights


def training_memory(
    workload: Workload, strategy: MemoryStrategy, optimizer: str = "adamw", samples: bool = True, ema: bool = False
) -> Estimate:
    """Estimate the peak memory of each phase of training, in bytes.

    samples: whether training also generates sample pairs.
    ema: whether training keeps an exponential moving average of the adapter.
    """
    step = count_step(workload, strategy, backward=True)
    vae = count_autoencoder(workload)
    persistent = step.weights + step.adapter * (4 + MOMENTS[optimizer] + 4 * ema)
    phases = {
        "text": workload.text,
        "pairs": vae.weights + vae.encode,
        "load": workload.loading(step),
        # 8 bytes per parameter in the update: the fp32 gradients, and temporary tensors of the same size
        "step": persistent + max(step.live, step.adapter * 8),
    }
    if samples:  # the peak is in decoding, when a copy of the adapter for the checkpoint is also in memory
        phases["samples"] = persistent + step.adapter * (4 + 4 * ema) + vae.weights + vae.decode
    return phases


def generation_memory(
    workload: Workload, strategy: MemoryStrategy, adapter: int = 0, sources: bool = False
) -> Estimate:
    """Estimate the peak memory of each phase of generation, in bytes.

    adapter: the size of the adapter in bytes.
    sources: whether generation starts from existing images, which it must encode.
    """
    step, vae = count_step(workload, strategy, backward=False), count_autoencoder(workload)
    persistent = step.weights + adapter + vae.weights
    return {
        "text": workload.text,
        "load": workload.loading(step),
        "denoise": persistent + step.live,
        "decode": persistent + max(vae.decode, vae.encode * sources),
    }


# Counting


class StepMemory(NamedTuple):
    """Memory of one UNet call.

    unquantized: the bytes of the frozen weights before quantization.
    weights: the bytes of the frozen weights after quantization.
    adapter: the number of trainable parameters of the adapter.
    live: the peak bytes of activations, gradients and temporary tensors.
    """

    unquantized: int
    weights: int
    adapter: int
    live: int


class VaeMemory(NamedTuple):
    """Memory of the autoencoder.

    weights: the bytes of the weights.
    encode: the peak bytes of all other tensors while one pair is encoded.
    decode: the peak bytes of all other tensors while one pair is decoded.
    """

    weights: int
    encode: int
    decode: int


@cache
def count_step(workload: Workload, strategy: MemoryStrategy, backward: bool) -> StepMemory:
    """Count the memory of one UNet call: the forward pass and, if `backward` is true, the backward pass."""
    unet = empty_unet(workload.base).requires_grad_(False).train(backward).to(workload.dtype)
    unquantized = _bytes(unet)
    if strategy.stored:
        quantize(unet, strategy.stored, "meta")
    weights = _bytes(unet)
    if workload.adapter:
        add_adapter(unet, lora_config(*workload.adapter))
    trainable = sum(parameter.numel() for parameter in adapter_parameters(unet).values())
    if strategy.checkpointing:
        unet.enable_gradient_checkpointing()
    if workload.dtype != torch.float32:
        emulate_autocast(unet, workload.dtype, workload.device.startswith("cuda"))
    with fused_attention(), torch.set_grad_enabled(backward), PeakMemoryMode(unet) as memory:
        predicted = meta_forward(unet, workload.latents[1:], workload.latents[0], workload.dtype).float()
        if backward:
            predicted.sum().backward()
    return StepMemory(unquantized, weights, trainable, memory.peak)


@cache
def count_autoencoder(workload: Workload) -> VaeMemory:
    """Count the memory of the autoencoder in fp32. Pairs are encoded and decoded one by one."""
    vae = empty_vae(workload.base).requires_grad_(False)
    _, channels, height, width = workload.latents
    factor = workload.base.latent_factor
    with fused_attention(), torch.no_grad():
        with PeakMemoryMode(vae) as encoding:
            vae.encode(torch.empty(1, 3, height * factor, width * factor, device="meta"))
        with PeakMemoryMode(vae) as decoding:
            vae.decode(torch.empty(1, channels, height, width, device="meta"))
    return VaeMemory(_bytes(vae), encoding.peak, decoding.peak)


def _bytes(model: nn.Module) -> int:
    return sum(p.numel() * p.element_size() for p in model.parameters())
