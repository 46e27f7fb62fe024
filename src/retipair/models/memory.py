"""How much memory a command takes, counted on tensors without storage before anything is loaded; how to take less."""

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
    """A way to save memory. stored: what the base's weights are held in, where not as they are loaded."""

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
"""From the fastest to the smallest. Eight-bit integers are not among them: they are no smaller than fp8."""
GENERATION_STRATEGIES = tuple(dict.fromkeys(replace(way, checkpointing=False) for way in TRAINING_STRATEGIES))
"""The same for drawing, which has no backward pass to keep anything for."""
PRESETS = ("24", "16", "12", "8")
FILLED = 0.9
"""Of a device's memory, at most: the rest is for the estimate's error, CUDA itself and gaps between tensors."""

Estimate = dict[str, int]
"""Phase -> bytes at its peak."""


def select_strategy(
    memory: str,
    ways: Sequence[MemoryStrategy],
    bytes_of: Callable[[MemoryStrategy], int],
    free: Callable[[], int],
    advice: str,
) -> MemoryStrategy:
    """The first way whose bytes fit: for "auto" the `free` ones, of the ways that change no result; else that many GiB.

    Raises UserError, with `advice`, if none fits a number of GiB. Estimates take a second or more: none is made that is
    not needed.
    """
    if memory == "auto":
        harmless = [way for way in ways if way.stored is None] or list(ways[:1])
        limit = FILLED * free() if len(harmless) > 1 else 0
        return next((way for way in harmless[:-1] if bytes_of(way) <= limit), harmless[-1])
    for way in ways:
        if bytes_of(way) <= FILLED * int(memory) * GIB:
            return way
    least = min(ways, key=bytes_of)
    raise UserError(
        f"--memory {memory}: {bytes_of(least) / GIB:.1f} GiB is the smallest estimate, with {least.name}, and a tenth "
        f"must stay free; {advice}"
    )


def supported_on(device: str, ways: Sequence[MemoryStrategy]) -> list[MemoryStrategy]:
    """Those of the ways that the device can go: Apple's GPUs have no arithmetic on fewer bits."""
    return [way for way in ways if device != "mps" or not way.stored]


def require_backend(way: MemoryStrategy) -> MemoryStrategy:
    """The same. Raises UserError, before any work, where the library that it needs is not installed."""
    if way.stored == "nf4":
        bitsandbytes()
    return way


def next_smaller_preset(
    way: MemoryStrategy, ways: Sequence[MemoryStrategy], bytes_of: Callable[[MemoryStrategy], int]
) -> str | None:
    """The largest preset that takes a smaller way than this one; None if there is none."""
    for memory in PRESETS:
        try:
            chosen = select_strategy(memory, ways, bytes_of, lambda: 0, "")
        except UserError:
            return None
        if ways.index(chosen) > ways.index(way):
            return memory
    return None


# Phases


class Adapter(NamedTuple):
    """What `lora_config` takes."""

    rank: int
    alpha: float
    targets: str
    dora: bool
    rslora: bool


MOMENTS = {"adamw": 8, "adamw8bit": 2}
"""Bytes an optimiser keeps for each trainable parameter."""


@dataclass(frozen=True)
class Workload:
    """What memory depends on. adapter: None to draw, whose share is but its weights; latents: (B, C, h, w)."""

    base: Base
    adapter: Adapter | None
    latents: tuple[int, int, int, int]
    dtype: torch.dtype
    device: str

    @property
    def text(self) -> int:
        """Bytes to encode sentences: the encoders' weights; what they work on is small."""
        return sum(_bytes(encoder) for encoder in empty_text_encoders(self.base))

    def loading(self, step: "StepMemory") -> int:
        """The weights; where the CPU is the device they lie there whole until they are held in fewer bits."""
        return step.whole if self.device == "cpu" else step.weights


