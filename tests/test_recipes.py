"""Test the recipes of the bundled bases with few eyes and steps: a killed recipe resumes and gives the same weights."""

import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from torch.nn import functional as F

sys.path.insert(0, str(Path(__file__).parents[1] / "recipes"))
import autoencoder
import bank
import denoiser
import folders
import grain
import keeping
import latents
import make
import segmenter

from retipair.models.base import open_base


class KilledError(Exception):
    pass


@pytest.fixture(autouse=True)
def small_recipes(monkeypatch: pytest.MonkeyPatch) -> None:
    for module, name, value in (
        (bank, "TRAIN_EYES", 2),
        (
            autoencoder,
            "PHASES",
            (autoencoder.Phase(2, True, 1e-3, 0.0), autoencoder.Phase(4, False, 1e-3, 0.5)),
        ),
        (autoencoder, "SAVE_EVERY", 2),
        (autoencoder, "EVAL_PAIRS", 2),
        (grain, "PHASE", autoencoder.Phase(4, True, 1e-3, 0.5)),
        (grain, "SAVE_EVERY", 2),
        (latents, "_PER_FILE", 8),
        (
            denoiser,
            "PHASES",
            {"tiny-sdxl": tuple(denoiser.Phase(2, size, 2, coarse_weight=4, decay_fraction=0.5) for size in (2, 1))},
        ),
        (denoiser, "IMAGES", {"tiny-sdxl": 8, "tiny-sd15": 8}),
        (denoiser, "LOG_EVERY", 1),
        (denoiser, "SAVE_EVERY", 1),
        (denoiser, "COMPILE", False),
        (denoiser, "EVAL_PAIRS", 2),
        (denoiser, "SAMPLING_STEPS", 2),
    ):
        monkeypatch.setattr(module, name, value)
    monkeypatch.setattr(bank, "held_out_eyes", bank.train_eyes)


def killed_after(function, calls: int):  # type: ignore[no-untyped-def]
    """Return a function that calls `function` and raises KilledError after `calls` calls."""
    remaining = [calls]

    def wrapper(*args, **kwargs):  # type: ignore[no-untyped-def]
        remaining[0] -= 1
        if remaining[0] < 0:
            raise KilledError
        return function(*args, **kwargs)

    return wrapper


