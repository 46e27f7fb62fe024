"""Call the UNet, in the same way in training, validation and sampling."""

from contextlib import nullcontext

import torch
from diffusers import UNet2DConditionModel

from retipair.models.conditioning import Conditioning
from retipair.models.view_attention import add_view_attention


class Denoiser:
    """Function that returns the UNet's prediction (noise or v) for noisy latents.

    latents: the noisy latents, (B, C, h, w); the prediction has the same shape and is float32.
    timestep: a scalar tensor, or one timestep per sample, (B,).
    conditioning: one row per sample.
    dtype: the dtype of the UNet's computation. If it is bf16, autocast also runs the fp32 adapter in bf16.
    """

    def __init__(self, unet: UNet2DConditionModel, dtype: torch.dtype, device: str) -> None:
        self.unet = unet
        add_view_attention(unet)
        self._device_type, self._dtype = torch.device(device).type, dtype

    def __call__(
        self, latents: torch.Tensor, timestep: torch.Tensor, conditioning: Conditioning, separate: int = 0
    ) -> torch.Tensor:
        """Return the prediction for a batch of samples.

        separate: the number of samples at the end of the batch in which self-attention does not connect the two halves.
        """
        added = None
        if conditioning.pooled is not None:
            added = {"text_embeds": conditioning.pooled, "time_ids": conditioning.size_ids}
        attention = {"separate": separate, "aspect": latents.shape[-1] / latents.shape[-2]} if separate else None
        precision = torch.autocast(self._device_type, self._dtype) if self._dtype != torch.float32 else nullcontext()
        with precision:
            return self.unet(
                latents.to(self._dtype),
                timestep,
                encoder_hidden_states=conditioning.embeddings.to(self._dtype),
                added_cond_kwargs=added,
                cross_attention_kwargs=attention,
                return_dict=False,
            )[0].float()
