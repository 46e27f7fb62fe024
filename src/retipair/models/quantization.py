"""Store frozen weights in 8 or 4 bits and dequantize them at each use.

In training, quantization saves memory only together with gradient checkpointing, because autograd otherwise keeps the
dequantized weights until the backward pass. The layers use torch's parametrizations. diffusers' layerwise casting does
not work for training: it replaces the weights in place, so that the backward pass of a convolution gets 8-bit weights
and fails.
"""

from typing import Literal

import torch
from torch import nn
from torch.nn.utils.parametrize import register_parametrization

from retipair.runtime.errors import UserError

Stored = Literal["fp8", "nf4"]
FP8 = torch.float8_e4m3fn
NF4_BLOCK = 64
"""Number of consecutive weights that share one scale factor."""
SKIP_MODULES = ("conv_in", "conv_out", "time_embedding", "add_embedding")
"""Names of UNet modules that are not quantized: they are small, and their errors would affect the whole output."""


def quantize(unet: nn.Module, stored: Stored, device: str) -> nn.Module:
    """Quantize a frozen UNet on `device`. Layers are moved and quantized one by one, to limit the peak memory."""
    formats: dict[str, type[nn.Module]] = {"fp8": Fp8, "nf4": Nf4}
    for name, layer in list(unet.named_modules()):
        if isinstance(layer, nn.Linear | nn.Conv2d) and not name.startswith(SKIP_MODULES):
            # unsafe=True, because the dtype changes
            register_parametrization(layer.to(device), "weight", formats[stored](), unsafe=True)
    return unet.to(device)


class Fp8(nn.Module):
    """Storage of weights as 8-bit floats (e4m3). One scale factor per output channel prevents underflow."""

    def right_inverse(self, weight: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        self.shape = weight.shape
        largest = weight.abs().amax(tuple(range(1, weight.ndim)), keepdim=True)
        scale = (largest / torch.finfo(FP8).max).clamp(min=1e-12)
        return (weight / scale).to(FP8), scale

    def forward(self, quantized: torch.Tensor, scale: torch.Tensor) -> torch.Tensor:
        if quantized.is_meta:  # for the memory estimate, the shape suffices
            return scale.new_empty(self.shape)
        return quantized.to(scale.dtype) * scale


class Nf4(nn.Module):
    """Storage of weights as 4-bit NormalFloat (QLoRA, arXiv 2305.14314), with the library bitsandbytes."""

    def right_inverse(self, weight: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        self.shape, self.dtype = weight.shape, weight.dtype
        if weight.is_meta:  # for the memory estimate, without bitsandbytes
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
    """Return the module bitsandbytes.functional. Raises UserError if bitsandbytes is not installed."""
    try:
        from bitsandbytes import functional
    except ImportError:
        raise UserError("weights in nf4 need bitsandbytes: pip install 'retipair[nf4]'") from None
    return functional
