"""What the loss means: nothing is lost on a perfect prediction, and what is wrong in one half stays there."""

from functools import partial

import numpy as np
import pytest
import torch
from diffusers import DDPMScheduler
from scipy import ndimage

from retipair.diffusion.halves import mean_per_half
from retipair.diffusion.losses import Losses, Objective, Prediction, Term, high_frequency, high_pass
from retipair.diffusion.noise import generator
from retipair.diffusion.schedule import NoiseSchedule

ORIGINAL, LATER = (7, 1.5), (3, 0.5)  # kernel and sigma
T = torch.tensor([0, 20, 299, 300, 999])
WIDTH = 32
SEAM = WIDTH // 2

both_predictions = pytest.mark.parametrize("kind", ["epsilon", "v_prediction"])
both_filters = pytest.mark.parametrize("blur", [ORIGINAL, LATER], ids=["7", "3"])

Blur = tuple[int, float]


def hf(blur: Blur = ORIGINAL, weight: float = 0.5, limit: int = 300) -> dict[str, Term]:
    return {"hf": Term(partial(high_frequency, kernel=blur[0], sigma=blur[1]), weight, limit)}


def scheduler(kind: str = "epsilon") -> DDPMScheduler:
    """SDXL's."""
    return DDPMScheduler(
        beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear", prediction_type=kind, clip_sample=False
    )


def schedule(kind: str = "epsilon") -> NoiseSchedule:
    return NoiseSchedule.from_scheduler(scheduler(kind))


def noisy(rows: int = len(T), t: torch.Tensor = T) -> torch.Tensor:
    return schedule().add_noise(normal("latents", rows=rows), normal("noise", rows=rows), t)


def normal(*key: int | str, rows: int = len(T)) -> torch.Tensor:
    return torch.randn(rows, 4, 16, WIDTH, generator=generator(*key))


def losses(prediction: torch.Tensor, kind: str = "epsilon", terms: dict[str, Term] | None = None) -> Losses:
    return Objective(schedule(kind), terms or hf())(prediction, noisy(), normal("latents"), normal("noise"), T)


def perfect(kind: str) -> torch.Tensor:
    return schedule(kind).target(normal("latents"), normal("noise"), T)


@both_predictions
def test_a_perfect_prediction_loses_nothing(kind: str) -> None:
    result = losses(perfect(kind), kind)
    assert result.values["mse"].abs().max() == 0
    assert result.values["hf"].abs().max() < 1e-5
    assert result.total < 1e-5


@both_predictions
def test_a_perfect_prediction_implies_the_clean_latents(kind: str) -> None:
    clean = schedule(kind).clean_latents(perfect(kind), noisy(), T)
    assert torch.allclose(clean, normal("latents"), atol=2e-4)


@both_predictions
def test_the_library_agrees_on_noise_and_target_to_the_bit(kind: str) -> None:
    given = normal("latents"), normal("noise"), T
    assert torch.equal(schedule(kind).add_noise(*given), scheduler(kind).add_noise(*given))
    target = normal("noise") if kind == "epsilon" else scheduler(kind).get_velocity(*given)
    assert torch.equal(schedule(kind).target(*given), target)
    assert schedule(kind).num_timesteps == scheduler(kind).config.num_train_timesteps


@both_predictions
def test_the_library_agrees_on_the_clean_latents(kind: str) -> None:
    wrong = perfect(kind) + normal("error")
    ours = schedule(kind).clean_latents(wrong, noisy(), T)
    for row, t in enumerate(T.tolist()):
        theirs = scheduler(kind).step(wrong[row], t, noisy()[row], generator=generator(0)).pred_original_sample
        assert torch.allclose(ours[row], theirs, rtol=1e-4, atol=1e-4)


def zero_snr(kind: str) -> DDPMScheduler:
    """A schedule whose last timestep is noise alone."""
    return DDPMScheduler.from_config(scheduler(kind).config, rescale_betas_zero_snr=True)


