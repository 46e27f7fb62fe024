"""Segment vessels with a small network that was trained on rendered eyes with known vessels."""

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
"""Trained by recipes/segmenter.py."""
_WIDTHS = (32, 48, 64, 96)
_FOLD = 2  # pixel unshuffle factor, which halves the time
_MULTIPLE = _FOLD * 2 ** (len(_WIDTHS) - 1)


class Segmenter(nn.Module):
    """Predict vessel logits (B, 1, H, W) from locally normalised brightness (B, 1, H, W), vessels bright.

    A U-Net (Ronneberger et al. 2015, arXiv 1505.04597) of four resolutions; the finest is half that of the view and
    predicts four pixels per position. H and W are multiples of 16.
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
            x = level(F.max_pool2d(x, 2) if skips else x)
            skips.append(x)
        x = skips.pop()
        for level in reversed(self.up):
            x = level(torch.cat([skips.pop(), F.interpolate(x, scale_factor=2.0)], dim=1))
        return F.pixel_shuffle(self.head(x), _FOLD)


def vessels(image: np.ndarray, mask: np.ndarray) -> np.ndarray:
    """Segment the vessels of a CF (H, W, 3) or FA (H, W) uint8 about 512 px wide, in mask (H, W) bool -> (H, W) bool.

    The network is the same for both views and is not told which one it gets; vessels are dark in a CF's green channel
    and bright in an FA.
    """
    return np.asarray(mask & (vessel_probability(image, mask) > 0.5))


@torch.no_grad()
def vessel_probability(image: np.ndarray, mask: np.ndarray) -> np.ndarray:
    """Return the vessel probability, (H, W) float32 in [0, 1], for the arguments of `vessels`; 0 outside the mask."""
    height, width = mask.shape
    flat = flattened(image, mask)
    padded = np.pad(flat, ((0, -height % _MULTIPLE), (0, -width % _MULTIPLE)))
    logits = _segmenter()(torch.from_numpy(padded)[None, None].contiguous(memory_format=torch.channels_last))
    return np.asarray(torch.sigmoid(logits)[0, 0, :height, :width].numpy() * (flat != 0))


@cache
def _segmenter() -> Segmenter:
    segmenter = Segmenter()
    segmenter.load_state_dict({name: tensor.float() for name, tensor in load_file(WEIGHTS).items()})
    convert_conv2d_weight_memory_format(segmenter, torch.channels_last)  # a sixth faster
    return segmenter.eval()


def _double(before: int, after: int) -> nn.Sequential:
    """Return two convolutions, each with group normalisation and SiLU."""
    layers: list[nn.Module] = []
    for channels in (before, after):
        layers += [nn.Conv2d(channels, after, 3, padding=1, bias=False), nn.GroupNorm(8, after), nn.SiLU()]
    return nn.Sequential(*layers)
