"""All randomness is a function of a key: the seed and a few numbers that say what it is for."""

import numpy as np
import pytest
import torch

from retipair.diffusion.noise import clean_halves, generator, noise_like, timesteps_for, with_clean_halves

LATENTS = torch.zeros(3, 4, 16, 32)
KEYS = [(5, "noise", sample) for sample in range(3)]


def test_a_generator_is_its_key() -> None:
    def first(*key: int | str) -> float:
        return torch.rand((), generator=generator(*key), dtype=torch.float64).item()

    assert first(1, "noise", 2) == first(1, "noise", 2)
    different = [
        first(1, "noise", 2),
        first(2, "noise", 1),
        first(1, "noise", 3),
        first(2, "noise", 2),
        first(1, "posterior", 2),
        first(1, 2, 1),
        first(1, 2, 0),
        first(1, 0, 2),
    ]
    assert len(set(different)) == len(different)


def test_noise_depends_on_its_key_and_not_on_its_neighbours() -> None:
    together = noise_like(LATENTS, *KEYS, offset=0.1)
    for row, key in enumerate(KEYS):
        assert torch.equal(noise_like(LATENTS[:1], key, offset=0.1)[0], together[row])
    assert torch.equal(noise_like(LATENTS, *KEYS[::-1], offset=0.1), together.flip(0))


def test_noise_ignores_torchs_own_generator() -> None:
    torch.manual_seed(1)
    first = noise_like(LATENTS, *KEYS)
    state = torch.get_rng_state()
    torch.manual_seed(2)
    assert torch.equal(noise_like(LATENTS, *KEYS), first)
    torch.manual_seed(1)
    assert torch.equal(torch.get_rng_state(), state)  # and leaves it where it was


def test_noise_is_standard_normal() -> None:
    noise = noise_like(torch.zeros(8, 4, 64, 128), *((0, "n", i) for i in range(8)))
    assert noise.dtype == torch.float32
    assert abs(noise.mean()) < 0.01
    assert noise.std() == pytest.approx(1, abs=0.01)


def test_offset_is_one_constant_for_each_half_and_channel() -> None:
    """Were it one for both halves, it would couple two opposite brightnesses."""
    offset = noise_like(LATENTS, *KEYS, offset=0.1) - noise_like(LATENTS, *KEYS)
    halves = offset.unflatten(-1, (2, 16))  # (B, C, h, half, w/2)
    constants = halves.mean((2, 4))  # (B, C, half)
    assert torch.allclose(halves, constants[:, :, None, :, None].expand_as(halves), atol=1e-6)
    assert len(np.unique(constants.numpy().round(4))) == constants.numel()


def test_offset_has_the_strength_asked_for_and_halves_that_know_nothing_of_each_other() -> None:
    keys = [(9, "noise", sample) for sample in range(1000)]
    small = torch.zeros(1000, 4, 2, 4)
    offset = (noise_like(small, *keys, offset=0.1) - noise_like(small, *keys)).unflatten(-1, (2, 2)).mean((2, 4))
    assert offset.std() == pytest.approx(0.1, rel=0.05)
    left, right = offset[..., 0].flatten(), offset[..., 1].flatten()
    assert abs(torch.corrcoef(torch.stack([left, right]))[0, 1]) < 0.05


def test_timesteps_are_uniform_and_depend_on_their_key() -> None:
    keys = [(3, "timestep", sample) for sample in range(4000)]
    t = timesteps_for(1000, torch.device("cpu"), *keys)
    assert t.dtype == torch.int64
    assert t.min() >= 0
    assert t.max() <= 999
    assert np.histogram(t.numpy(), bins=10, range=(0, 1000))[0].min() > 320
    assert torch.equal(timesteps_for(1000, torch.device("cpu"), keys[17]), t[17:18])


def halves(fraction: float, count: int = 4000) -> torch.Tensor:
    return clean_halves(fraction, torch.device("cpu"), *((3, "clean", sample) for sample in range(count)))


@pytest.mark.parametrize("fraction", [0.0, 0.3, 1.0])
def test_clean_halves_are_as_many_as_asked_for_and_even_between_the_views(fraction: float) -> None:
    clean = halves(fraction)
    assert clean.shape == (4000, 2)
    assert clean.dtype == torch.bool
    assert clean.sum(1).max() <= 1  # never both
    if fraction in (0, 1):
        assert (clean.any(1) == bool(fraction)).all()
    assert clean.float().mean(0).tolist() == pytest.approx([fraction / 2] * 2, abs=0.03)


def test_clean_halves_depend_on_their_key_alone() -> None:
    clean = halves(0.5, 40)
    assert torch.equal(halves(0.5, 40), clean)
    for sample in range(40):
        assert torch.equal(clean_halves(0.5, torch.device("cpu"), (3, "clean", sample)), clean[sample : sample + 1])
    assert not torch.equal(clean_halves(0.5, torch.device("cpu"), *((4, "clean", s) for s in range(40))), clean)


def test_clean_halves_are_the_latents_and_the_rest_stays_noisy() -> None:
    noisy, latents = noise_like(LATENTS, *KEYS), noise_like(LATENTS, *((5, "latents", sample) for sample in range(3)))
    mixed = with_clean_halves(noisy, latents, torch.tensor([[False, False], [True, False], [False, True]]))
    assert torch.equal(mixed[0], noisy[0])
    for row, (left, right) in ((1, (latents, noisy)), (2, (noisy, latents))):
        assert torch.equal(mixed[row, ..., :16], left[row, ..., :16])
        assert torch.equal(mixed[row, ..., 16:], right[row, ..., 16:])
