"""The bases that ship with the package are small, complete and better than random weights."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from retipair.config import DEFAULT_PROMPT
from retipair.data.layout import Layout
from retipair.data.pair import Pair
from retipair.diffusion.noise import generator
from retipair.generation.pair_generator import PairGenerator
from retipair.metrics.consistency import consistency, dice, mean, set_consistency
from retipair.metrics.views import prepare_views
from retipair.models.base import BUNDLED, Base, bundled_bases, open_base
from retipair.models.conditioning import encode_prompts
from retipair.models.denoiser import Denoiser
from retipair.models.families import FAMILIES
from retipair.models.vae import decode, encode_moments
from retipair.phantoms.draw import draw_phantom
from retipair.vision.field_of_view import field_of_view
from retipair.vision.ridges import segment

NAMES = ("tiny-sd15", "tiny-sdxl")
MB = 1e6


@pytest.fixture(params=NAMES)
def base(request: pytest.FixtureRequest) -> Base:
    return open_base(request.param)


def files(base: Base) -> list[Path]:
    return [path for path in base.configs.rglob("*") if path.is_file()]


def test_both_ship_and_are_small() -> None:
    assert bundled_bases() == list(NAMES)
    sizes = [path.stat().st_size for path in BUNDLED.rglob("*") if path.is_file()]
    assert sum(sizes) <= 60 * MB
    assert max(sizes) <= 15 * MB


def test_they_hold_nothing_that_runs_code_and_say_how_they_were_made(base: Base) -> None:
    kinds = {path.suffix for path in files(base)}
    assert kinds <= {".json", ".safetensors", ".md", ".txt"}
    assert "python recipes/make.py" in (base.configs / "README.md").read_text()
    for path in base.configs.rglob("config.json"):
        assert "/" not in json.loads(path.read_text()).get("_name_or_path", ""), f"{path} contains a local path"


def test_the_library_opens_them_as_its_own(base: Base) -> None:
    pipeline = base.family.pipeline.from_pretrained(str(base.configs), local_files_only=True)
    assert type(pipeline) is base.family.pipeline is FAMILIES[base.family.name].pipeline
    assert 5e6 <= sum(parameter.numel() for parameter in pipeline.unet.parameters()) <= 14e6
    index: dict[str, Any] = json.loads((base.configs / "model_index.json").read_text())
    assert index["_class_name"] == base.family.pipeline.__name__


@torch.no_grad()
def test_the_autoencoder_keeps_an_eye_and_its_vessels(base: Base) -> None:
    vae, layout = base.vae(), Layout("side_by_side", base.view_size)
    vae.register_to_config(scaling_factor=0.5)  # not their 1, with which applying it twice would go unnoticed
    for number in range(2):
        eye = draw_phantom(5, number, base.view_size, None, None, None)
        joint = layout.join(eye.cf, eye.fa)
        latents = encode_moments(vae, joint[None]).mean
        [decoded] = decode(vae, latents)
        error = ((decoded.astype(float) - joint) ** 2).mean()
        assert 10 * np.log10(255**2 / error) >= 30
        cf, fa = decoded[:, : base.view_size], decoded[:, base.view_size :].mean(axis=2).astype(np.uint8)
        before, after = prepare_views(Pair(eye.cf, eye.fa, eye.field)), prepare_views(Pair(cf, fa, eye.field))
        for view in ("cf", "fa"):
            masks = [segment(getattr(views, view).vesselness, before.inside) for views in (before, after)]
            assert dice(*masks) >= 0.65, view  # of one pair; means are in the recipes' README


@pytest.mark.nightly
@pytest.mark.parametrize("base", ["tiny-sdxl", pytest.param("tiny-sd15", marks=pytest.mark.slow)], indirect=True)
def test_both_views_of_a_drawn_pair_share_their_vessels(base: Base) -> None:
    layout = Layout(base.family.layout, base.view_size)
    conditioning = encode_prompts(base, [DEFAULT_PROMPT], layout.joint_size, "cpu").rows([0])
    generate = PairGenerator(base, layout, Denoiser(base.unet().eval(), torch.float32, "cpu"), base.vae(), "ddpm", 20)
    pairs = [generate.sample(conditioning, [generator(0, "bundled", index)])[0] for index in range(2)]
    views = [prepare_views(Pair(p.cf, p.fa, field_of_view(p.cf) & field_of_view(p.fa))) for p in pairs]
    agreement = set_consistency(views)
    assert mean(agreement.matched).correlation >= 0.4
    assert mean(agreement.mispaired).correlation <= 0.08
    assert all(0.4 < pair.mask.mean() < 0.95 for pair in views), "an eye fills most of the frame"
    assert all(pair.fa_chroma < 6 for pair in pairs), "angiograms are grey before they are saved as greyscale"
    assert min(consistency(pair).correlation for pair in views) > 0.25
