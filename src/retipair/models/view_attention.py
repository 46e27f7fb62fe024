"""Self-attention that keeps the two halves of a joint image apart in some samples, for cross-view guidance."""

from typing import Any

import torch
from diffusers import UNet2DConditionModel
from diffusers.models.attention_processor import Attention


class ViewAttention:
    """Attention processor that keeps the CF and the FA of a joint image apart in some samples of a batch.

    It wraps another attention processor, `inner`. In self-attention, the tokens of the last `separate` samples attend
    only to tokens in their own half of the joint image (left: CF, right: FA). For this, each of these samples is split
    into two samples with half as many tokens before `inner` is called. The split is faster than an attention mask, and
    `inner` can use every attention kernel. All other samples, and cross-attention, are left to `inner` unchanged.

    In a feature map with an odd number of columns, the middle column contains both views. It belongs to both halves,
    and its output is the mean of its outputs in them. So a map of one column is left as it is.

    inner: the attention processor that computes the attention.
    """

    def __init__(self, inner: Any) -> None:
        self.inner = inner

    def __call__(
        self,
        attn: Attention,
        hidden_states: torch.Tensor,
        encoder_hidden_states: torch.Tensor | None = None,
        attention_mask: torch.Tensor | None = None,
        separate: int = 0,
        aspect: float = 1.0,
    ) -> torch.Tensor:
        """Return the output of the attention layer, (B, N, C).

        hidden_states: the N pixels of each feature map, row by row, (B, N, C).
        separate: the number of samples at the end of the batch in which the halves are kept apart.
        aspect: the width of a feature map divided by its height.
        """
        if encoder_hidden_states is not None or separate == 0:
            return self.inner(attn, hidden_states, encoder_hidden_states, attention_mask)
        together, apart = hidden_states[:-separate], hidden_states[-separate:]
        maps = _as_map(apart, aspect)
        joined = _join_halves(self.inner(attn, _split_map(maps)), *maps.shape[-2:])
        return torch.cat([self.inner(attn, together), joined]) if len(together) else joined


def add_view_attention(unet: UNet2DConditionModel) -> None:
    """Wrap all attention processors of the UNet in `ViewAttention`, once."""
    processors = unet.attn_processors
    if not any(isinstance(processor, ViewAttention) for processor in processors.values()):
        unet.set_attn_processor({name: ViewAttention(processor) for name, processor in processors.items()})


def _split_map(maps: torch.Tensor) -> torch.Tensor:
    """Split feature maps (B, C, h, w) into the tokens of their halves, (2B, h * ceil(w / 2), C), all left halves first.

    Both halves contain the middle column if `w` is odd.
    """
    columns = (maps.shape[-1] + 1) // 2
    return torch.cat([maps[..., :columns], maps[..., -columns:]]).flatten(2).transpose(1, 2)


def _join_halves(tokens: torch.Tensor, height: int, width: int) -> torch.Tensor:
    """Undo `_split_map`: (2B, h * ceil(w / 2), C) -> (B, h * w, C), with the mean of both middle columns."""
    left, right = tokens.transpose(1, 2).unflatten(2, (height, -1)).chunk(2)
    side = width // 2
    middle = (left[..., side:] + right[..., : width - 2 * side]) / 2  # no column if the width is even
    return torch.cat([left[..., :side], middle, right[..., width - 2 * side :]], dim=-1).flatten(2).transpose(1, 2)


def _as_map(tokens: torch.Tensor, aspect: float) -> torch.Tensor:
    """Reshape tokens (B, N, C) to a feature map (B, C, h, w) with w = aspect * h."""
    height = round((tokens.shape[1] / aspect) ** 0.5)
    return tokens.transpose(1, 2).unflatten(2, (height, -1))
