"""What a network sees in a view: features for distances between sets, from weights that the user has."""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from transformers import AutoModel
from transformers.image_utils import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD

from retipair.runtime.errors import UserError

_USUAL_SIDE = 224  # px


@dataclass(frozen=True)
class ImageModel:
    """An image model of transformers, in fp32; side (px), mean and std are how it wants its images."""

    network: torch.nn.Module
    side: int
    mean: tuple[float, ...]
    std: tuple[float, ...]
    sha256: str
    has_class_token: bool

    @torch.no_grad()
    def features(self, view: np.ndarray) -> np.ndarray:
        """Of a CF (H, W, 3) or FA (H, W) uint8, (D,) float64: the class token or, without one, the mean over places."""
        image = Image.fromarray(view).convert("RGB").resize((self.side, self.side), Image.Resampling.BICUBIC)
        pixels = (np.asarray(image) / 255.0 - self.mean) / self.std
        seen = self.network(torch.from_numpy(pixels.astype(np.float32).transpose(2, 0, 1))[None]).last_hidden_state
        if seen.ndim == 4:
            one = seen[0].mean(dim=(1, 2))
        else:
            one = seen[0, 0] if self.has_class_token else seen[0].mean(dim=0)
        return np.asarray(one.double().numpy())


def open_image_model(folder: Path) -> ImageModel:
    """A folder as transformers saves one: DINO, DINOv2, ViT, ViT-MAE (RETFound's kind), ResNet and others.

    Raises UserError, naming the folder, if there is none in it.
    """
    if not (folder / "config.json").is_file():
        raise UserError(f"{folder}: no image model; give a folder with config.json and model.safetensors")
    try:
        model, missing = _load(folder)
        seen = model.features(np.full((model.side, model.side, 3), 128, np.uint8))
    except Exception as error:  # another's files in another's code: every kind of error means the same here
        why = str(error).partition("\n")[0]
        raise UserError(f"{folder}: not an image model that transformers can load ({why}); save it again") from None
    if missing:
        raise UserError(f"{folder}: its weights lack {missing[0]} and {len(missing) - 1} more; save the model again")
    if not np.isfinite(seen).all():
        raise UserError(f"{folder}: what it sees is no number; are its weights and preprocessor_config.json right?")
    return model


def _load(folder: Path) -> tuple[ImageModel, list[str]]:
    """The model, and the names of weights that its files lack; a pooler's are not used."""
    network, info = AutoModel.from_pretrained(
        str(folder),
        local_files_only=True,
        trust_remote_code=False,  # else it asks, on a terminal, whether to run code that lies there
        use_safetensors=True,
        dtype=torch.float32,
        output_loading_info=True,
    )
    if hasattr(network.config, "mask_ratio"):
        network.config.mask_ratio = 0.0  # a masked autoencoder hides three quarters of an image, at random
    wanted = _read(folder / "preprocessor_config.json")
    used = {name: tensor for name, tensor in network.state_dict().items() if "pooler" not in name}
    model = ImageModel(
        network=network.eval(),
        side=_side(network.config),
        mean=tuple(wanted.get("image_mean", IMAGENET_DEFAULT_MEAN)),
        std=tuple(wanted.get("image_std", IMAGENET_DEFAULT_STD)),
        sha256=_fingerprint(used),
        has_class_token=any("cls_token" in name for name in used),
    )
    return model, sorted(name for name in info["missing_keys"] if "pooler" not in name)


def _read(path: Path) -> dict[str, list[float]]:
    return dict(json.loads(path.read_text(encoding="utf-8"))) if path.is_file() else {}


def _side(config: object) -> int:
    side = getattr(config, "image_size", _USUAL_SIDE)
    return int(side if isinstance(side, int) else side[0])


def _fingerprint(weights: Mapping[str, torch.Tensor]) -> str:
    """Of the weights themselves: files differ in bytes from save to save."""
    digest = hashlib.sha256()
    for name, tensor in sorted(weights.items()):
        digest.update(name.encode())
        digest.update(tensor.numpy().tobytes())
    return digest.hexdigest()
