"""The one call of the network that training, validation and sampling share."""

from contextlib import nullcontext

import torch
from diffusers import UNet2DConditionModel

from retipair.models.conditioning import Conditioning


class Denoiser:
    """What `diffusion/` calls: (latents, timestep, conditioning) -> the UNet's prediction, float32.

    latents (B, C, h, w); timestep a scalar tensor or (B,). The frozen weights keep their dtype; with bf16 ones the
    fp32 adapter is used under autocast.
    """

    def __init__(self, unet: UNet2DConditionModel, dtype: torch.dtype, device: str) -> None:
        self.unet = unet
        self._kind, self._dtype = torch.device(device).type, dtype

    def __call__(self, latents: torch.Tensor, timestep: torch.Tensor, conditioning: Conditioning) -> torch.Tensor:
        added = None
        if conditioning.pooled is not None:
            added = {"text_embeds": conditioning.pooled, "time_ids": conditioning.size_ids}
        mixed = torch.autocast(self._kind, self._dtype) if self._dtype != torch.float32 else nullcontext()
        with mixed:
            return self.unet(
                latents.to(self._dtype),
                timestep,
                encoder_hidden_states=conditioning.embeddings.to(self._dtype),
                added_cond_kwargs=added,
                return_dict=False,
            )[0].float()
