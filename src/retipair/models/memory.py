"""Estimate peak memory on meta tensors, before anything is loaded, and select memory-saving strategies."""

import weakref
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import cache
from typing import Any, NamedTuple

import torch
from diffusers import UNet2DConditionModel
from torch import nn
from torch.nn import functional as F
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_flatten, tree_leaves, tree_unflatten

from retipair.models.base import Base
from retipair.models.empty import empty_text_encoders, empty_unet, empty_vae
from retipair.models.lora import adapter_parameters, add_adapter, lora_config
from retipair.models.quantization import Stored, bitsandbytes, quantize
from retipair.runtime.errors import UserError

GIB = 2**30


@dataclass(frozen=True)
class MemoryStrategy:
    """How to save memory. stored: quantized storage of the base's weights; None keeps them as loaded."""

    checkpointing: bool = False
    stored: Stored | None = None

    @property
    def name(self) -> str:
        parts = ["gradient checkpointing"] * self.checkpointing
        parts += [f"weights in {self.stored}"] if self.stored else []
        return " and ".join(parts) or "no memory savings"


TRAINING_STRATEGIES = (
    MemoryStrategy(),
    MemoryStrategy(checkpointing=True),
    MemoryStrategy(True, "fp8"),
    MemoryStrategy(True, "nf4"),
)
"""From the fastest to the smallest. int8 is omitted, because it is no smaller than fp8."""
GENERATION_STRATEGIES = tuple(dict.fromkeys(replace(s, checkpointing=False) for s in TRAINING_STRATEGIES))
"""Strategies for generation, which has no backward pass and thus no gradient checkpointing."""
PRESETS = ("24", "16", "12", "8")
FILLED = 0.9
"""Usable fraction of the device memory; the rest is for estimation error, the CUDA context and fragmentation."""

Estimate = dict[str, int]
"""Peak bytes by phase."""


def select_strategy(
    memory: str,
    strategies: Sequence[MemoryStrategy],
    bytes_of: Callable[[MemoryStrategy], int],
    free: Callable[[], int],
    advice: str,
) -> MemoryStrategy:
    """Return the first strategy whose estimate fits into `memory` GiB.

    "auto" considers only unquantized strategies and fits them into `free` bytes; if none fits, it returns the smallest.
    Raises UserError, with `advice`, if none fits a number of GiB. An estimate takes a second or more, so it is computed
    only when needed.
    """
    if memory == "auto":
        unquantized = [s for s in strategies if s.stored is None] or list(strategies[:1])
        limit = FILLED * free() if len(unquantized) > 1 else 0
        return next((s for s in unquantized[:-1] if bytes_of(s) <= limit), unquantized[-1])
    for strategy in strategies:
        if bytes_of(strategy) <= FILLED * int(memory) * GIB:
            return strategy
    smallest = min(strategies, key=bytes_of)
    raise UserError(
        f"--memory {memory}: {bytes_of(smallest) / GIB:.1f} GiB is the smallest estimate, with {smallest.name}, and "
        f"10 % must stay free; {advice}"
    )


def supported_on(device: str, strategies: Sequence[MemoryStrategy]) -> list[MemoryStrategy]:
    """Return the strategies that the device supports: MPS has no fp8 or nf4."""
    return [strategy for strategy in strategies if device != "mps" or not strategy.stored]


def require_backend(strategy: MemoryStrategy) -> MemoryStrategy:
    """Return the strategy unchanged. Raises UserError if a library that it needs is not installed."""
    if strategy.stored == "nf4":
        bitsandbytes()
    return strategy


def next_smaller_preset(
    strategy: MemoryStrategy, strategies: Sequence[MemoryStrategy], bytes_of: Callable[[MemoryStrategy], int]
) -> str | None:
    """Return the largest preset that selects a smaller strategy than this one; None if there is none."""
    for memory in PRESETS:
        try:
            selected = select_strategy(memory, strategies, bytes_of, lambda: 0, "")
        except UserError:
            return None
        if strategies.index(selected) > strategies.index(strategy):
            return memory
    return None


# Phases


class Adapter(NamedTuple):
    """Arguments of `lora_config`."""

    rank: int
    alpha: float
    targets: str
    dora: bool
    rslora: bool


MOMENTS = {"adamw": 8, "adamw8bit": 2}
"""Bytes of optimiser state per trainable parameter."""


