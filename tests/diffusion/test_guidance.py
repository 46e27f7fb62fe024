"""Cross-view guidance: its parts, and one guided step of a real UNet."""

import pytest
import torch
from diffusers import DDPMScheduler
from diffusers.models.attention_processor import Attention, AttnProcessor2_0

from retipair.data.layout import Layout, LayoutName
from retipair.diffusion.guidance import Guidance, GuidedDenoiser, match_power
from retipair.diffusion.halves import split_halves
from retipair.diffusion.schedule import NoiseSchedule
from retipair.models.base import Base, open_base
from retipair.models.conditioning import Conditioning, encode_prompts
from retipair.models.denoiser import Denoiser
from retipair.models.view_attention import ViewAttention

LAYOUT: dict[str, LayoutName] = {"sdxl": "side_by_side", "sd15": "squeezed"}


def normal(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


@pytest.fixture(scope="module", params=["sdxl", "sd15"])
def base(request: pytest.FixtureRequest) -> Base:
    return open_base(f"random:tiny-{request.param}")


@pytest.fixture(scope="module")
def denoise(base: Base) -> Denoiser:
    return Denoiser(base.unet().eval(), torch.float32, "cpu")


@pytest.fixture(scope="module")
def conditioning(base: Base) -> Conditioning:
    """Two rows: of a prompt, and unconditional."""
    return encode_prompts(base, ["an eye"], layout_of(base).joint_size, "cpu")


def layout_of(base: Base) -> Layout:
    return Layout(LAYOUT[base.family.name], 128)


def latents_of(base: Base, seed: int = 0) -> torch.Tensor:
    return normal(1, *base.latent_shape(layout_of(base).joint_size), seed=seed)


# Attention


@pytest.mark.parametrize("aspect", [1, 2])
def test_the_halves_do_not_see_each_other_in_separate_rows_and_do_in_others(aspect: int) -> None:
    height, width = 4, 4 * aspect
    attention = Attention(query_dim=8, heads=2, dim_head=4, processor=ViewAttention(AttnProcessor2_0()))
    tokens = normal(2, 8, height, width)
    changed = tokens.clone()
    changed[..., width // 2 :] += 1.0
    with torch.no_grad():
        before, after = (
            attention(x.flatten(2).transpose(1, 2), separate=1, aspect=float(aspect))
            .transpose(1, 2)
            .unflatten(2, (height, width))
            for x in (tokens, changed)
        )
    left = slice(0, width // 2)
    assert not torch.allclose(before[0, ..., left], after[0, ..., left])
    assert torch.allclose(before[1, ..., left], after[1, ..., left], atol=1e-6)
    assert not torch.allclose(before[1], after[1])


def test_each_half_is_attended_to_as_if_it_were_alone() -> None:
    attention = Attention(query_dim=8, heads=2, dim_head=4, processor=ViewAttention(AttnProcessor2_0()))
    tokens = normal(1, 8, 4, 8)
    with torch.no_grad():
        both = attention(tokens.flatten(2).transpose(1, 2), separate=1, aspect=2.0)
        right = attention(tokens[..., 4:].flatten(2).transpose(1, 2))
    assert torch.allclose(
        both.transpose(1, 2).unflatten(2, (4, 8))[..., 4:].flatten(2).transpose(1, 2), right, atol=1e-6
    )


def test_the_middle_column_of_an_odd_width_belongs_to_both_halves() -> None:
    attention = Attention(query_dim=8, heads=2, dim_head=4, processor=ViewAttention(AttnProcessor2_0()))
    tokens = normal(1, 8, 3, 3)
    with torch.no_grad():
        both = attention(tokens.flatten(2).transpose(1, 2), separate=1).transpose(1, 2).unflatten(2, (3, 3))
        left, right = (
            attention(part.flatten(2).transpose(1, 2)).transpose(1, 2).unflatten(2, (3, 2))
            for part in (tokens[..., :2], tokens[..., 1:])
        )
    expected = torch.stack([left[..., 0], (left[..., 1] + right[..., 0]) / 2, right[..., 1]], dim=-1)
    assert torch.allclose(both, expected, atol=1e-6)


@pytest.mark.parametrize("size", [64, 192])
def test_a_level_with_an_odd_number_of_columns_is_guided_too(size: int) -> None:
    """In the squeezed layout, the middle block has one column at 64 px, and three at 192 px."""
    base = open_base("tiny-sd15")
    joint = Layout("squeezed", size).joint_size
    denoise = Denoiser(base.unet().eval(), torch.float32, "cpu")
    conditioning = encode_prompts(base, ["an eye"], joint, "cpu").rows([0, 0])
    latents = torch.cat([normal(1, *base.latent_shape(joint))] * 2)
    together, alone = denoise(latents, torch.tensor(500), conditioning, separate=1)
    assert together.shape == alone.shape
    assert (together - alone).abs().max() > 1e-4


def test_a_prediction_of_joint_rows_is_that_of_the_unchanged_network(
    base: Base, denoise: Denoiser, conditioning: Conditioning
) -> None:
    latents, t = latents_of(base), torch.tensor(500)
    joint = denoise(latents, t, conditioning.rows([0]))
    both = denoise(torch.cat([latents] * 2), t, conditioning.rows([0, 0]), separate=1)
    added = {} if conditioning.pooled is None else conditioning_of_the_library(conditioning)
    embeddings = conditioning.rows([0]).embeddings
    unchanged = base.unet().eval()(latents, t, encoder_hidden_states=embeddings, added_cond_kwargs=added)[0]
    assert torch.equal(joint, unchanged)
    assert torch.allclose(both[:1], joint, atol=1e-5)
    assert (both[1] - joint[0]).abs().max() > 1e-3


def conditioning_of_the_library(conditioning: Conditioning) -> dict[str, torch.Tensor | None]:
    first = conditioning.rows([0])
    return {"text_embeds": first.pooled, "time_ids": first.size_ids}


# The parts of a guided step


@pytest.mark.parametrize("kind", ["epsilon", "v_prediction"])
def test_a_prediction_is_recovered_from_its_clean_latents(kind: str) -> None:
    schedule = NoiseSchedule.from_scheduler(DDPMScheduler(prediction_type=kind))
    noisy, prediction, t = normal(3, 4, 8, 8), normal(3, 4, 8, 8, seed=1), torch.tensor([1, 400, 999])
    clean = schedule.clean_latents(prediction, noisy, t)
    assert torch.allclose(schedule.prediction(clean, noisy, t), prediction, atol=1e-3)


def test_matched_latents_have_the_power_of_the_reference_and_their_own_mean_and_phase() -> None:
    latents, reference = normal(2, 3, 16, 8), 3.0 * normal(2, 3, 16, 8, seed=1) + 5.0
    matched = match_power(latents, reference)
    centred, wanted = (x - x.mean(dim=(2, 3), keepdim=True) for x in (matched, reference))
    # rfft2 leaves out the negative frequencies of each row, so the sums over all pixels agree only roughly
    assert torch.allclose(centred.square().sum(dim=(2, 3)), wanted.square().sum(dim=(2, 3)), rtol=0.3)
    assert torch.allclose(matched.mean(dim=(2, 3)), latents.mean(dim=(2, 3)), atol=1e-5)
    phases = [torch.fft.rfft2(x).angle()[..., 1:, 1:-1] for x in (matched, latents)]
    assert torch.allclose(*phases, atol=1e-3)
    assert torch.allclose(match_power(latents, latents), latents, atol=1e-5)


# A guided step


def guided(base: Base, denoise: Denoiser, rows: Conditioning, guidance: Guidance, t: int) -> torch.Tensor:
    predict = GuidedDenoiser(denoise, base.schedule, guidance, rows, batch_size=1)
    return predict(latents_of(base), float(t), torch.tensor(t))


def predictions(base: Base, denoise: Denoiser, conditioning: Conditioning, t: int) -> tuple[torch.Tensor, ...]:
    """Return the joint and the separate prediction."""
    latents = torch.cat([latents_of(base)] * 2)
    with torch.no_grad():
        return denoise(latents, torch.tensor(t), conditioning.rows([0, 0]), 1).chunk(2)


def test_guidance_changes_the_cf_and_moves_the_fa_half_way_to_its_separate_prediction(
    base: Base, denoise: Denoiser, conditioning: Conditioning
) -> None:
    (joint_cf, joint_fa), (_, alone_fa) = map(split_halves, predictions(base, denoise, conditioning, 600))
    cf, fa = split_halves(guided(base, denoise, conditioning.rows([0]), Guidance(pair_scale=3.0), 600))
    assert torch.allclose(fa, (joint_fa + alone_fa) / 2, atol=1e-5)
    assert (fa - joint_fa).abs().max() > 1e-3
    assert (cf - joint_cf).abs().max() > 1e-3


@pytest.mark.parametrize("scale", [0.0, 1.0])
def test_the_other_view_is_as_predicted_separately_at_0_and_jointly_at_1(
    scale: float, base: Base, denoise: Denoiser, conditioning: Conditioning
) -> None:
    joint, alone = predictions(base, denoise, conditioning, 600)
    result = guided(base, denoise, conditioning.rows([0]), Guidance(pair_scale=3.0, other_scale=scale), 600)
    assert torch.allclose(split_halves(result)[1], split_halves(joint if scale else alone)[1], atol=1e-5)


def test_without_the_spectrum_the_difference_is_added_to_the_guided_view(
    base: Base, denoise: Denoiser, conditioning: Conditioning
) -> None:
    guidance = Guidance(pair_scale=3.0, guided_view="fa", other_scale=1.0, keeps_spectrum=False)
    (joint_cf, joint_fa), (_, alone_fa) = map(split_halves, predictions(base, denoise, conditioning, 700))
    cf, fa = split_halves(guided(base, denoise, conditioning.rows([0]), guidance, 700))
    assert torch.allclose(cf, joint_cf, atol=1e-6)
    assert torch.allclose(fa, joint_fa + 2 * (joint_fa - alone_fa), atol=1e-5)


def test_guidance_is_off_at_a_scale_of_1_and_below_its_first_timestep(
    base: Base, denoise: Denoiser, conditioning: Conditioning
) -> None:
    row = conditioning.rows([0])
    for guidance, t in ((Guidance(), 600), (Guidance(pair_scale=3.0, pair_from=0.5), 499)):
        assert torch.equal(guided(base, denoise, row, guidance, t), denoise(latents_of(base), torch.tensor(t), row))
    at_first = guided(base, denoise, row, Guidance(pair_scale=3.0, pair_from=0.5), 500)
    assert not torch.equal(at_first, denoise(latents_of(base), torch.tensor(500), row))


def test_both_kinds_of_guidance_work_together(base: Base, denoise: Denoiser, conditioning: Conditioning) -> None:
    """With other_scale 1, the FA has only classifier-free guidance."""
    rows = conditioning.rows([1, 0])
    both = guided(base, denoise, rows, Guidance(prompt_scale=4.0, pair_scale=3.0, other_scale=1.0), 600)
    prompt_alone = guided(base, denoise, rows, Guidance(prompt_scale=4.0), 600)
    assert torch.allclose(split_halves(both)[1], split_halves(prompt_alone)[1], atol=1e-4)
    assert (both - prompt_alone).abs().max() > 1e-3
