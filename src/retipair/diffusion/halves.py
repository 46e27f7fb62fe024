"""The two halves of joint latents: CF on the left, FA on the right, whatever the layout."""

import torch

NAMES = ("CF", "FA")


def split_halves(values: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Split (..., w) into the left and the right half, (..., w / 2) each."""
    left, right = values.chunk(2, dim=-1)
    return left, right


def stack_halves(values: torch.Tensor) -> torch.Tensor:
    """Stack both halves as channels, so that a filter sees no seam: (B, C, h, w) -> (B, 2C, h, w / 2)."""
    return torch.cat(split_halves(values), dim=1)


def unstack_halves(stacked: torch.Tensor) -> torch.Tensor:
    """Undo `stack_halves`: (B, 2C, h, w / 2) -> (B, C, h, w)."""
    return torch.cat(stacked.chunk(2, dim=1), dim=-1)


def mean_per_half(values: torch.Tensor) -> torch.Tensor:
    """Return the means over the left and the right half, (B, C, h, w) -> (B, 2)."""
    return values.unflatten(-1, (2, -1)).mean(dim=(1, 2, 4))


def repeat_per_half(values: torch.Tensor, width: int) -> torch.Tensor:
    """Repeat the value of each half for all its columns, (..., 2) -> (..., width)."""
    return values.repeat_interleave(width // 2, dim=-1)


def find_nonfinite_half(values: torch.Tensor) -> str | None:
    """Return the first half ("CF" or "FA") of (..., w) values that contains NaN or infinity, or None."""
    halves = zip(NAMES, split_halves(values), strict=True)
    return next((name for name, half in halves if not half.isfinite().all()), None)
