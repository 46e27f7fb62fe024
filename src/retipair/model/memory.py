"""How much memory a training will need, worked out on tensors without storage before anything is loaded."""

import torch
from diffusers import UNet2DConditionModel
from diffusers.models.attention import BasicTransformerBlock
from diffusers.models.resnet import ResnetBlock2D

from retipair.model.adapter import adapter_parameters

ADAPTER_BYTES = 16
"""For each trainable parameter in fp32: itself, its gradient, AdamW's two moments."""


def training_memory(
    unet: UNet2DConditionModel,
    latent_shape: tuple[int, int, int],
    batch_size: int,
    dtype: torch.dtype,
    checkpointing: bool,
) -> int:
    """Bytes for one training step: weights, adapter with its optimiser, and the activations kept for the backward pass.

    unet: on the meta device, with its adapter. An estimate: allocators round up and kernels take workspace.
    """
    adapter = sum(parameter.numel() for parameter in adapter_parameters(unet).values())
    frozen = sum(parameter.numel() for parameter in unet.parameters()) - adapter
    kept, largest_block = activation_elements(unet, latent_shape)
    if checkpointing:  # what is kept, and one block at a time while it is computed again
        unet.enable_gradient_checkpointing()
        kept = activation_elements(unet, latent_shape)[0] + largest_block
    width = torch.finfo(dtype).bits // 8
    return frozen * width + adapter * ADAPTER_BYTES + kept * batch_size * width


def activation_elements(unet: UNet2DConditionModel, latent_shape: tuple[int, int, int]) -> tuple[int, int]:
    """Elements that autograd keeps for one sample's backward pass: (in all, in the largest block)."""
    kept: dict[int, tuple[torch.UntypedStorage, int]] = {}
    weights = {parameter.untyped_storage()._cdata for parameter in unet.parameters()}
    blocks: list[int] = []

    def note(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()  # held on to, so that its address stays its own
        if storage._cdata not in weights:
            kept[storage._cdata] = (storage, tensor.numel())
        return tensor

    def total() -> int:
        return sum(elements for _, elements in kept.values())

    hooks = []
    for module in unet.modules():
        if isinstance(module, (ResnetBlock2D, BasicTransformerBlock)):
            hooks.append(module.register_forward_pre_hook(lambda *_: blocks.append(-total())))
            hooks.append(module.register_forward_hook(lambda *_: blocks.append(blocks.pop() + total())))
    with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
        meta_forward(unet, latent_shape)
    for hook in hooks:
        hook.remove()
    return total(), max(blocks, default=0)


def meta_forward(unet: UNet2DConditionModel, latent_shape: tuple[int, int, int], batch_size: int = 1) -> torch.Tensor:
    """One forward on tensors without storage; unet: on the meta device."""
    config = unet.config
    added = None
    if config.addition_embed_type == "text_time":
        pooled = config.projection_class_embeddings_input_dim - 6 * config.addition_time_embed_dim
        added = {
            "text_embeds": torch.empty(batch_size, pooled, device="meta"),
            "time_ids": torch.empty(batch_size, 6, device="meta"),
        }
    return unet(
        torch.empty(batch_size, *latent_shape, device="meta"),
        torch.empty(batch_size, device="meta"),
        encoder_hidden_states=torch.empty(batch_size, 77, config.cross_attention_dim, device="meta"),
        added_cond_kwargs=added,
        return_dict=False,
    )[0]
