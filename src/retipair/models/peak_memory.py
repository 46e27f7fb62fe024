"""Measure the peak memory of a network call with meta tensors, which have shapes but use no memory."""

import weakref
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
from diffusers import UNet2DConditionModel
from torch import nn
from torch.nn import functional as F
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_flatten, tree_leaves, tree_unflatten

WORKSPACE = 1.0
"""Assumed temporary memory of a convolution, as a fraction of the bytes of its inputs and outputs."""
CONVOLUTIONS = (torch.ops.aten.convolution.default, torch.ops.aten.convolution_backward.default)


class _TensorSpec(NamedTuple):
    shape: torch.Size
    stride: tuple[int, ...]
    dtype: torch.dtype
    device: torch.device


_RESULT_SPECS: dict[Any, Any] = {}
"""Cache of the shape, stride, dtype and device of an operation's results, by the operation and its arguments.

It saves time: each operation on meta tensors is slow, and networks repeat the same layers many times.
"""


def _result_of(function: Any, args: Any, kwargs: Any) -> Any:
    """Return function(*args, **kwargs) for meta tensors.

    If the shapes and types of the results are in the cache, the function is not called.
    """
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
    """Context that measures the bytes of all tensors created in it, except the parameters and buffers of `model`.

    current: the bytes of the tensors that exist now. peak: the highest value of `current` plus temporary memory.
    """

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


def emulate_autocast(unet: nn.Module, dtype: torch.dtype, cuda: bool) -> None:
    """Imitate autocast, which has no effect on meta tensors, with hooks on the layers of a UNet.

    The hooks cast the inputs of linear layers and convolutions to `dtype` and, if `cuda`, those of norms to fp32.
    """
    for name, layer in unet.named_modules():
        # On a real device, PEFT passes fp32 inputs to LoRA layers, and autocast casts them. `copy` emulates this cast.
        trainable = "lora_" in name
        if trainable:
            layer.to(dtype)
        if isinstance(layer, nn.Linear | nn.Conv2d):
            layer.register_forward_pre_hook(lambda _, args, copy=trainable: (args[0].to(dtype, copy=copy),))
        elif cuda and isinstance(layer, nn.LayerNorm | nn.GroupNorm):
            layer.float().register_forward_pre_hook(lambda _, args: (args[0].float(),))


@contextmanager
def fused_attention() -> Iterator[None]:
    """Use fused attention as real devices do. For meta tensors, torch would create the full attention matrix."""
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
    """Run one forward pass of a UNet that is on the meta device, and return its prediction.

    latent_shape: the shape (C, h, w) of the latents of one sample.
    """
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
