"""The recipes behind the bundled bases, on few eyes and steps: a killed one goes on to the same weights."""

import sys
from pathlib import Path

import pytest
import torch

sys.path.insert(0, str(Path(__file__).parents[1] / "recipes"))
import autoencoder
import bank
import denoiser
import latents


class KilledError(Exception):
    pass


@pytest.fixture(autouse=True)
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    for module, name, value in (
        (bank, "EYES", 2),
        (
            autoencoder,
            "PHASES",
            (
                autoencoder.Phase(8, 2, 1e-3, 0.0, 1.0, 1e-3, None),
                autoencoder.Phase(16, 4, 1e-3, 0.5, 0.0, 1e-3, autoencoder.Contrast(0.3, 3, 0.02)),
            ),
        ),
        (autoencoder, "KEPT_EVERY", 2),
        (latents, "_PART", 8),
        (denoiser, "PHASES", (denoiser.Phase(128, 2, 2), denoiser.Phase(256, 2, 1, 2, 0.5, 0.05))),
        (denoiser, "PHOTOGRAPHS", 8),
        (denoiser, "LOGGED_EVERY", 1),
        (denoiser, "KEPT_EVERY", 1),
        (denoiser, "COMPILED", False),
        (denoiser, "PROBED", 2),
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
                patch.setattr(autoencoder, "loss_of", killed_after(autoencoder.loss_of, 5))
                with pytest.raises(KilledError):
                    autoencoder.train(work, "cpu", 1)
        vae = autoencoder.train(work, "cpu", 1)
        if name == "killed":
            with monkeypatch.context() as patch:
                patch.setattr(denoiser.Lesson, "loss", killed_after(denoiser.Lesson.loss, 3))
                with pytest.raises(KilledError):
                    denoiser.train("tiny-sdxl", work, vae, "cpu", 1, None)
        made[name] = (vae, denoiser.train("tiny-sdxl", work, vae, "cpu", 1, None))
    for whole, killed in zip(made["whole"], made["killed"], strict=True):
        for key, value in whole.state_dict().items():
            assert torch.equal(value, killed.state_dict()[key]), key


def test_pictures_are_a_function_of_seed_and_step(tmp_path: Path) -> None:
    eyes = bank.fill(tmp_path, range(2), 1)
    first, captions = bank.photographs(eyes, 2, 5, 7)
    again, _ = bank.photographs(eyes, 2, 5, 7)
    other, _ = bank.photographs(eyes, 2, 5, 8)
    assert first.shape == (2, 3, bank.VIEW, 2 * bank.VIEW)
    assert torch.equal(first, again)
    assert not torch.equal(first, other)
    assert all(" eye, " in text for text in captions)
    cf, fa = first.chunk(2, dim=-1)
    assert torch.equal(fa[:, 0], fa[:, 2])
    assert not torch.equal(cf[:, 0], cf[:, 2])


def test_widening_an_autoencoder_changes_nothing_at_first() -> None:
    narrow, wide = (autoencoder.AutoencoderKL(**autoencoder.config(channels)).eval() for channels in (8, 16))
    autoencoder.widen(wide, narrow)
    image = torch.rand(1, 3, 64, 64) * 2 - 1
    with torch.no_grad():
        before = narrow.decode(narrow.encode(image).latent_dist.mean).sample
        after = wide.decode(wide.encode(image).latent_dist.mean).sample
    torch.testing.assert_close(after, before, atol=1e-5, rtol=0)


def test_squeezed_pictures_are_what_the_layout_makes() -> None:
    joint = torch.rand(1, 3, 64, 128) * 2 - 1
    joint[..., 64:] = joint[:, :1, :, 64:]
    assert latents.squeezed(joint).shape == (1, 3, 64, 64)
