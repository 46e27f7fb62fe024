"""Frozen weights held in fewer bits, and made whole each time they are used.

Autograd keeps whatever a layer was computed with until the backward pass, whole weights too: in training this saves
memory only together with gradient checkpointing. The library's layerwise casting swaps the weights under autograd's
feet, so that a convolution's backward pass finds 8-bit ones and stops: hence parametrizations, which make new tensors.
"""

from typing import Literal

import torch
from torch import nn
from torch.nn.utils.parametrize import register_parametrization

from retipair.runtime.errors import UserError

Stored = Literal["fp8", "nf4"]
FP8 = torch.float8_e4m3fn
NF4_BLOCK = 64
"""Weights that share a scale."""
SKIP_MODULES = ("conv_in", "conv_out", "time_embedding", "add_embedding")
"""Parts of a UNet that stay as they are: few weights, which everything passes through."""


def quantize(unet: nn.Module, stored: Stored, device: str) -> nn.Module:
    """Move a frozen UNet to the device, the weights of each layer in fewer bits as soon as they are there."""
    parts: dict[str, type[nn.Module]] = {"fp8": Fp8, "nf4": Nf4}
    for name, layer in list(unet.named_modules()):
        if isinstance(layer, nn.Linear | nn.Conv2d) and not name.startswith(SKIP_MODULES):
            register_parametrization(layer.to(device), "weight", parts[stored](), unsafe=True)  # another dtype is meant
    return unet.to(device)


class Fp8(nn.Module):
    """8-bit floats; each output channel has a scale, lest small weights fall below what these can tell apart."""

    def right_inverse(self, weight: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        self.shape = weight.shape
        largest = weight.abs().amax(tuple(range(1, weight.ndim)), keepdim=True)
        scale = (largest / torch.finfo(FP8).max).clamp(min=1e-12)
        return (weight / scale).to(FP8), scale

    def forward(self, small: torch.Tensor, scale: torch.Tensor) -> torch.Tensor:
        if small.is_meta:  # to be counted, which is several times quicker without arithmetic
            return scale.new_empty(self.shape)
        return small.to(scale.dtype) * scale


class Nf4(nn.Module):
    """4-bit normal floats (QLoRA, arXiv 2305.14314), by bitsandbytes."""

    def right_inverse(self, weight: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        self.shape, self.dtype = weight.shape, weight.dtype
        if weight.is_meta:  # that needs no library
            blocks = -(-weight.numel() // NF4_BLOCK)
            return weight.new_empty(-(-weight.numel() // 2), 1, dtype=torch.uint8), weight.new_empty(
                blocks, dtype=torch.float32
            )
        small, state = bitsandbytes().quantize_4bit(weight.contiguous(), blocksize=NF4_BLOCK, quant_type="nf4")
        return small, state.absmax

    def forward(self, small: torch.Tensor, scales: torch.Tensor) -> torch.Tensor:
        if small.is_meta:
            return small.new_empty(self.shape, dtype=self.dtype)
        known = {"shape": self.shape, "dtype": self.dtype, "blocksize": NF4_BLOCK, "quant_type": "nf4"}
        return bitsandbytes().dequantize_4bit(small, bitsandbytes().QuantState(scales, **known))


def bitsandbytes():  # type: ignore[no-untyped-def] # a module
    """Its functions. Raises UserError where it is not installed."""
    try:
        from bitsandbytes import functional
    except ImportError:
        raise UserError("weights in nf4 need bitsandbytes: pip install 'retipair[nf4]'") from None
    return functional
