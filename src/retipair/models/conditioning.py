"""Encode prompts into the UNet's conditioning: prompt embeddings and, for SDXL, pooled text and size ids."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch

from retipair.models.base import Base


@dataclass(frozen=True)
class Conditioning:
    """Conditioning of a batch: embeddings (B, 77, D); for SDXL also pooled (B, P) and size_ids (B, 6)."""

    embeddings: torch.Tensor
    pooled: torch.Tensor | None = None
    size_ids: torch.Tensor | None = None

    def rows(self, index: Sequence[int]) -> "Conditioning":
        """Return the rows at `index`, in that order; rows may repeat."""
        # Indexing a GPU tensor with a list copies the list to the GPU and waits for it; stacking does not.
        return self._map(lambda tensor: torch.stack([tensor[row] for row in index]))

    def to(self, device: torch.device | str) -> "Conditioning":
        return self._map(lambda tensor: tensor.to(device))

    def _map(self, function: Any) -> "Conditioning":
        pooled, size_ids = (None if t is None else function(t) for t in (self.pooled, self.size_ids))
        return Conditioning(function(self.embeddings), pooled, size_ids)


def stack_conditioning(parts: Sequence[Conditioning]) -> Conditioning:
    """Concatenate the rows, without size ids."""
    pooled = [part.pooled for part in parts if part.pooled is not None]
    return Conditioning(torch.cat([part.embeddings for part in parts]), torch.cat(pooled) if pooled else None)


@dataclass(frozen=True)
class Truncated:
    """A truncated prompt. Per tokenizer, token ids before truncation (`tokens`) and after it (`kept`).

    cut: the end of the text that truncation removes, or ""; limit: maximum number of tokens between begin and end.
    """

    tokens: tuple[tuple[int, ...], ...]
    kept: tuple[tuple[int, ...], ...]
    cut: str
    limit: int


def truncate_prompts(base: Base, prompts: Sequence[str]) -> dict[str, Truncated]:
    """Truncate prompts as the base's tokenizers do, without loading a text encoder. Returns results by prompt."""
    tokenizers = base.tokenizers()
    return {prompt: _truncate(tokenizers, prompt) for prompt in prompts}


def _truncate(tokenizers: Sequence[Any], prompt: str) -> Truncated:
    """Truncate as diffusers' pipelines do: keep the first tokens and put the end token last."""
    encodings = [tokenizer(prompt, return_offsets_mapping=True, verbose=False) for tokenizer in tokenizers]
    tokens = tuple(tuple(encoding.input_ids) for encoding in encodings)
    ends = [tokenizer.model_max_length - 1 for tokenizer in tokenizers]  # last possible index of the end token
    kept = tuple(ids[:end] for ids, end in zip(tokens, ends, strict=True))
    cuts = [
        encoding.offset_mapping[end][0]
        for encoding, end in zip(encodings, ends, strict=True)
        if len(encoding.input_ids) > end + 1
    ]
    return Truncated(tokens, kept, prompt[min(cuts) :] if cuts else "", min(ends) - 1)


def size_ids_for(base: Base, joint_size: tuple[int, int]) -> list[int]:
    """Return SDXL's size ids (original h, w; crop top, left; target h, w) without resize or crop; [] for SD1.5."""
    height, width = joint_size
    return [height, width, 0, 0, height, width] if base.family.size_ids else []


@torch.no_grad()
def encode_prompts(base: Base, prompts: Sequence[str], joint_size: tuple[int, int], device: str) -> Conditioning:
    """Encode prompts with diffusers' own pipeline; row i belongs to prompts[i]; the last row is unconditional.

    The unconditional row is what the base's pipeline uses for guidance: zeros if its config says so (SDXL), else the
    encoding of "". The text encoders are loaded and freed here.
    """
    pipeline = base.text_pipeline(device=device)
    encoded = [_encode(pipeline, base, prompt, device) for prompt in prompts]
    rows = stack_conditioning([positive for positive, _ in encoded] + [encoded[-1][1]])
    return with_size_ids(rows, base, joint_size)


def with_size_ids(rows: Conditioning, base: Base, joint_size: tuple[int, int]) -> Conditioning:
    """Add, for SDXL, the size ids of a joint image of (height, width) px to all rows."""
    if not base.family.size_ids:
        return rows
    ids = [size_ids_for(base, joint_size)] * len(rows.embeddings)
    size_ids = torch.tensor(ids, dtype=torch.float32, device=rows.embeddings.device)
    return Conditioning(rows.embeddings, rows.pooled, size_ids)


@torch.no_grad()
def encode_once(pipeline: Any, prompt: str, device: str) -> Conditioning:
    """Encode one prompt with a loaded pipeline, without size ids. The baseline of `bench` does this in each step."""
    encoded = pipeline.encode_prompt(prompt, device=device, num_images_per_prompt=1, do_classifier_free_guidance=False)
    return Conditioning(encoded[0], encoded[2] if len(encoded) == 4 else None)


def _encode(pipeline: Any, base: Base, prompt: str, device: str) -> tuple[Conditioning, Conditioning]:
    """Return the row of `prompt` and the unconditional row. One prompt at a time: rows must not depend on the batch."""
    encoded = pipeline.encode_prompt(prompt, device=device, num_images_per_prompt=1, do_classifier_free_guidance=True)
    if len(encoded) == 4:
        positive, negative, pooled, negative_pooled = encoded
        return Conditioning(positive, pooled), Conditioning(negative, negative_pooled)
    positive, negative = encoded
    return Conditioning(positive), Conditioning(negative)