@dataclass(frozen=True)
class Workload:
    """Inputs of the memory estimate. adapter: None for generation, where only weights count; latents: (B, C, h, w)."""

    base: Base
    adapter: Adapter | None
    latents: tuple[int, int, int, int]
    dtype: torch.dtype
    device: str

    @property
    def text(self) -> int:
        """Bytes to encode prompts: the text encoders' weights; their activations are negligible."""
        return sum(_bytes(encoder) for encoder in empty_text_encoders(self.base))

    def loading(self, step: "StepMemory") -> int:
        """Return the bytes of the loaded weights. On a CPU, all weights are loaded unquantized first."""
        return step.unquantized if self.device == "cpu" else step.weights


def training_memory(
    workload: Workload, strategy: MemoryStrategy, optimizer: str = "adamw", samples: bool = True, ema: bool = False
) -> Estimate:
    """Estimate the peak bytes of each training phase. samples: whether pairs are generated; ema: whether EMA is on."""
    step = count_step(workload, strategy, learn=True)
    vae = count_autoencoder(workload)
    persistent = step.weights + step.adapter * (4 + MOMENTS[optimizer] + 4 * ema)
    phases = {
        "text": workload.text,
        "pairs": vae.weights + vae.encode,
        "load": workload.loading(step),
        "step": persistent + max(step.live, step.adapter * 8),  # optimiser: gradients and temporaries of their size
    }
    if samples:  # includes the checkpoint's copy of the adapter; denoising one pair takes less than decoding it
        phases["samples"] = persistent + step.adapter * (4 + 4 * ema) + vae.weights + vae.decode
    return phases


def generation_memory(
    workload: Workload, strategy: MemoryStrategy, adapter: int = 0, sources: bool = False
) -> Estimate:
    """Estimate the peak bytes of each generation phase.

    workload.latents: shape of all that is denoised at once; adapter: its bytes; sources: whether images are encoded.
    """
    step, vae = count_step(workload, strategy, learn=False), count_autoencoder(workload)
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

    unquantized, weights: bytes of the frozen weights before and after quantization; adapter: number of its parameters;
    live: peak bytes of all other tensors.
    """

    unquantized: int
    weights: int
    adapter: int
    live: int


class VaeMemory(NamedTuple):
    """Bytes of the autoencoder's weights, and peak bytes of other tensors when encoding and decoding one pair."""

    weights: int
    encode: int
    decode: int


WORKSPACE = 1.0
"""Assumed convolution workspace (copies in another memory layout), as a fraction of its input and output bytes."""
CONVOLUTIONS = (torch.ops.aten.convolution.default, torch.ops.aten.convolution_backward.default)


class _TensorSpec(NamedTuple):
    shape: torch.Size
    stride: tuple[int, ...]
    dtype: torch.dtype
    device: torch.device


_RESULT_SPECS: dict[Any, Any] = {}
"""Cache of result specs by function and operand specs: networks repeat layers, and meta kernels are slow Python."""


def _result_of(function: Any, args: Any, kwargs: Any) -> Any:
    """Return function(*args, **kwargs) for meta tensors, cached by the specs of the operands."""
    if any(operand.alias_info for operand in (*function._schema.arguments, *function._schema.returns)):
        return function(*args, **kwargs)
    leaves, tree = tree_flatten((args, kwargs))
    key = (function, tree, *(_spec_of(leaf) for leaf in leaves))
    if key not in _RESULT_SPECS:
        results, result_tree = tree_flatten(function(*args, **kwargs))
        _RESULT_SPECS[key] = [_spec_of(leaf) for leaf in results], result_tree
    specs, result_tree = _RESULT_SPECS[key]
    return tree_unflatten([_allocate(spec) for spec in specs], result_tree)


def _spec_of(leaf: Any) -> Any:
    if not isinstance(leaf, torch.Tensor):
        return leaf
    return _TensorSpec(leaf.shape, leaf.stride(), leaf.dtype, leaf.device)


def _allocate(spec: Any) -> Any:
    if not isinstance(spec, _TensorSpec):
        return spec
    return torch.empty_strided(spec.shape, spec.stride, dtype=spec.dtype, device=spec.device)