def training_memory(
    work: Workload, way: MemoryStrategy, optimizer: str = "adamw", samples: bool = True, ema: bool = False
) -> Estimate:
    """Bytes of each phase of a training. samples: whether it draws some; ema: whether it keeps an average."""
    step = count_step(work, way, learn=True)
    pairs = count_autoencoder(work)
    kept = step.weights + step.adapter * (4 + MOMENTS[optimizer] + 4 * ema)
    phases = {
        "text": work.text,
        "pairs": pairs.weights + pairs.encode,
        "load": work.loading(step),
        "step": kept + max(step.live, step.adapter * 8),  # the optimiser's: gradients, and as much once more
    }
    if samples:  # a checkpoint's copy of the adapter is made before; to denoise one pair takes less than to decode it
        phases["samples"] = kept + step.adapter * (4 + 4 * ema) + pairs.weights + pairs.decode
    return phases


def generation_memory(work: Workload, way: MemoryStrategy, adapter: int = 0, sources: bool = False) -> Estimate:
    """Bytes of each phase of drawing.

    work.latents: of all that is denoised at once; adapter: its bytes; sources: whether real pairs are varied.
    """
    step, pairs = count_step(work, way, learn=False), count_autoencoder(work)
    kept = step.weights + adapter + pairs.weights
    return {
        "text": work.text,
        "load": work.loading(step),
        "denoise": kept + step.live,
        "decode": kept + max(pairs.decode, pairs.encode * sources),
    }


# Counting


class StepMemory(NamedTuple):
    """whole, weights: bytes of the frozen weights, as loaded and as held; adapter: parameters; live: bytes beside."""

    whole: int
    weights: int
    adapter: int
    live: int


class VaeMemory(NamedTuple):
    """Bytes of the autoencoder's weights, and of what encoding and decoding one pair take beside."""

    weights: int
    encode: int
    decode: int


WORKSPACE = 1.0
"""Of what a convolution reads and writes, what its kernel takes beside: tensors in the order that it likes."""
CONVOLUTIONS = (torch.ops.aten.convolution.default, torch.ops.aten.convolution_backward.default)


class _Form(NamedTuple):
    shape: torch.Size
    stride: tuple[int, ...]
    dtype: torch.dtype
    device: torch.device


_FORMS: dict[Any, Any] = {}
"""What functions made of operands of such forms: a network repeats itself, and torch works a form out in Python."""


def _result_of(function: Any, args: Any, kwargs: Any) -> Any:
    """function(*args, **kwargs), of tensors without storage, worked out once for operands of one form."""
    if any(one.alias_info for one in (*function._schema.arguments, *function._schema.returns)):
        return function(*args, **kwargs)
    leaves, tree = tree_flatten((args, kwargs))
    key = (function, tree, *(_form(leaf) for leaf in leaves))
    if key not in _FORMS:
        made, made_tree = tree_flatten(function(*args, **kwargs))
        _FORMS[key] = [_form(leaf) for leaf in made], made_tree
    forms, made_tree = _FORMS[key]
    return tree_unflatten([_new(form) for form in forms], made_tree)


def _form(leaf: Any) -> Any:
    if not isinstance(leaf, torch.Tensor):
        return leaf
    return _Form(leaf.shape, leaf.stride(), leaf.dtype, leaf.device)


def _new(form: Any) -> Any:
    if not isinstance(form, _Form):
        return form
    return torch.empty_strided(form.shape, form.stride, dtype=form.dtype, device=form.device)


