"""Encode images to scaled latents, and decode scaled latents to images.

Scaled latents are the autoencoder's latents multiplied by its scaling factor. The UNet works on scaled latents.
"""

import hashlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from diffusers import AutoencoderKL as Autoencoder
from safetensors.torch import load_file

from retipair.models.base import Base
from retipair.models.empty import empty_vae
from retipair.models.loading import naming_errors
from retipair.runtime.errors import UserError


@dataclass(frozen=True)
class Moments:
    """Mean and standard deviation of the Gaussian posterior of scaled latents, each (B, C, h, w) float32 on the CPU."""

    mean: torch.Tensor
    std: torch.Tensor


@torch.no_grad()
def encode_moments(vae: Autoencoder, images: np.ndarray) -> Moments:
    """Encode images (B, H, W, 3) uint8 to the moments (mean and standard deviation) of their scaled latents."""
    posterior = vae.encode(_to_tensor(vae, images)).latent_dist
    scale = vae.config.scaling_factor
    return Moments((posterior.mean * scale).float().cpu(), (posterior.std * scale).float().cpu())


def encode_mean(vae: Autoencoder, images: np.ndarray) -> torch.Tensor:
    """Encode images (B, H, W, 3) uint8 to their mean scaled latents, (B, C, h, w) float32, on the VAE's device.

    Images are encoded one by one, so that peak memory and rounding do not depend on B.
    """
    return torch.cat([encode_moments(vae, image[None]).mean for image in images]).to(vae.device)


@torch.no_grad()
def encode_sample(vae: Autoencoder, image: np.ndarray, generator: torch.Generator) -> torch.Tensor:
    """Encode an image (H, W, 3) uint8 to a sample of its scaled latents, (1, C, h, w) float32, on `vae.device`."""
    latents = vae.encode(_to_tensor(vae, image[None])).latent_dist.sample(generator)
    return (vae.config.scaling_factor * latents).float()


@torch.no_grad()
def decode(vae: Autoencoder, latents: torch.Tensor) -> np.ndarray:
    """Decode scaled latents (B, C, h, w) to images (B, H, W, 3) uint8.

    Images are decoded one by one, so that peak memory and rounding do not depend on B. They are not split into tiles,
    whose borders would be visible. Raises UserError if the images contain NaN or infinity.
    """
    vae.enable_slicing()
    images = vae.decode(latents.to(vae.device, vae.dtype) / vae.config.scaling_factor, return_dict=False)[0]
    if not images.isfinite().all():
        cause = "the autoencoder returns" if latents.isfinite().all() else "the latents contain"
        raise UserError(f"{cause} NaN or infinity: try --precision fp32, or an adapter from an earlier checkpoint")
    unit = (images * 0.5 + 0.5).clamp(0, 1).permute(0, 2, 3, 1).float().cpu().numpy()
    return np.asarray((unit * 255).round().astype(np.uint8))


def _to_tensor(vae: Autoencoder, images: np.ndarray) -> torch.Tensor:
    unit = torch.from_numpy(images.astype(np.float32) / 255.0).permute(0, 3, 1, 2)
    return (2.0 * unit - 1.0).to(vae.device, vae.dtype)  # (B, 3, H, W), [-1, 1]


def vae_sha256(base: Base, load: Callable[[], Autoencoder]) -> str:
    """Return a hash of the autoencoder's weights and scaling factor, to tell whether cached latents are still valid.

    load: a function that loads the autoencoder. It is called only if the weights cannot be read from the base's folder,
    because the base is a single file, has random weights, has several weight files in its `vae` folder, or has the
    tensor names of older versions of diffusers.
    """
    weights: dict[str, Any] = _weights_on_disk(base)
    vae = empty_vae(base) if weights else load()
    if not vae.state_dict().keys() <= weights.keys():
        weights = load().state_dict()
    return weights_sha256(vae, weights)


def weights_sha256(vae: Autoencoder, weights: dict[str, Any]) -> str:
    """Return a hash of the scaling factor and of `weights` (tensors by name), in the order of the VAE's state dict."""
    digest = hashlib.sha256(str(vae.config.scaling_factor).encode())
    for name in vae.state_dict():
        digest.update(name.encode())
        digest.update(weights[name].float().cpu().contiguous().numpy())
    return digest.hexdigest()


def _weights_on_disk(base: Base) -> dict[str, torch.Tensor]:
    """Read the weight file in the `vae` folder of a base.

    Returns {} if the base is not a folder, or if its `vae` folder has no weight file or several.
    """
    files = [*(base.configs / "vae").glob("*.safetensors")]
    if base.source_kind != "folder" or len(files) != 1:
        return {}
    with naming_errors(base.source):
        return load_file(files[0])