@both_predictions
@both_filters
@pytest.mark.parametrize("gamma", [0.0, 5.0])
@pytest.mark.parametrize("limit", [300, 1000])
def test_at_zero_terminal_snr_losses_and_gradients_are_finite(kind: str, blur: Blur, gamma: float, limit: int) -> None:
    latents, noise = normal("latents"), normal("noise")
    prediction = normal("prediction").requires_grad_()
    terminal = NoiseSchedule.from_scheduler(zero_snr(kind))
    objective = Objective(terminal, hf(blur, limit=limit), gamma)
    result = objective(prediction, terminal.add_noise(latents, noise, T), latents, noise, T)
    result.total.backward()
    assert result.total.isfinite()
    assert prediction.grad is not None
    assert prediction.grad.isfinite().all()
    assert result.values["hf"].isfinite().all()
    target = noise if kind == "epsilon" else -latents  # v = alpha noise - sigma x, with alpha 0
    expected = (prediction - target)[-1].detach().square()
    assert torch.allclose(result.values["mse"][-1], torch.stack([half.mean() for half in expected.chunk(2, -1)]))
    counted = limit == 1000 and kind == "v_prediction"  # noise alone says nothing of the eye
    assert result.counts["hf"][-1].tolist() == [float(counted)] * 2
    if counted:  # clean = alpha noisy - sigma v = -v
        difference = high_pass(-prediction[-1:].clamp(-10, 10), *blur) - high_pass(latents[-1:], *blur)
        assert torch.allclose(
            result.values["hf"][-1], torch.stack([h.abs().mean() for h in difference.chunk(2, -1)]), rtol=1e-4
        )


@both_predictions
def test_min_snr_at_zero_terminal_snr_is_its_limit(kind: str) -> None:
    """min(SNR, 5) / SNR -> 1; / (SNR + 1) -> 0."""
    weight = NoiseSchedule.from_scheduler(zero_snr(kind)).min_snr_weight(torch.tensor([999]), gamma=5.0)
    assert weight.tolist() == [1.0 if kind == "epsilon" else 0.0]


def test_mse_is_the_mean_square_of_each_half() -> None:
    error = torch.zeros_like(normal("error"))
    error[..., :SEAM], error[..., SEAM:] = 2.0, 3.0
    result = losses(perfect("epsilon") + error)
    assert torch.allclose(result.values["mse"], torch.tensor([4.0, 9.0]).expand(5, 2))


@both_predictions
def test_high_frequency_counts_only_below_the_limit(kind: str) -> None:
    result = losses(perfect(kind) + normal("error"), kind)
    assert result.counts["mse"].tolist() == [[1, 1]] * 5
    assert result.counts["hf"].tolist() == [[1, 1]] * 3 + [[0, 0]] * 2
    assert (result.values["hf"][:3] > 0).all()
    assert (result.values["hf"][3:] == 0).all()


def test_the_total_is_the_mean_square_plus_the_weighted_high_frequency() -> None:
    prediction = perfect("epsilon") + normal("error")
    result = losses(prediction)
    assert result.total.item() == pytest.approx((result.values["mse"].mean() + 0.5 * result.values["hf"].mean()).item())
    without = losses(prediction, terms=hf(weight=0.0))
    assert without.total.item() == pytest.approx(without.values["mse"].mean().item())
    assert not without.values["hf"].any()


@both_predictions
def test_gradient_flows_to_the_prediction_alone_and_through_both_parts(kind: str) -> None:
    def gradient(terms: dict[str, Term]) -> torch.Tensor:
        prediction = (perfect(kind) + normal("error")).requires_grad_()
        result = losses(prediction, kind, terms)
        assert not result.values["mse"].requires_grad
        assert not result.values["hf"].requires_grad
        result.total.backward()
        assert prediction.grad is not None
        return prediction.grad

    extra = gradient(hf()) - gradient(hf(weight=0.0))
    assert extra[:3].abs().amax((1, 2, 3)).min() > 0
    assert not extra[3:].any()