class PeakMemoryMode(TorchDispatchMode):
    """Counts the bytes of tensors made inside that are still there, and the most at any time."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.now = self.peak = 0
        self._sizes = {part.untyped_storage()._cdata: 0 for part in (*model.parameters(), *model.buffers())}

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = _result_of(function, args, kwargs or {})
        made = [leaf for leaf in tree_leaves(result) if isinstance(leaf, torch.Tensor)]
        for tensor in made:
            self._note(tensor.untyped_storage())
        beside = 0.0
        if function in CONVOLUTIONS:
            read = [leaf for leaf in tree_leaves(args) if isinstance(leaf, torch.Tensor)]
            beside = WORKSPACE * sum(t.numel() * t.element_size() for t in (*read, *made))
        self.peak = max(self.peak, self.now + round(beside))
        return result

    def _note(self, storage: torch.UntypedStorage) -> None:
        key = storage._cdata
        if key not in self._sizes:
            self._sizes[key] = storage.nbytes()
            self.now += storage.nbytes()
            weakref.finalize(storage, self._gone, key)

    def _gone(self, key: int) -> None:
        self.now -= self._sizes.pop(key)


@cache
def count_step(work: Workload, way: MemoryStrategy, learn: bool) -> StepMemory:
    """One call of the UNet, to learn with its way back."""
    unet = empty_unet(work.base).requires_grad_(False).train(learn).to(work.dtype)
    whole = _bytes(unet)
    if way.stored:
        quantize(unet, way.stored, "meta")
    weights = _bytes(unet)
    if work.adapter:
        add_adapter(unet, lora_config(*work.adapter))
    trainable = sum(parameter.numel() for parameter in adapter_parameters(unet).values())
    if way.checkpointing:
        unet.enable_gradient_checkpointing()
    if work.dtype != torch.float32:
        _as_autocast(unet, work.dtype, work.device.startswith("cuda"))
    with _fused_attention(), torch.set_grad_enabled(learn), PeakMemoryMode(unet) as live:
        predicted = meta_forward(unet, work.latents[1:], work.latents[0], work.dtype).float()
        if learn:
            predicted.sum().backward()
    return StepMemory(whole, weights, trainable, live.peak)


@cache
def count_autoencoder(work: Workload) -> VaeMemory:
    """For one pair: they are encoded and decoded one by one, in fp32."""
    vae = empty_vae(work.base).requires_grad_(False)
    _, channels, height, width = work.latents
    factor = work.base.latent_factor
    with _fused_attention(), torch.no_grad():
        with PeakMemoryMode(vae) as encoding:
            vae.encode(torch.empty(1, 3, height * factor, width * factor, device="meta"))
        with PeakMemoryMode(vae) as decoding:
            vae.decode(torch.empty(1, channels, height, width, device="meta"))
    return VaeMemory(_bytes(vae), encoding.peak, decoding.peak)


def _bytes(model: nn.Module) -> int:
    return sum(p.numel() * p.element_size() for p in model.parameters())


def _as_autocast(unet: nn.Module, dtype: torch.dtype, cuda: bool) -> None:
    """What autocast does, which tensors without storage do not know: casts before layers, norms in fp32 on CUDA."""
    for name, layer in unet.named_modules():
        learns = "lora_" in name  # the library hands these fp32, so that each has a copy of its own
        if learns:
            layer.to(dtype)
        if isinstance(layer, nn.Linear | nn.Conv2d):
            layer.register_forward_pre_hook(lambda _, args, copy=learns: (args[0].to(dtype, copy=copy),))
        elif cuda and isinstance(layer, nn.LayerNorm | nn.GroupNorm):
            layer.float().register_forward_pre_hook(lambda _, args: (args[0].float(),))


@contextmanager
def _fused_attention() -> Iterator[None]:
    """As every device has it; without storage torch would take the one that writes the whole matrix of weights."""
    real = F.scaled_dot_product_attention
    fused = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu
    F.scaled_dot_product_attention = lambda q, k, v, *_, **__: fused(q, k, v)[0]
    try:
        yield
    finally:
        F.scaled_dot_product_attention = real


def meta_forward(
    unet: UNet2DConditionModel,
    latent_shape: tuple[int, int, int],
    batch_size: int = 1,
    dtype: torch.dtype = torch.float32,
) -> torch.Tensor:
    """One forward on tensors without storage; unet: on the meta device."""
    config = unet.config
    made: Any = {"device": "meta", "dtype": dtype}
    added = None
    if config.addition_embed_type == "text_time":
        pooled = config.projection_class_embeddings_input_dim - 6 * config.addition_time_embed_dim
        added = {"text_embeds": torch.empty(batch_size, pooled, **made), "time_ids": torch.empty(batch_size, 6, **made)}
    return unet(
        torch.empty(batch_size, *latent_shape, **made),
        torch.empty(batch_size, device="meta"),
        encoder_hidden_states=torch.empty(batch_size, 77, config.cross_attention_dim, **made),
        added_cond_kwargs=added,
        return_dict=False,
    )[0]
