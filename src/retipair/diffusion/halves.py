"""Split and combine the two halves of joint latents.

Joint latents encode a pair as one image. In all layouts, the left half is the CF and the right half is the FA.
"""

from typing import Literal

import torch

NAMES = ("CF", "FA")
ViewName = Literal["cf", "fa"]


def split_halves(values: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Split a tensor (..., w) into its left half (CF) and its right half (FA), (..., w / 2) each."""
    left, right = values.chunk(2, dim=-1)
    return left, right


def replace_half(values: torch.Tensor, half: torch.Tensor, view: ViewName) -> torch.Tensor:
    """Return a tensor (..., w) with the half of one view replaced by `half` (..., w / 2)."""
    left, right = split_halves(values)
    return torch.cat([half, right] if view == "cf" else [left, half], dim=-1)


def half_of(values: torch.Tensor, view: ViewName) -> torch.Tensor:
    """Return the half of a tensor (..., w) that belongs to one view, (..., w / 2)."""
    return split_halves(values)[0 if view == "cf" else 1]


def stack_halves(values: torch.Tensor) -> torch.Tensor:
    """Stack both halves as channels, to filter them separately: (B, C, h, w) -> (B, 2C, h, w / 2)."""
    return torch.cat(split_halves(values), dim=1)


def unstack_halves(stacked: torch.Tensor) -> torch.Tensor:
    """Undo `stack_halves`: (B, 2C, h, w / 2) -> (B, C, h, w)."""
    return torch.cat(stacked.chunk(2, dim=1), dim=-1)


def mean_per_half(values: torch.Tensor) -> torch.Tensor:
    """Return the mean of the left half and the mean of the right half of each sample: (B, C, h, w) -> (B, 2)."""
    return values.unflatten(-1, (2, -1)).mean(dim=(1, 2, 4))


def repeat_per_half(values: torch.Tensor, width: int) -> torch.Tensor:
    """Repeat one value per half (left, right) for all columns of the half: (..., 2) -> (..., width)."""
    return values.repeat_interleave(width // 2, dim=-1)


def find_nonfinite_half(values: torch.Tensor) -> str | None:
    """Find NaN or infinity in joint latents (..., w).

    Returns "CF" if the left half contains any, else "FA" if the right half contains any, else None.
    """
    halves = zip(NAMES, split_halves(values), strict=True)
    return next((name for name, half in halves if not half.isfinite().all()), None)
