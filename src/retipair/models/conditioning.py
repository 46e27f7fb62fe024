"""Encode prompts into the UNet's conditioning: prompt embeddings and, for SDXL, pooled text and size ids."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch

from retipair.models.base import Base


@dataclass(frozen=True)
class Conditioning:
    """Inputs of the UNet that condition its prediction, one row per sample of a batch.

    embeddings: the prompt embeddings, (B, 77, D).
    pooled: the pooled text embeddings of SDXL, (B, P); None for SD1.5.
    size_ids: the size ids of SDXL (see `size_ids_for`), (B, 6); None for SD1.5.
    """

    embeddings: torch.Tensor
    pooled: torch.Tensor | None = None
    size_ids: torch.Tensor | None = None

    def rows(self, index: Sequence[int]) -> "Conditioning":
        """Return the rows with these indices, in this order. An index may occur several times."""
        return self._map(lambda tensor: select_rows(tensor, index))

    def to(self, device: torch.device | str) -> "Conditioning":
        return self._map(lambda tensor: tensor.to(device))

    def _map(self, function: Any) -> "Conditioning":
        pooled, size_ids = (None if t is None else function(t) for t in (self.pooled, self.size_ids))
        return Conditioning(function(self.embeddings), pooled, size_ids)


def select_rows(tensor: torch.Tensor, index: Sequence[int]) -> torch.Tensor:
    """Return the rows of a tensor with these indices, in this order."""
    # not tensor[index]: it would copy the list to the GPU, and the CPU would wait for the copy
    return torch.stack([tensor[row] for row in index])


def stack_conditioning(parts: Sequence[Conditioning]) -> Conditioning:
    """Concatenate the rows of several conditionings. The result has no size ids; `with_size_ids` adds them."""
    pooled = [part.pooled for part in parts if part.pooled is not None]
    return Conditioning(torch.cat([part.embeddings for part in parts]), torch.cat(pooled) if pooled else None)


@dataclass(frozen=True)
class Truncated:
    """A prompt, truncated to the maximum length of each tokenizer of the base.

    tokens: the token ids before truncation, one tuple per tokenizer.
    kept: the token ids after truncation, one tuple per tokenizer, at most 76 ids each. They include the end token if it
    is at one of the positions 1 to 76. Position 77 is left out, because it can only hold the end token.
    cut: the part of the prompt that at least one tokenizer cuts off; "" if the prompt is short enough.
    limit: the maximum number of tokens between the begin and the end token.
    """

    tokens: tuple[tuple[int, ...], ...]
    kept: tuple[tuple[int, ...], ...]
    cut: str
    limit: int


def truncate_prompts(base: Base, prompts: Sequence[str]) -> dict[str, Truncated]:
    """Truncate prompts with the base's tokenizers, without loading text encoders. Return the results by prompt."""
    tokenizers = base.tokenizers()
    return {prompt: _truncate(tokenizers, prompt) for prompt in prompts}


def _truncate(tokenizers: Sequence[Any], prompt: str) -> Truncated:
    """Truncate a prompt as diffusers' pipelines do: they keep the first tokens and the end token."""
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


def size_ids_for(base: Base, joint_size: tuple[int, int], original_size: tuple[int, int] | None = None) -> list[int]:
    """Return SDXL's size ids: original height and width, crop top and left, target height and width.

    Source: SDXL (Podell et al. 2023, arXiv 2307.01952), section 2.2. The crop is 0, 0, because a joint image always
    shows the whole common field of both views. Empty for SD1.5.

    joint_size: the (height, width) of the joint image in px, which is the target size.
    original_size: the (height, width) that the joint image had before it was enlarged, in px. Default: `joint_size`.
    """
    original_height, original_width = original_size or joint_size
    return [original_height, original_width, 0, 0, *joint_size] if base.family.size_ids else []


@torch.no_grad()
def encode_prompts(base: Base, prompts: Sequence[str], joint_size: tuple[int, int], device: str) -> Conditioning:
    """Encode prompts with the base's diffusers pipeline.

    Returns one row per prompt, in the same order, and a last row without prompt for classifier-free guidance. This row
    contains zeros if the pipeline's config sets force_zeros_for_empty_prompt (as for SDXL), else the encoding of "".
    The text encoders are loaded for this call only.
    """
    pipeline = base.text_pipeline(device=device)
    encoded = [_encode(pipeline, base, prompt, device) for prompt in prompts]
    rows = stack_conditioning([positive for positive, _ in encoded] + [encoded[-1][1]])
    return with_size_ids(rows, base, joint_size)


def with_size_ids(rows: Conditioning, base: Base, joint_size: tuple[int, int]) -> Conditioning:
    """Return the rows with the size ids of SDXL for a joint image of (height, width) px; unchanged for SD1.5."""
    if not base.family.size_ids:
        return rows
    sizes = [joint_size] * len(rows.embeddings)
    return replace(rows, size_ids=size_ids_tensor(base, joint_size, sizes, rows.embeddings.device))


def size_ids_tensor(
    base: Base, joint_size: tuple[int, int], original_sizes: Sequence[tuple[int, int]], device: torch.device | str
) -> torch.Tensor:
    """Return the size ids of several joint images of one size, (number of `original_sizes`, 6) float32."""
    ids = [size_ids_for(base, joint_size, size) for size in original_sizes]
    return torch.tensor(ids, dtype=torch.float32, device=device)


@torch.no_grad()
def encode_once(pipeline: Any, prompt: str, device: str) -> Conditioning:
    """Encode one prompt with a loaded pipeline, without size ids. Only the slow baseline of `bench` uses it."""
    encoded = pipeline.encode_prompt(prompt, device=device, num_images_per_prompt=1, do_classifier_free_guidance=False)
    return Conditioning(encoded[0], encoded[2] if len(encoded) == 4 else None)


def _encode(pipeline: Any, base: Base, prompt: str, device: str) -> tuple[Conditioning, Conditioning]:
    """Return the row of `prompt` and the row without prompt, for guidance.

    Prompts are encoded one at a time, so that the rounding of a row does not depend on other prompts.
    """
    encoded = pipeline.encode_prompt(prompt, device=device, num_images_per_prompt=1, do_classifier_free_guidance=True)
    if len(encoded) == 4:
        positive, negative, pooled, negative_pooled = encoded
        return Conditioning(positive, pooled), Conditioning(negative, negative_pooled)
    positive, negative = encoded
    return Conditioning(positive), Conditioning(negative)
