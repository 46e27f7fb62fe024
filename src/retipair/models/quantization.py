"""Store frozen weights in 8 or 4 bits and dequantize them at each use.

Autograd keeps the dequantized weights until the backward pass, so in training this saves memory only together with
gradient checkpointing. diffusers' layerwise casting replaces the weights in place, so the backward pass of a
convolution sees 8-bit weights and raises; parametrizations create new tensors instead.
"""

from typing import Literal

import torch
from torch import nn
from torch.nn.utils.parametrize import register_parametrization

from retipair.runtime.errors import UserError

Stored = Literal["fp8", "nf4"]
FP8 = torch.float8_e4m3fn
NF4_BLOCK = 64
"""Number of weights per scale."""
SKIP_MODULES = ("conv_in", "conv_out", "time_embedding", "add_embedding")
"""Parts of a UNet that are not quantized: they have few weights, and all activations depend on them."""


def quantize(unet: nn.Module, stored: Stored, device: str) -> nn.Module:
    """Move a frozen UNet to the device layer by layer, quantizing each layer after its move."""
    formats: dict[str, type[nn.Module]] = {"fp8": Fp8, "nf4": Nf4}
    for name, layer in list(unet.named_modules()):
        if isinstance(layer, nn.Linear | nn.Conv2d) and not name.startswith(SKIP_MODULES):
            # unsafe: permits the change of dtype
            register_parametrization(layer.to(device), "weight", formats[stored](), unsafe=True)
    return unet.to(device)


class Fp8(nn.Module):
    """8-bit floats (e4m3), with one scale per output channel so that small weights do not underflow."""

    def right_inverse(self, weight: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        self.shape = weight.shape
        largest = weight.abs().amax(tuple(range(1, weight.ndim)), keepdim=True)
        scale = (largest / torch.finfo(FP8).max).clamp(min=1e-12)
        return (weight / scale).to(FP8), scale

    def forward(self, quantized: torch.Tensor, scale: torch.Tensor) -> torch.Tensor:
        if quantized.is_meta:  # memory estimate: several times faster without arithmetic
            return scale.new_empty(self.shape)
        return quantized.to(scale.dtype) * scale


class Nf4(nn.Module):
    """4-bit NormalFloat (QLoRA, arXiv 2305.14314), by bitsandbytes."""

    def right_inverse(self, weight: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        self.shape, self.dtype = weight.shape, weight.dtype
        if weight.is_meta:  # memory estimate: works without bitsandbytes
            blocks = -(-weight.numel() // NF4_BLOCK)
            return weight.new_empty(-(-weight.numel() // 2), 1, dtype=torch.uint8), weight.new_empty(
                blocks, dtype=torch.float32
            )
        quantized, state = bitsandbytes().quantize_4bit(weight.contiguous(), blocksize=NF4_BLOCK, quant_type="nf4")
        return quantized, state.absmax

    def forward(self, quantized: torch.Tensor, scales: torch.Tensor) -> torch.Tensor:
        if quantized.is_meta:
            return quantized.new_empty(self.shape, dtype=self.dtype)
        options = {"shape": self.shape, "dtype": self.dtype, "blocksize": NF4_BLOCK, "quant_type": "nf4"}
        return bitsandbytes().dequantize_4bit(quantized, bitsandbytes().QuantState(scales, **options))


def bitsandbytes():  # type: ignore[no-untyped-def] # a module
    """Import bitsandbytes.functional. Raises UserError if it is not installed."""
    try:
        from bitsandbytes import functional
    except ImportError:
        raise UserError("weights in nf4 need bitsandbytes: pip install 'retipair[nf4]'") from None
    return functional
