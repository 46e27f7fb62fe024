"""Learning is real: training on two pairs teaches these two, leaves the base alone, and starts from exactly nothing."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from conftest import VIEW, save_base, write_prepared
from eyes import draw_pair
from retipair.batches import make_batches
from retipair.cli import main
from retipair.config import TrainConfig
from retipair.data.layout import Layout
from retipair.diffusion.noise import generator, noise_like, timesteps_for
from retipair.model.adapter import add_adapter, load_adapter, lora_config
from retipair.model.autoencoder import encode_moments
from retipair.model.base import Base, open_base
from retipair.model.conditioning import encode_prompts
from retipair.model.denoiser import Denoiser
from retipair.plan import make_plan, read_data
from retipair.train import validate

STEPS = 200


@pytest.fixture
def briefly_trained(system: str, base_folder: Callable[[str], Path], tmp_path: Path) -> Path:
    """A base whose UNet has seen eyes (not those of the test) for a moment, so that there is something to adapt."""
    folder = tmp_path / "base"
    save_base(open_base(str(base_folder(system))), folder)
    base = open_base(str(folder))
    _settle(base.vae()).save_pretrained(str(folder / "vae"))
    unet = base.unet().requires_grad_(True).train()
    _teach(open_base(str(folder)), unet, steps=200)
    unet.save_pretrained(str(folder / "unet"))
    return folder


def _settle(vae: Any) -> Any:
    """What training gives an autoencoder: latents of unit size with little doubt about them."""
    with torch.no_grad():
        vae.quant_conv.weight[4:] = 0
        vae.quant_conv.bias[4:] = -12  # log variance
    spread = encode_moments(vae, draw_pair(99, VIEW)[0][None]).mean.std() / vae.config.scaling_factor
    vae.register_to_config(scaling_factor=float(1 / spread))
    return vae


def _teach(base: Base, unet: Any, steps: int) -> None:
    layout, scheduler = Layout(base.system.layout, VIEW), base.scheduler("ddpm")
    vae, denoise = base.vae(), Denoiser(unet, torch.float32, "cpu")
    eyes = [encode_moments(vae, layout.join(*draw_pair(100 + i, VIEW))[None]).mean for i in range(6)]
    heard = encode_prompts(base, [""], layout.joint_size, "cpu").rows([0] * 4)
    optimizer = torch.optim.AdamW(unet.parameters(), lr=1e-3)
    for step in range(steps):
        keys = [("teach", 4 * step + i) for i in range(4)]
        latents = torch.cat([eyes[(4 * step + i) % len(eyes)] for i in range(4)])
        noise, t = noise_like(latents, *keys), timesteps_for(1000, latents.device, *keys)
        loss = ((denoise(scheduler.add_noise(latents, noise, t), t, heard) - noise) ** 2).mean()
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()


def loss_on(data: Path, base: Path, adapter: Path, results: Path) -> float:
    """The fixed-noise validation loss of an adapter on the validation pairs of a folder."""
    plan = make_plan(TrainConfig(name="judge", data=data, base=str(base), results=results, device="cpu"))
    batches = make_batches(plan, read_data(plan))
    unet = plan.base.unet().eval()
    load_adapter(adapter, unet, str(base))
    return validate(Denoiser(unet, torch.float32, "cpu"), plan.base.scheduler("ddpm"), batches)["loss"]


def test_two_pairs_are_learnt(briefly_trained: Path, system: str, tmp_path: Path) -> None:
    before = {path: path.read_bytes() for path in briefly_trained.rglob("*.safetensors")}
    data = write_prepared(tmp_path / "data", ["train", "train", "val", "val"])
    swapped = write_prepared(tmp_path / "swapped", ["val", "val", "train", "train"])
    command = [
        "train",
        "-n",
        "exp",
        "--data",
        data,
        "--base",
        briefly_trained,
        "--results",
        tmp_path,
        "--device",
        "cpu",
    ]
    command += ["--max_steps", STEPS, "--val_every", STEPS, "--num_samples", 0, "--augment_variants", 1]
    command += ["--learning_rate", "3e-3", "--lora_targets", "all", "--batch_size", 2, "--offset_noise_strength", 0]
    assert main([str(part) for part in command]) == 0
    checkpoints = tmp_path / f"out_joint_{system}_cffa_pairs/exp/latest_checkpoints"
    first, last = (checkpoints / f"step_{step:06d}" / "unet_lora" for step in (0, STEPS))

    seen, unseen = (
        1 - loss_on(folder, briefly_trained, last, tmp_path) / loss_on(folder, briefly_trained, first, tmp_path)
        for folder in (swapped, data)
    )
    print(f"{system}: seen pairs {seen:.1%} better, unseen {unseen:.1%}")
    assert seen >= 0.10
    assert seen > unseen
    assert {path: path.read_bytes() for path in before} == before, "the base's files were touched"


def test_training_leaves_every_weight_of_the_base_as_it_was(system: str, base_folder: Callable[[str], Path]) -> None:
    base = open_base(str(base_folder(system)))
    unet = base.unet()
    before = {name: parameter.clone() for name, parameter in unet.named_parameters()}
    add_adapter(unet, lora_config(4, 4, "all", dora=False, rslora=False))
    trainable = [parameter for parameter in unet.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(trainable, lr=1e-2)
    latents = torch.randn(1, 4, 16, 16, generator=generator(0))
    heard = encode_prompts(base, [""], (VIEW, VIEW), "cpu").rows([0])
    for _ in range(2):
        Denoiser(unet, torch.float32, "cpu")(latents, torch.tensor([500]), heard).square().mean().backward()
        optimizer.step()
    after = {name.replace(".base_layer", ""): parameter for name, parameter in unet.named_parameters()}
    assert all(torch.equal(after[name], weights) for name, weights in before.items())
    assert any(parameter.grad is not None and parameter.grad.any() for parameter in trainable)
