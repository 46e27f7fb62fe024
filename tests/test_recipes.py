"""The recipes behind the bundled bases, on few eyes and steps: a killed one goes on to the same weights."""

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
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    for module, name, value in (
        (bank, "EYES", 2),
        (
            autoencoder,
            "PHASES",
            (autoencoder.Phase(2, True, 1e-3, 0.0), autoencoder.Phase(4, False, 1e-3, 0.5)),
        ),
        (autoencoder, "KEPT_EVERY", 2),
        (autoencoder, "JUDGED", 2),
        (grain, "PHASE", autoencoder.Phase(4, True, 1e-3, 0.5)),
        (grain, "KEPT_EVERY", 2),
        (latents, "_PART", 8),
        (
            denoiser,
            "PHASES",
            {"tiny-sdxl": tuple(denoiser.Phase(2, batch, lateness=2, coarse=4, falling=0.5) for batch in (2, 1))},
        ),
        (denoiser, "PHOTOGRAPHS", {"tiny-sdxl": 8, "tiny-sd15": 8}),
        (denoiser, "LOGGED_EVERY", 1),
        (denoiser, "KEPT_EVERY", 1),
        (denoiser, "COMPILED", False),
        (denoiser, "PROBED", 2),
        (denoiser, "PROBE_STEPS", 2),
    ):
        monkeypatch.setattr(module, name, value)
    monkeypatch.setattr(bank, "held_out_eyes", bank.train_eyes)


def killed_after(function, calls: int):  # type: ignore[no-untyped-def]
    """The function, until it was called that often."""
    left = [calls]

    def counted(*args, **kwargs):  # type: ignore[no-untyped-def]
        left[0] -= 1
        if left[0] < 0:
            raise KilledError
        return function(*args, **kwargs)

    return counted


