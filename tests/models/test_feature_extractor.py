"""Features of users' image models: small transformers models with random weights."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from transformers import (
    Dinov2Config,
    Dinov2Model,
    PreTrainedModel,
    ResNetConfig,
    ResNetModel,
    ViTMAEConfig,
    ViTMAEModel,
)

from eyes import draw_pair
from refusals import raises_file
from retipair.models.feature_extractor import open_image_model
from retipair.runtime.errors import DamagedError

SMALL = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 64}
MODELS: dict[str, Callable[[], PreTrainedModel]] = {
    "dinov2": lambda: Dinov2Model(Dinov2Config(image_size=56, patch_size=14, mlp_ratio=2, **SMALL)),
    "mae": lambda: ViTMAEModel(ViTMAEConfig(image_size=64, patch_size=16, **SMALL)),
    "resnet": lambda: ResNetModel(ResNetConfig(embedding_size=8, hidden_sizes=[8, 32], depths=[1, 1])),
}


@pytest.fixture(params=MODELS)
def folder(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    torch.manual_seed(0)
    MODELS[request.param]().save_pretrained(tmp_path / request.param)
    return tmp_path / request.param


def test_a_view_has_the_same_features_each_time_and_another_view_others(folder: Path) -> None:
    model = open_image_model(folder)
    cf, fa = draw_pair(0, 128)
    for view in (cf, fa):
        features = model.features(view)
        assert features.shape == (32,)
        assert features.dtype == np.float64
        assert features == pytest.approx(model.features(view), abs=1e-5)  # a masked autoencoder shuffles its patches
    assert not np.allclose(model.features(cf), model.features(draw_pair(1, 128)[0]), atol=1e-3)


def test_other_weights_are_another_model(folder: Path, tmp_path: Path) -> None:
    same, other = open_image_model(folder), tmp_path / "other"
    same.network.save_pretrained(other)
    assert open_image_model(other).sha256 == same.sha256
    with torch.no_grad():
        next(same.network.parameters()).add_(1e-3)
    same.network.save_pretrained(other)
    assert open_image_model(other).sha256 != same.sha256


def test_weights_that_do_not_fit_or_are_nan_are_refused(folder: Path) -> None:
    network = open_image_model(folder).network
    weights = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    save_file({f"module.{name}": tensor for name, tensor in weights.items()}, folder / "model.safetensors")
    with raises_file(folder, DamagedError):
        open_image_model(folder)
    first = next(name for name in weights if name.endswith("weight"))
    save_file({name: tensor for name, tensor in weights.items() if name != first}, folder / "model.safetensors")
    with pytest.raises(DamagedError, match=f"its weights lack {first}; save"):
        open_image_model(folder)
    save_file(weights | {first: torch.full_like(weights[first], float("nan"))}, folder / "model.safetensors")
    with raises_file(folder):
        open_image_model(folder)
    (folder / "model.safetensors").write_bytes(b"cut off")
    with raises_file(folder):
        open_image_model(folder)


def test_images_are_normalised_as_the_folder_says(folder: Path) -> None:
    view = draw_pair(0, 128)[0]
    usual = open_image_model(folder).features(view)
    (folder / "preprocessor_config.json").write_text('{"image_mean": [0, 0, 0], "image_std": [1, 1, 1]}')
    assert not np.allclose(open_image_model(folder).features(view), usual, atol=1e-3)
