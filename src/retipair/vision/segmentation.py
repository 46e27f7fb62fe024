"""Segment vessels with a small neural network that was trained on rendered eyes, whose vessels are known exactly."""

from functools import cache
from itertools import pairwise
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import load_file
from torch import nn
from torch.nn import functional as F
from torch.nn.utils import convert_conv2d_weight_memory_format

from retipair.vision.ridges import flattened

WEIGHTS = Path(__file__).with_name("segmenter.safetensors")
"""Weights of the network, trained by recipes/segmenter.py."""
_WIDTHS = (32, 48, 64, 96)
_FOLD = 2  # factor of the pixel unshuffle at the input, which halves the computing time
_MULTIPLE = _FOLD * 2 ** (len(_WIDTHS) - 1)


class Segmenter(nn.Module):
    """Network that predicts, for each pixel, the logit of the probability that it belongs to a vessel.

    It is a U-Net (Ronneberger et al. 2015, arXiv 1505.04597) with four resolutions. The finest has half the resolution
    of the view, and each of its positions predicts four pixels.

    Input: the locally normalised brightness of views (see `flattened`), (B, 1, H, W), H and W multiples of 16.
    Output: the logits, (B, 1, H, W).
    """

    def __init__(self) -> None:
        super().__init__()
        self.down = nn.ModuleList(_double(before, after) for before, after in pairwise((_FOLD**2, *_WIDTHS)))
        self.up = nn.ModuleList(_double(a + b, a) for a, b in pairwise(_WIDTHS))
        self.head = nn.Conv2d(_WIDTHS[0], _FOLD**2, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = F.pixel_unshuffle(x, _FOLD)
        skips: list[torch.Tensor] = []
        for level in self.down:
            x = level(_halve(x) if skips else x)
            skips.append(x)
        x = skips.pop()
        for level in reversed(self.up):
            x = level(torch.cat([skips.pop(), F.interpolate(x, scale_factor=2.0)], dim=1))
        return F.pixel_shuffle(self.head(x), _FOLD)


def vessels(image: np.ndarray, mask: np.ndarray, dark: bool | None = None) -> np.ndarray:
    """Return the vessels of a view as a mask, (H, W) bool.

    The same network segments CF and FA. In both, it sees bright vessels, because the green channel of a CF is inverted.

    image: a CF (H, W, 3) or FA (H, W), uint8, about 512 px wide.
    mask: the valid pixels, (H, W) bool; the result is False elsewhere.
    dark: as in `flattened`.
    """
    return vessels_of_flattened(flattened(image, mask, dark), mask)


def vessels_of_flattened(flat: np.ndarray, mask: np.ndarray) -> np.ndarray:
    """Return the `vessels` of a view whose `flattened` brightness (H, W) is known, (H, W) bool."""
    return np.asarray(mask & (_probability(flat) > 0.5))


def vessel_probability(image: np.ndarray, mask: np.ndarray, dark: bool | None = None) -> np.ndarray:
    """Return the probability that each pixel belongs to a vessel, (H, W) float32 in [0, 1]; 0 outside the mask.

    image: a CF (H, W, 3) or FA (H, W), uint8, about 512 px wide.
    mask: the valid pixels, (H, W) bool.
    dark: as in `flattened`.
    """
    return _probability(flattened(image, mask, dark))


def segment_flattened(flat: np.ndarray) -> np.ndarray:
    """Return the vessels in a map of locally normalised brightness as a mask, (H, W) bool.

    On CPUs with bfloat16 instructions, this takes half the time of float32, and about one pixel in 7,000 is classified
    differently.

    flat: the result of `flattened`, or the mean of its results for CF and FA, (H, W) float32, about 512 px wide.
    """
    return np.asarray(_probability(flat, _fastest_dtype()) > 0.5)


@torch.inference_mode()
def _probability(flat: np.ndarray, dtype: torch.dtype = torch.float32) -> np.ndarray:
    """Return the probability that each pixel belongs to a vessel, (H, W) float32 in [0, 1]; 0 where `flat` is 0."""
    height, width = flat.shape
    padded = np.pad(flat, ((0, -height % _MULTIPLE), (0, -width % _MULTIPLE)))
    inputs = torch.from_numpy(padded)[None, None].to(dtype).contiguous(memory_format=torch.channels_last)
    logits = _segmenter(dtype)(inputs).float()
    return np.asarray(torch.sigmoid(logits)[0, 0, :height, :width].numpy() * (flat != 0))


def _fastest_dtype() -> torch.dtype:
    """Return bfloat16 if the CPU has instructions for it, else float32."""
    tests = (getattr(torch.cpu, name, None) for name in ("_is_avx512_bf16_supported", "_is_amx_tile_supported"))
    return torch.bfloat16 if any(test() for test in tests if test) else torch.float32


@cache
def _segmenter(dtype: torch.dtype = torch.float32) -> Segmenter:
    segmenter = Segmenter()
    segmenter.load_state_dict({name: tensor.float() for name, tensor in load_file(WEIGHTS).items()})
    convert_conv2d_weight_memory_format(segmenter, torch.channels_last)  # a sixth faster
    return segmenter.to(dtype).eval()


def _halve(x: torch.Tensor) -> torch.Tensor:
    """Return the maximum of each 2 x 2 pixels, as `max_pool2d` does, in a third of its time on a CPU."""
    top, bottom = (torch.maximum(x[..., row::2, ::2], x[..., row::2, 1::2]) for row in (0, 1))
    return torch.maximum(top, bottom)


def _double(before: int, after: int) -> nn.Sequential:
    """Return two 3 x 3 convolutions, each followed by group normalisation and SiLU."""
    layers: list[nn.Module] = []
    for channels in (before, after):
        layers += [nn.Conv2d(channels, after, 3, padding=1, bias=False), nn.GroupNorm(8, after), nn.SiLU(inplace=True)]
    return nn.Sequential(*layers)