class PeakMemoryMode(TorchDispatchMode):
    """Track the current and peak bytes of tensors allocated in this context, except the model's own."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.current = self.peak = 0
        self._sizes = {part.untyped_storage()._cdata: 0 for part in (*model.parameters(), *model.buffers())}

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = _result_of(function, args, kwargs or {})
        outputs = [leaf for leaf in tree_leaves(result) if isinstance(leaf, torch.Tensor)]
        for tensor in outputs:
            self._track(tensor.untyped_storage())
        workspace = 0.0
        if function in CONVOLUTIONS:
            inputs = [leaf for leaf in tree_leaves(args) if isinstance(leaf, torch.Tensor)]
            workspace = WORKSPACE * sum(t.numel() * t.element_size() for t in (*inputs, *outputs))
        self.peak = max(self.peak, self.current + round(workspace))
        return result

    def _track(self, storage: torch.UntypedStorage) -> None:
        key = storage._cdata
        if key not in self._sizes:
            self._sizes[key] = storage.nbytes()
            self.current += storage.nbytes()
            weakref.finalize(storage, self._release, key)

    def _release(self, key: int) -> None:
        self.current -= self._sizes.pop(key)


@cache
def count_step(workload: Workload, strategy: MemoryStrategy, learn: bool) -> StepMemory:
    """Count the memory of one UNet call, with its backward pass if `learn`."""
    unet = empty_unet(workload.base).requires_grad_(False).train(learn).to(workload.dtype)
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
        _emulate_autocast(unet, workload.dtype, workload.device.startswith("cuda"))
    with _fused_attention(), torch.set_grad_enabled(learn), PeakMemoryMode(unet) as memory:
        predicted = meta_forward(unet, workload.latents[1:], workload.latents[0], workload.dtype).float()
        if learn:
            predicted.sum().backward()
    return StepMemory(unquantized, weights, trainable, memory.peak)


@cache
def count_autoencoder(workload: Workload) -> VaeMemory:
    """Count the memory of encoding and decoding one pair in fp32; pairs are processed one by one."""
    vae = empty_vae(workload.base).requires_grad_(False)
    _, channels, height, width = workload.latents
    factor = workload.base.latent_factor
    with _fused_attention(), torch.no_grad():
        with PeakMemoryMode(vae) as encoding:
            vae.encode(torch.empty(1, 3, height * factor, width * factor, device="meta"))
        with PeakMemoryMode(vae) as decoding:
            vae.decode(torch.empty(1, channels, height, width, device="meta"))
    return VaeMemory(_bytes(vae), encoding.peak, decoding.peak)


def _bytes(model: nn.Module) -> int:
    return sum(p.numel() * p.element_size() for p in model.parameters())


def _emulate_autocast(unet: nn.Module, dtype: torch.dtype, cuda: bool) -> None:
    """Emulate autocast, which ignores meta tensors: cast the inputs of layers; on CUDA compute norms in fp32."""
    for name, layer in unet.named_modules():
        trainable = "lora_" in name  # PEFT passes fp32 inputs to these, so autocast makes a copy for each
        if trainable:
            layer.to(dtype)
        if isinstance(layer, nn.Linear | nn.Conv2d):
            layer.register_forward_pre_hook(lambda _, args, copy=trainable: (args[0].to(dtype, copy=copy),))
        elif cuda and isinstance(layer, nn.LayerNorm | nn.GroupNorm):
            layer.float().register_forward_pre_hook(lambda _, args: (args[0].float(),))


@contextmanager
def _fused_attention() -> Iterator[None]:
    """Use fused attention, as real devices do; on meta tensors torch would materialise the attention matrix."""
    original = F.scaled_dot_product_attention
    fused = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu
    F.scaled_dot_product_attention = lambda q, k, v, *_, **__: fused(q, k, v)[0]
    try:
        yield
    finally:
        F.scaled_dot_product_attention = original


def meta_forward(
    unet: UNet2DConditionModel,
    latent_shape: tuple[int, int, int],
    batch_size: int = 1,
    dtype: torch.dtype = torch.float32,
) -> torch.Tensor:
    """Run one forward pass of a UNet on the meta device."""
    config = unet.config
    options: Any = {"device": "meta", "dtype": dtype}
    added = None
    if config.addition_embed_type == "text_time":
        pooled = config.projection_class_embeddings_input_dim - 6 * config.addition_time_embed_dim
        added = {
            "text_embeds": torch.empty(batch_size, pooled, **options),
            "time_ids": torch.empty(batch_size, 6, **options),
        }
    return unet(
        torch.empty(batch_size, *latent_shape, **options),
        torch.empty(batch_size, device="meta"),
        encoder_hidden_states=torch.empty(batch_size, 77, config.cross_attention_dim, **options),
        added_cond_kwargs=added,
        return_dict=False,
    )[0]
