"""What a network sees in a view: features for distances between sets, from weights that the user has."""

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from transformers import AutoModel
from transformers.image_utils import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD

from retipair.errors import UserError

_USUAL_SIDE = 224  # px


@dataclass(frozen=True)
class ImageModel:
    """An image model of transformers, in fp32; side (px), mean and std are how it wants its images."""

    network: torch.nn.Module
    side: int
    mean: tuple[float, ...]
    std: tuple[float, ...]
    sha256: str

    @torch.no_grad()
    def features(self, view: np.ndarray) -> np.ndarray:
        """Of a CF (H, W, 3) or FA (H, W) uint8, (D,) float64: the class token, or the mean over a map's places."""
        image = Image.fromarray(view).convert("RGB").resize((self.side, self.side), Image.Resampling.BICUBIC)
        pixels = (np.asarray(image) / 255.0 - self.mean) / self.std
        seen = self.network(torch.from_numpy(pixels.astype(np.float32).transpose(2, 0, 1))[None]).last_hidden_state
        one = seen[0].mean(dim=(1, 2)) if seen.ndim == 4 else seen[0, 0]
        return np.asarray(one.double().numpy())


def open_image_model(folder: Path) -> ImageModel:
    """A folder as transformers saves one: DINO, DINOv2, ViT, ViT-MAE (RETFound's kind), ResNet and others.

    Raises UserError, naming the folder, if there is none in it.
    """
    if not (folder / "config.json").is_file():
        raise UserError(f"{folder}: no image model; give a folder with config.json and model.safetensors")
    try:
        network = AutoModel.from_pretrained(str(folder), local_files_only=True, dtype=torch.float32).eval()
        wanted = _read(folder / "preprocessor_config.json")
        model = ImageModel(
            network=network,
            side=_side(network.config),
            mean=tuple(wanted.get("image_mean", IMAGENET_DEFAULT_MEAN)),
            std=tuple(wanted.get("image_std", IMAGENET_DEFAULT_STD)),
            sha256=_fingerprint(network),
        )
        if hasattr(network.config, "mask_ratio"):
            network.config.mask_ratio = 0.0  # a masked autoencoder hides three quarters of an image, at random
        model.features(np.zeros((model.side, model.side, 3), np.uint8))
    except (OSError, ValueError, TypeError, AttributeError, RuntimeError) as error:
        why = str(error).partition("\n")[0]
        raise UserError(f"{folder}: not an image model that transformers can load ({why})") from None
    return model


def _read(path: Path) -> dict[str, list[float]]:
    return dict(json.loads(path.read_text(encoding="utf-8"))) if path.is_file() else {}


def _side(config: object) -> int:
    side = getattr(config, "image_size", _USUAL_SIDE)
    return int(side if isinstance(side, int) else side[0])


def _fingerprint(network: torch.nn.Module) -> str:
    """Of the weights themselves: files differ in bytes from save to save."""
    digest = hashlib.sha256()
    for name, tensor in sorted(network.state_dict().items()):
        digest.update(name.encode())
        digest.update(tensor.numpy().tobytes())
    return digest.hexdigest()
