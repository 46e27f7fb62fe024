"""Extract image features with a model that the user provides, to compute distances between sets of images."""

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

from retipair.runtime.errors import DamagedError, FileError, MissingError

_DEFAULT_SIDE = 224  # px


@dataclass(frozen=True)
class ImageModel:
    """An image model of the transformers library, in fp32.

    side: the height and width in px to which images are resized.
    mean, std: the normalisation of the RGB values in [0, 1].
    sha256: the hash of the weights.
    has_class_token: whether the network has a class token, which then represents the image.
    """

    network: torch.nn.Module
    side: int
    mean: tuple[float, ...]
    std: tuple[float, ...]
    sha256: str
    has_class_token: bool

    @torch.no_grad()
    def features(self, view: np.ndarray) -> np.ndarray:
        """Return the features, (D,) float64, of a CF (H, W, 3) or an FA (H, W), uint8.

        The features are the output of the class token or, without class token, the mean over all image positions.
        """
        image = Image.fromarray(view).convert("RGB").resize((self.side, self.side), Image.Resampling.BICUBIC)
        pixels = (np.asarray(image) / 255.0 - self.mean) / self.std
        hidden = self.network(torch.from_numpy(pixels.astype(np.float32).transpose(2, 0, 1))[None]).last_hidden_state
        if hidden.ndim == 4:
            features = hidden[0].mean(dim=(1, 2))
        else:
            features = hidden[0, 0] if self.has_class_token else hidden[0].mean(dim=0)
        return np.asarray(features.double().numpy())


def open_image_model(folder: Path) -> ImageModel:
    """Load an image model from a folder in the format of transformers.

    Examples are DINO, DINOv2, ViT, ViT-MAE (such as RETFound) and ResNet. Raises UserError, naming the folder, if it
    contains no usable model.
    """
    if not (folder / "config.json").is_file():
        raise MissingError(folder, "no image model; give a folder with config.json and model.safetensors")
    try:
        model, missing = _load(folder)
        features = model.features(np.full((model.side, model.side, 3), 128, np.uint8))
    except Exception as error:  # third-party code may raise any error for a bad file
        reason = str(error).partition("\n")[0]
        raise FileError(folder, f"not an image model that transformers can load ({reason}); save it again") from None
    if missing:
        more = f" and {len(missing) - 1} more" if missing[1:] else ""
        raise DamagedError(folder, f"its weights lack {missing[0]}{more}; save the model again")
    if not np.isfinite(features).all():
        raise FileError(folder, "its features contain NaN or infinity; check its weights and preprocessor_config.json")
    return model


def _load(folder: Path) -> tuple[ImageModel, list[str]]:
    """Return the model and the names of weights that the files lack. The pooler is ignored, as it is not used."""
    network, info = AutoModel.from_pretrained(
        str(folder),
        local_files_only=True,
        trust_remote_code=False,  # never run code from the folder, never ask
        use_safetensors=True,
        dtype=torch.float32,
        output_loading_info=True,
    )
    if hasattr(network.config, "mask_ratio"):
        network.config.mask_ratio = 0.0  # otherwise, ViT-MAE would hide 75 % of the patches at random
    preprocessing = _read_json(folder / "preprocessor_config.json")
    used = {name: tensor for name, tensor in network.state_dict().items() if "pooler" not in name}
    model = ImageModel(
        network=network.eval(),
        side=_side(network.config),
        mean=tuple(preprocessing.get("image_mean", IMAGENET_DEFAULT_MEAN)),
        std=tuple(preprocessing.get("image_std", IMAGENET_DEFAULT_STD)),
        sha256=_fingerprint(used),
        has_class_token=any("cls_token" in name for name in used),
    )
    return model, sorted(name for name in info["missing_keys"] if "pooler" not in name)


def _read_json(path: Path) -> dict[str, list[float]]:
    return dict(json.loads(path.read_text(encoding="utf-8"))) if path.is_file() else {}


def _side(config: object) -> int:
    side = getattr(config, "image_size", _DEFAULT_SIDE)
    return int(side if isinstance(side, int) else side[0])


def _fingerprint(weights: Mapping[str, torch.Tensor]) -> str:
    """Return a hash of the tensors. A hash of the file could differ between two saves of a model."""
    digest = hashlib.sha256()
    for name, tensor in sorted(weights.items()):
        digest.update(name.encode())
        digest.update(tensor.numpy().tobytes())
    return digest.hexdigest()
