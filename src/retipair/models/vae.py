"""Images to latents and back, with the base's own scale."""

import hashlib
from dataclasses import dataclass

import numpy as np
import torch
from diffusers import AutoencoderKL as Autoencoder

from retipair.runtime.errors import UserError


@dataclass(frozen=True)
class Moments:
    """What the autoencoder says of an image: a Gaussian over scaled latents. mean, std: (B, C, h, w) float32, CPU."""

    mean: torch.Tensor
    std: torch.Tensor


@torch.no_grad()
def encode_moments(vae: Autoencoder, images: np.ndarray) -> Moments:
    """images (B, H, W, 3) uint8 -> moments of their latents, already times the autoencoder's scaling factor."""
    posterior = vae.encode(_to_tensor(vae, images)).latent_dist
    scale = vae.config.scaling_factor
    return Moments((posterior.mean * scale).float().cpu(), (posterior.std * scale).float().cpu())


@torch.no_grad()
def encode_sample(vae: Autoencoder, image: np.ndarray, generator: torch.Generator) -> torch.Tensor:
    """image (H, W, 3) uint8 -> one draw of its scaled latents (1, C, h, w) float32, on the autoencoder's device."""
    latents = vae.encode(_to_tensor(vae, image[None])).latent_dist.sample(generator)
    return (vae.config.scaling_factor * latents).float()


@torch.no_grad()
def decode(vae: Autoencoder, latents: torch.Tensor) -> np.ndarray:
    """Scaled latents (B, C, h, w) -> images (B, H, W, 3) uint8.

    One by one, so that neither memory nor a pair's pixels depend on how many there are. (Not in tiles, whose borders
    would show.) Raises UserError where it gives no numbers.
    """
    vae.enable_slicing()
    images = vae.decode(latents.to(vae.device, vae.dtype) / vae.config.scaling_factor, return_dict=False)[0]
    unit = (images * 0.5 + 0.5).clamp(0, 1).permute(0, 2, 3, 1).float().cpu().numpy()
    if not np.isfinite(unit).all():
        whose = "the latents are" if not latents.isfinite().all() else "the autoencoder gives"
        raise UserError(f"{whose} no numbers: try --precision fp32, or an adapter from an earlier checkpoint")
    return np.asarray((unit * 255).round().astype(np.uint8))


def _to_tensor(vae: Autoencoder, images: np.ndarray) -> torch.Tensor:
    unit = torch.from_numpy(images.astype(np.float32) / 255.0).permute(0, 3, 1, 2)
    return (2.0 * unit - 1.0).to(vae.device, vae.dtype)  # (B, 3, H, W), [-1, 1]


def fingerprint_of(vae: Autoencoder) -> str:
    """A hash over the autoencoder's weights and scale: what cached latents depend on."""
    digest = hashlib.sha256(str(vae.config.scaling_factor).encode())
    for name, tensor in vae.state_dict().items():
        digest.update(name.encode())
        digest.update(tensor.float().cpu().contiguous().numpy())
    return digest.hexdigest()