@pytest.mark.slow
def test_killed_recipes_resume_and_give_the_same_weights(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    models = {}
    for name in ("uninterrupted", "killed"):
        work = tmp_path / name
        if name == "killed":
            with monkeypatch.context() as patch:
                patch.setattr(autoencoder, "draw_batch", killed_after(autoencoder.draw_batch, 5))
                with pytest.raises(KilledError):
                    autoencoder.train(work, "cpu", 1)
        before = autoencoder.train(work, "cpu", 1)
        if name == "killed":
            with monkeypatch.context() as patch:
                patch.setattr(autoencoder, "draw_batch", killed_after(autoencoder.draw_batch, 3))
                with pytest.raises(KilledError):
                    grain.train(autoencoder.train(work, "cpu", 1), work, "cpu", 1)
        vae = grain.train(autoencoder.train(work, "cpu", 1), work, "cpu", 1)
        assert torch.equal(vae.encoder.conv_in.weight, before.encoder.conv_in.weight)
        assert not torch.equal(vae.decoder.conv_in.weight, before.decoder.conv_in.weight)
        if name == "killed":
            with monkeypatch.context() as patch:
                setup = denoiser.TrainingSetup
                patch.setattr(setup, "draw_batch", killed_after(setup.draw_batch, 3))
                with pytest.raises(KilledError):
                    denoiser.train("tiny-sdxl", work, vae, "cpu", 1, None)
        models[name] = (vae, denoiser.train("tiny-sdxl", work, vae, "cpu", 1, None))
    for uninterrupted, killed in zip(models["uninterrupted"], models["killed"], strict=True):
        for key, value in uninterrupted.state_dict().items():
            assert torch.equal(value, killed.state_dict()[key]), key


def test_photographs_are_a_function_of_seed_and_step(tmp_path: Path) -> None:
    eyes = bank.load_or_draw(tmp_path, range(2), 1)
    photographs = bank.render_photographs(eyes, 2, 5, 7)
    first, captions = photographs.joint, photographs.captions
    again = bank.render_photographs(eyes, 2, 5, 7).joint
    other = bank.render_photographs(eyes, 2, 5, 8).joint
    assert first.shape == (2, 3, bank.VIEW, 2 * bank.VIEW)
    assert torch.equal(first, again)
    assert not torch.equal(first, other)
    assert all(" eye, " in text for text in captions)
    cf, fa = first.chunk(2, dim=-1)
    assert torch.equal(fa[:, 0], fa[:, 2])
    assert not torch.equal(cf[:, 0], cf[:, 2])


def test_clean_photographs_differ_only_by_sensor_noise(tmp_path: Path) -> None:
    photographs = bank.render_photographs(bank.load_or_draw(tmp_path, range(2), 1), 2, 5, 7)
    error = (photographs.joint - photographs.clean)[:, :1, 96:160, 96:160]  # inside the field; the value range is 2
    assert abs(float(error.mean())) < 0.005
    assert 0.01 < float(error.std()) < 0.06
    assert float(F.avg_pool2d(error, 8).std()) < float(error.std()) / 5  # independent between pixels


def test_vessel_masks_match_the_photographs(tmp_path: Path) -> None:
    """Vessels are darker than their surroundings in the CF and brighter in the FA, which shows more of them."""
    photographs = bank.render_photographs(bank.load_or_draw(tmp_path, range(2), 1), 2, 5, 7)
    detail = (photographs.joint - F.avg_pool2d(photographs.joint, 9, 1, 4))[:, 1:2]
    assert set(photographs.vessels.unique().tolist()) == {0.0, 1.0}
    (cf, fa), (cf_vessels, fa_vessels) = (images.chunk(2, dim=-1) for images in (detail, photographs.vessels))
    assert float(cf[cf_vessels > 0].mean()) < float(cf[cf_vessels == 0].mean())
    assert float(fa[fa_vessels > 0].mean()) > float(fa[fa_vessels == 0].mean())
    assert float(fa_vessels.mean()) > float(cf_vessels.mean())


def test_patches_are_crops_of_photographs(tmp_path: Path) -> None:
    eyes = bank.load_or_draw(tmp_path, range(2), 1)
    [whole] = bank.render_photographs(eyes, 1, autoencoder.SEED, 4).joint
    patches = autoencoder.draw_batch(autoencoder.PHASES[0], eyes, 4, "cpu").images
    assert patches.shape == (autoencoder.BATCH_SIZE, 3, bank.VIEW // 2, bank.VIEW)
    corners = [(y, x) for y in range(0, bank.VIEW // 2 + 1, 8) for x in range(0, bank.VIEW + 1, 8)]
    height, width = patches.shape[2:]
    for patch in patches:
        assert any(torch.equal(patch, whole[:, y : y + height, x : x + width]) for y, x in corners)


@pytest.mark.nightly
def test_grain_metrics_distinguish_noise_from_dots() -> None:
    noise = 0.1 * torch.randn((1, 3, 128, 128), generator=torch.Generator().manual_seed(1))
    dots = torch.zeros_like(noise)
    dots[..., 4::8, 4::8] = 0.8  # one in 64 px: the mean power of the noise
    power, log_mean = grain.spectra(noise).mean(dim=(1, 2, 3, 4))
    torch.testing.assert_close(power, torch.full_like(power, 2 * np.log(0.1)), atol=0.15, rtol=0)
    assert float((power - log_mean).mean()) == pytest.approx(0.577, abs=0.1)  # for exponentially distributed power
    energy = grain.log_detail_energy(noise)
    halved = grain.log_detail_energy(0.5 * noise)
    assert 1 < float((energy - halved).mean()) < np.log(4)  # less than log 4, because MIN_POWER is added
    assert float(grain.log_detail_energy(dots).mean()) < float(energy.mean()) - 1
    for metric in (grain.spectra, grain.log_detail_energy):
        assert torch.isfinite(metric(torch.zeros_like(noise))).all()


@pytest.mark.nightly
@torch.no_grad()
def test_whitened_latents_are_uncorrelated_and_decode_to_the_same_images() -> None:
    torch.manual_seed(0)
    model = autoencoder.AutoencoderKL(**autoencoder.config()).eval()
    model.quant_conv.weight[16:], model.quant_conv.bias[16:] = 0, -20  # almost no posterior variance
    images = torch.rand(4, 3, 64, 64) * 2 - 1
    before = model.decode(model.encode(images).latent_dist.mean).sample
    autoencoder.whiten(model, images)
    posterior = model.encode(images).latent_dist
    torch.testing.assert_close(model.decode(posterior.mean).sample, before, atol=1e-3, rtol=0)
    means = posterior.mean.movedim(1, -1).flatten(0, -2)
    torch.testing.assert_close(means.mean(0), torch.zeros(16), atol=1e-3, rtol=0)
    torch.testing.assert_close(means.T.cov(), torch.eye(16), atol=1e-2, rtol=0)
    assert float(posterior.std.max()) < 1e-4


def test_guided_attention_loss_is_zero_at_the_same_position_in_the_other_half() -> None:
    """Queries and keys are one-hot positions. Attention to the own position has a high loss."""
    unet = denoiser.folders.new_unet("tiny-sdxl")
    attention = denoiser.GuidedAttention(unet)
    layer = attention._layers[-1]
    block, channels = layer.transformer_blocks[0], layer.proj_in.out_features
    positions = torch.eye(channels)[torch.randperm(channels, generator=torch.Generator().manual_seed(0))][:32]
    width = 8  # 4 x 8 tokens
    counterpart = torch.arange(32).view(4, width).roll(width // 2, dims=1).flatten()
    block.norm1 = torch.nn.Identity()
    for projection, outputs in ((block.attn1.to_q, positions), (block.attn1.to_k, positions[counterpart])):
        projection.weight.data = 30 * outputs.T @ positions
    assert attention._loss(layer, positions[None], 2.0) < 1e-3
    block.attn1.to_k.weight.data = 30 * positions.T @ positions
    assert attention._loss(layer, positions[None], 2.0) > 10


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device here")
@pytest.mark.parametrize("model", ["autoencoder", "denoiser"])
def test_a_cuda_graph_gives_the_same_loss_and_gradients(model: str, tmp_path: Path) -> None:
    torch.manual_seed(1)
    if model == "autoencoder":
        eyes, phase = bank.load_or_draw(tmp_path, range(2), 1), autoencoder.PHASES[0]
        loss = autoencoder.Loss(autoencoder.AutoencoderWithVesselHead().cuda())
        batches = [autoencoder.draw_batch(phase, eyes, step, "cuda") for step in range(3)]
    else:
        data = latents.Latents(np.random.default_rng(1).normal(size=(8, 16, 32, 64)).astype(np.float16), ["x"] * 8)
        vae = autoencoder.AutoencoderWithVesselHead().autoencoder.cuda()
        unet = folders.new_unet("tiny-sdxl").cuda()
        setup = denoiser.TrainingSetup("tiny-sdxl", tmp_path, data, vae, "cuda")
        loss = denoiser.Loss(setup, unet, denoiser.GuidedAttention(unet), coarse_weight=4.0)
        batches = [setup.draw_batch(step) for step in range(2)] * 2

    def loss_and_gradient(function: Callable[..., tuple[torch.Tensor, ...]], step: int) -> tuple[float, torch.Tensor]:
        loss.zero_grad()
        value, _ = function(*batches[step])
        value.backward()
        grads = [parameter.grad.flatten() for parameter in loss.parameters() if parameter.grad is not None]
        return float(value.detach()), torch.cat(grads)

    expected = [loss_and_gradient(loss, step) for step in (1, 2)]
    graph = keeping.CudaGraphLoss(lambda phase: loss)
    graph("a phase", [tensor.clone() for tensor in batches[0]])
    replayed = [loss_and_gradient(lambda *batch: graph("a phase", batch), step) for step in (1, 2)]
    for (value, gradient), (graph_value, graph_gradient) in zip(expected, replayed, strict=True):
        assert graph_value == pytest.approx(value, rel=1e-2)
        assert float(F.cosine_similarity(gradient, graph_gradient, dim=0)) > 0.99
    assert expected[0][0] != pytest.approx(expected[1][0], rel=1e-4)


def test_squeezed_images_equal_those_of_the_layout() -> None:
    joint = torch.randint(256, (1, 3, 64, 128)).float() / 127.5 - 1
    joint[..., 64:] = joint[:, :1, :, 64:]
    cf, fa = ((joint[0] + 1) * 127.5).round().byte().permute(1, 2, 0).numpy().reshape(64, 2, 64, 3).swapaxes(0, 1)
    expected = torch.from_numpy(latents.Layout("squeezed", 64).join(cf, fa[..., 0])).permute(2, 0, 1)
    assert torch.equal(((latents.squeeze(joint)[0] + 1) * 127.5).round().byte(), expected)


@pytest.mark.slow
def test_a_base_is_trained_from_scratch_and_from_another_base(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def run(*arguments: object) -> None:
        monkeypatch.setattr(sys, "argv", ["make.py", "tiny-sdxl", "--workers", "1", *map(str, arguments)])
        make.main()

    run("--out", tmp_path / "one")
    first = open_base(str(tmp_path / "one" / "tiny-sdxl"))
    assert first.view_size == bank.VIEW
    run("--out", tmp_path / "two", "--start", first.configs, "--done", 2)
    card = (tmp_path / "two" / "tiny-sdxl" / "README.md").read_text()
    assert f"--start {first.configs} --done 2" in card
    assert "## Initial weights of the UNet above: tiny-sdxl" in card
    with pytest.raises(SystemExit):
        run("--out", tmp_path / "three", "--done", 2)


@pytest.mark.slow
def test_a_killed_segmenter_resumes_and_gives_the_same_weights(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in (
        ("TRAIN_EYES", 2),
        ("HELD_OUT_EYES", 2),
        ("PHASE", segmenter.Phase(4, warmup_steps=1)),
        ("SAVE_EVERY", 2),
    ):
        monkeypatch.setattr(segmenter, name, value)
    uninterrupted = segmenter.train(tmp_path / "uninterrupted", "cpu").state_dict()

    def kill(self: keeping.Training, **values: float) -> None:
        raise KilledError

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(keeping.Training, "log", kill)
        with pytest.raises(KilledError):
            segmenter.train(tmp_path / "killed", "cpu")
    resumed = segmenter.train(tmp_path / "killed", "cpu").state_dict()
    assert all(torch.equal(value, resumed[name]) for name, value in uninterrupted.items())