@both_predictions
@both_filters
@pytest.mark.parametrize("half", [0, 1])
def test_an_error_in_one_half_leaves_the_other_at_nothing(kind: str, blur: Blur, half: int) -> None:
    """Also right beside the seam, where a filter over the joint latents would reach across."""
    prediction = perfect(kind)
    beside_seam = slice(SEAM - 2, SEAM) if half == 0 else slice(SEAM, SEAM + 2)
    prediction[..., beside_seam] += 5.0
    clean, wrong = losses(perfect(kind), kind, hf(blur)), losses(prediction, kind, hf(blur))
    other = 1 - half
    assert torch.equal(wrong.values["mse"][:, other], clean.values["mse"][:, other])
    assert torch.equal(wrong.values["hf"][:, other], clean.values["hf"][:, other])
    assert (wrong.values["mse"][:, half] > 1).all()
    assert (wrong.values["hf"][:3, half] > 100 * clean.values["hf"][:3, half]).all()


@both_filters
def test_an_even_image_has_no_fine_detail_even_at_border_and_seam(blur: Blur) -> None:
    latents = torch.ones(1, 4, 16, WIDTH)
    latents[..., :SEAM], latents[..., SEAM:] = -3.0, 5.0  # two brightnesses: the seam is no edge
    assert high_pass(latents, *blur).abs().max() < 1e-5