@pytest.mark.slow
def test_killed_recipes_go_on_to_the_same_weights(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made = {}
    for name in ("whole", "killed"):
        work = tmp_path / name
        if name == "killed":
            with monkeypatch.context() as patch:
                patch.setattr(autoencoder, "taught", killed_after(autoencoder.taught, 5))
                with pytest.raises(KilledError):
                    autoencoder.train(work, "cpu", 1)
        smooth = autoencoder.train(work, "cpu", 1)
        if name == "killed":
            with monkeypatch.context() as patch:
                patch.setattr(autoencoder, "taught", killed_after(autoencoder.taught, 3))
                with pytest.raises(KilledError):
                    grain.train(autoencoder.train(work, "cpu", 1), work, "cpu", 1)
        vae = grain.train(autoencoder.train(work, "cpu", 1), work, "cpu", 1)
        assert torch.equal(vae.encoder.conv_in.weight, smooth.encoder.conv_in.weight)
        assert not torch.equal(vae.decoder.conv_in.weight, smooth.decoder.conv_in.weight)
        if name == "killed":
            with monkeypatch.context() as patch:
                patch.setattr(denoiser.Lesson, "draw", killed_after(denoiser.Lesson.draw, 3))
                with pytest.raises(KilledError):
                    denoiser.train("tiny-sdxl", work, vae, "cpu", 1, None)
        made[name] = (vae, denoiser.train("tiny-sdxl", work, vae, "cpu", 1, None))
    for whole, killed in zip(made["whole"], made["killed"], strict=True):
        for key, value in whole.state_dict().items():
            assert torch.equal(value, killed.state_dict()[key]), key


def test_pictures_are_a_function_of_seed_and_step(tmp_path: Path) -> None:
    eyes = bank.fill(tmp_path, range(2), 1)
    seen = bank.photographs(eyes, 2, 5, 7)
    first, captions = seen.joint, seen.captions
    again = bank.photographs(eyes, 2, 5, 7).joint
    other = bank.photographs(eyes, 2, 5, 8).joint
    assert first.shape == (2, 3, bank.VIEW, 2 * bank.VIEW)
    assert torch.equal(first, again)
    assert not torch.equal(first, other)
    assert all(" eye, " in text for text in captions)
    cf, fa = first.chunk(2, dim=-1)
    assert torch.equal(fa[:, 0], fa[:, 2])
    assert not torch.equal(cf[:, 0], cf[:, 2])


def test_without_noise_a_picture_is_the_same_but_for_the_noise(tmp_path: Path) -> None:
    seen = bank.photographs(bank.fill(tmp_path, range(2), 1), 2, 5, 7)
    error = (seen.joint - seen.clean)[:, :1, 96:160, 96:160]  # within the field, of values that span 2
    assert abs(float(error.mean())) < 0.005
    assert 0.01 < float(error.std()) < 0.06
    assert float(F.avg_pool2d(error, 8).std()) < float(error.std()) / 5  # of pixels, not of places


def test_vessels_are_where_the_pictures_show_them(tmp_path: Path) -> None:
    """Darker than around them in the CF, brighter in the FA, which has more of them."""
    seen = bank.photographs(bank.fill(tmp_path, range(2), 1), 2, 5, 7)
    fine = (seen.joint - F.avg_pool2d(seen.joint, 9, 1, 4))[:, 1:2]
    assert set(seen.vessels.unique().tolist()) == {0.0, 1.0}
    (cf, fa), (cf_vessels, fa_vessels) = (one.chunk(2, dim=-1) for one in (fine, seen.vessels))
    assert float(cf[cf_vessels > 0].mean()) < float(cf[cf_vessels == 0].mean())
    assert float(fa[fa_vessels > 0].mean()) > float(fa[fa_vessels == 0].mean())
    assert float(fa_vessels.mean()) > float(cf_vessels.mean())


def test_patches_are_parts_of_whole_pictures(tmp_path: Path) -> None:
    eyes = bank.fill(tmp_path, range(2), 1)
    [whole] = bank.photographs(eyes, 1, autoencoder.SEED, 4).joint
    patches = autoencoder.taught(autoencoder.PHASES[0], eyes, 4, "cpu").images
    assert patches.shape == (autoencoder.BATCH, 3, bank.VIEW // 2, bank.VIEW)
    corners = [(y, x) for y in range(0, bank.VIEW // 2 + 1, 8) for x in range(0, bank.VIEW + 1, 8)]
    height, width = patches.shape[2:]
    for patch in patches:
        assert any(torch.equal(patch, whole[:, y : y + height, x : x + width]) for y, x in corners)


@pytest.mark.nightly
def test_grain_has_the_power_of_its_spectrum_and_is_spread_evenly() -> None:
    noise = 0.1 * torch.randn((1, 3, 128, 128), generator=torch.Generator().manual_seed(1))
    dots = torch.zeros_like(noise)
    dots[..., 4::8, 4::8] = 0.8  # one in 64 px: the same mean power
    power, even = grain.spectra(noise).mean(dim=(1, 2, 3, 4))
    torch.testing.assert_close(power, torch.full_like(power, 2 * np.log(0.1)), atol=0.15, rtol=0)
    assert float((power - even).mean()) == pytest.approx(0.577, abs=0.1)  # of exponentially distributed powers
    assert 1 < float((grain.spread(noise) - grain.spread(0.5 * noise)).mean()) < np.log(4)  # less: rounding is added
    assert float(grain.spread(dots).mean()) < float(grain.spread(noise).mean()) - 1
    for flat in (grain.spectra, grain.spread):
        assert torch.isfinite(flat(torch.zeros_like(noise))).all()


@pytest.mark.nightly
@torch.no_grad()
def test_whitened_latents_are_uncorrelated_and_decode_to_the_same() -> None:
    torch.manual_seed(0)
    model = autoencoder.AutoencoderKL(**autoencoder.config()).eval()
    model.quant_conv.weight[16:], model.quant_conv.bias[16:] = 0, -20  # a posterior as sharp as can be
    images = torch.rand(4, 3, 64, 64) * 2 - 1
    before = model.decode(model.encode(images).latent_dist.mean).sample
    autoencoder.whiten(model, images)
    posterior = model.encode(images).latent_dist
    torch.testing.assert_close(model.decode(posterior.mean).sample, before, atol=1e-3, rtol=0)
    means = posterior.mean.movedim(1, -1).flatten(0, -2)
    torch.testing.assert_close(means.mean(0), torch.zeros(16), atol=1e-3, rtol=0)
    torch.testing.assert_close(means.T.cov(), torch.eye(16), atol=1e-2, rtol=0)
    assert float(posterior.std.max()) < 1e-4


def test_attention_that_looks_at_the_counterpart_has_no_loss() -> None:
    """Queries and keys of one-hot places: attention at the own place costs much, at the other half's nothing."""
    unet = denoiser.folders.new_unet("tiny-sdxl")
    guide = denoiser.Guide(unet)
    layer = guide._layers[-1]
    block, channels = layer.transformer_blocks[0], layer.proj_in.out_features
    places = torch.eye(channels)[torch.randperm(channels, generator=torch.Generator().manual_seed(0))][:32]
    width = 8  # of 4 x 8 tokens
    other = torch.arange(32).view(4, width).roll(width // 2, dims=1).flatten()
    block.norm1 = torch.nn.Identity()
    for weight, matched in ((block.attn1.to_q, places), (block.attn1.to_k, places[other])):
        weight.weight.data = 30 * matched.T @ places
    assert guide._loss(layer, places[None], 2.0) < 1e-3
    block.attn1.to_k.weight.data = 30 * places.T @ places
    assert guide._loss(layer, places[None], 2.0) > 10


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device here")
@pytest.mark.parametrize("what", ["autoencoder", "denoiser"])
def test_a_recorded_loss_has_the_gradients_of_the_plain_one(what: str, tmp_path: Path) -> None:
    torch.manual_seed(1)
    if what == "autoencoder":
        eyes, phase = bank.fill(tmp_path, range(2), 1), autoencoder.PHASES[0]
        loss = autoencoder.Loss(autoencoder.Pupil().cuda())
        batches = [autoencoder.taught(phase, eyes, step, "cuda") for step in range(3)]
    else:
        data = latents.Latents(np.random.default_rng(1).normal(size=(8, 16, 32, 64)).astype(np.float16), ["x"] * 8)
        vae = autoencoder.Pupil().autoencoder.cuda()
        unet = folders.new_unet("tiny-sdxl").cuda()
        lesson = denoiser.Lesson("tiny-sdxl", tmp_path, data, vae, "cuda")
        loss = denoiser.Loss(lesson, unet, denoiser.Guide(unet), coarse=4.0)
        batches = [lesson.draw(step) for step in range(2)] * 2

    def learnt(losses: Callable[..., tuple[torch.Tensor, ...]], step: int) -> tuple[float, torch.Tensor]:
        loss.zero_grad()
        value, _ = losses(*batches[step])
        value.backward()
        grads = [one.grad.flatten() for one in loss.parameters() if one.grad is not None]
        return float(value.detach()), torch.cat(grads)

    plain = [learnt(loss, step) for step in (1, 2)]
    recorded = keeping.Recorded(lambda phase: loss)
    recorded("a phase", [one.clone() for one in batches[0]])
    replayed = [learnt(lambda *batch: recorded("a phase", batch), step) for step in (1, 2)]
    for (value, grad), (same_value, same_grad) in zip(plain, replayed, strict=True):
        assert same_value == pytest.approx(value, rel=1e-2)
        assert float(F.cosine_similarity(grad, same_grad, dim=0)) > 0.99
    assert plain[0][0] != pytest.approx(plain[1][0], rel=1e-4)


def test_squeezed_pictures_are_what_the_layout_makes() -> None:
    joint = torch.randint(256, (1, 3, 64, 128)).float() / 127.5 - 1
    joint[..., 64:] = joint[:, :1, :, 64:]
    cf, fa = ((joint[0] + 1) * 127.5).round().byte().permute(1, 2, 0).numpy().reshape(64, 2, 64, 3).swapaxes(0, 1)
    wanted = torch.from_numpy(latents.Layout("squeezed", 64).join(cf, fa[..., 0])).permute(2, 0, 1)
    assert torch.equal(((latents.squeezed(joint)[0] + 1) * 127.5).round().byte(), wanted)


@pytest.mark.slow
def test_a_base_is_made_and_another_from_its_weights(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def made(*arguments: object) -> None:
        monkeypatch.setattr(sys, "argv", ["make.py", "tiny-sdxl", "--workers", "1", *map(str, arguments)])
        make.main()

    made("--out", tmp_path / "one")
    first = open_base(str(tmp_path / "one" / "tiny-sdxl"))
    assert first.view_size == bank.VIEW
    made("--out", tmp_path / "two", "--start", first.configs, "--done", 2)
    card = (tmp_path / "two" / "tiny-sdxl" / "README.md").read_text()
    assert f"--start {first.configs} --done 2" in card
    assert "## Before that: tiny-sdxl" in card
    with pytest.raises(SystemExit):
        made("--out", tmp_path / "three", "--done", 2)


@pytest.mark.slow
def test_a_killed_segmenter_goes_on_to_the_same_weights(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in (("EYES", 2), ("HELD_OUT", 2), ("PHASE", segmenter.Steps(4, warmup=1)), ("KEPT_EVERY", 2)):
        monkeypatch.setattr(segmenter, name, value)
    whole = segmenter.train(tmp_path / "whole", "cpu").state_dict()

    def die(self: keeping.Training, **values: float) -> None:
        raise KilledError

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(keeping.Training, "log", die)
        with pytest.raises(KilledError):
            segmenter.train(tmp_path / "killed", "cpu")
    resumed = segmenter.train(tmp_path / "killed", "cpu").state_dict()
    assert all(torch.equal(value, resumed[name]) for name, value in whole.items())