@both_filters
def test_the_blur_is_scipys_gaussian_with_mirrored_borders(blur: Blur) -> None:
    latents = normal("latents", rows=2)
    kernel, sigma = blur
    halves = latents.numpy().reshape(2, 4, 16, 2, SEAM)
    blurred = ndimage.gaussian_filter(halves.astype(np.float64), sigma, mode="mirror", radius=kernel // 2, axes=(2, 4))
    expected = torch.from_numpy((halves - blurred).reshape(latents.shape)).float()
    assert torch.allclose(high_pass(latents, *blur), expected, atol=1e-5)


def test_the_loss_is_the_mean_absolute_difference_of_the_high_passed() -> None:
    """Against arithmetic of its own: with noise-free x0 = x_t / alpha the whole of it can be written out."""
    objective, t = Objective(schedule(), hf()), torch.tensor([100])
    latents, noise, error = normal("latents", rows=1), normal("noise", rows=1), normal("error", rows=1)
    alpha2 = scheduler().alphas_cumprod[100]
    amplified = -((1 - alpha2) / alpha2).sqrt() * error  # what an error of the noise does to the clean latents
    expected = high_pass(amplified, *ORIGINAL).abs().unflatten(-1, (2, SEAM)).mean((1, 2, 4))
    assert torch.allclose(objective(noise + error, noisy(1, t), latents, noise, t).values["hf"], expected, atol=1e-4)


def test_wild_predictions_are_clamped_before_the_high_pass() -> None:
    objective, t = Objective(schedule(), hf()), torch.tensor([299])
    latents, noise = normal("latents", rows=1), normal("noise", rows=1)
    wild = objective(noise + 1e6 * normal("error", rows=1), noisy(1, t), latents, noise, t)
    assert wild.values["hf"].max() < 25  # +-10 against +-10, where the raw error is a million


@pytest.mark.parametrize("kind", ["epsilon", "v_prediction"])
def test_min_snr_never_weighs_more_than_one_and_only_holds_back_low_noise(kind: str) -> None:
    """Against the paper's own form: min(SNR, 5) / SNR for noise, / (SNR + 1) for v."""
    t = torch.arange(1000)
    alpha2 = scheduler().alphas_cumprod.double()
    snr = alpha2 / (1 - alpha2)
    expected = torch.minimum(snr, torch.tensor(5.0)) / (snr if kind == "epsilon" else snr + 1)
    weight = schedule(kind).min_snr_weight(t, gamma=5.0)
    assert torch.allclose(weight.double(), expected, rtol=1e-4)
    assert weight.max() <= 1 + 1e-5
    if kind == "epsilon":
        assert (weight[snr < 5] == 1).all()
        assert (weight[snr > 5] < 1).all()


def test_min_snr_weighs_each_sample_of_the_trained_loss_and_leaves_the_logged_one() -> None:
    prediction = perfect("epsilon") + normal("error")
    off = hf(weight=0.0)
    weighted = Objective(schedule(), off, min_snr_gamma=5.0)(prediction, noisy(), normal("latents"), normal("noise"), T)
    plain = losses(prediction, terms=off)
    assert torch.equal(weighted.values["mse"], plain.values["mse"])
    expected = (plain.values["mse"].mean(1) * schedule().min_snr_weight(T, 5.0)).mean()
    assert weighted.total.item() == pytest.approx(expected.item())
    assert weighted.total < plain.total


def test_a_further_loss_is_added_with_its_weight_and_logged_by_its_name() -> None:
    def brightness(given: Prediction) -> torch.Tensor:
        """Return the squared error of the mean of each half."""
        return (mean_per_half(given.clean_latents) - mean_per_half(given.latents)) ** 2

    prediction = perfect("epsilon") + normal("error")
    result = losses(prediction, terms={**hf(), "brightness": Term(brightness, 3.0, 1000)})
    plain = losses(prediction)
    assert list(result.values) == list(result.counts) == ["mse", "hf", "brightness"]
    assert all(torch.equal(result.values[name], plain.values[name]) for name in plain.values)
    assert (result.values["brightness"] > 0).all()
    assert result.total.item() == pytest.approx((plain.total + 3 * result.values["brightness"].mean()).item())


# Half clean

CLEAN = torch.tensor([[True, False], [False, True], [False, False], [True, False], [False, False]])


@both_predictions
@pytest.mark.parametrize("gamma", [0.0, 5.0])
def test_a_clean_half_has_no_gradient_and_the_other_has(kind: str, gamma: float) -> None:
    prediction = (perfect(kind) + normal("error")).requires_grad_()
    objective = Objective(schedule(kind), hf(), gamma)
    objective(prediction, noisy(), normal("latents"), normal("noise"), T, CLEAN).total.backward()
    assert prediction.grad is not None
    reached = prediction.grad.unflatten(-1, (2, SEAM)).abs().amax((1, 2, 4))
    assert torch.equal(reached > 0, ~CLEAN)


def test_a_half_clean_sample_is_the_mean_of_the_half_that_counts_and_weighs_as_much_as_a_full_one() -> None:
    prediction, given = perfect("epsilon") + normal("error"), (noisy(), normal("latents"), normal("noise"), T)
    plain = Objective(schedule(), hf())(prediction, *given)
    result = Objective(schedule(), hf())(prediction, *given, CLEAN)
    samples = [
        torch.stack([part[row][~CLEAN[row]].mean() for row in range(len(T))])
        for part in (plain.values["mse"], plain.values["hf"])
    ]
    assert result.total.item() == pytest.approx((samples[0] + 0.5 * samples[1]).mean().item())
    assert torch.equal(result.values["mse"], plain.values["mse"] * ~CLEAN)
    assert torch.equal(result.values["hf"], plain.values["hf"] * ~CLEAN)
    assert torch.equal(result.counts["mse"], (~CLEAN).float())
    assert torch.equal(result.counts["hf"], plain.counts["hf"] * ~CLEAN)


def test_no_clean_half_is_the_plain_loss_to_the_bit() -> None:
    """Written out as it is without the option, with a batch that is no power of two."""
    prediction = (perfect("epsilon") + normal("error")).requires_grad_()
    off = hf(weight=0.0)
    plain = (prediction - normal("noise")).square().unflatten(-1, (2, SEAM)).mean(dim=(1, 2, 4)).mean()
    (gradient,) = torch.autograd.grad(plain, prediction)
    given = (prediction, noisy(), normal("latents"), normal("noise"), T)
    for more in ((), (torch.zeros(5, 2, dtype=torch.bool),)):
        total = Objective(schedule(), off)(*given, *more).total
        assert torch.equal(total, plain)
        assert torch.equal(torch.autograd.grad(total, prediction)[0], gradient)
