"""A batch is a function of the seed and the numbers of its samples: not of its neighbours, nor of what came before."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from msgspec import structs

from conftest import VIEW, write_prepared
from retipair.config import TrainConfig
from retipair.data.latent_cache import draw
from retipair.data.manifest import read_manifest, write_manifest
from retipair.runtime.distributed import SINGLE_PROCESS, DistributedState
from retipair.training.batches import Batches, make_batches
from retipair.training.plan import make_plan, read_data

SAMPLES = range(40)


@pytest.fixture(scope="module")
def batches(tmp_path_factory: pytest.TempPathFactory, base_folder: Callable[[str], Path]) -> Batches:
    root = tmp_path_factory.mktemp("batches")
    captions = {0: "first", 2: "third", 3: "never trained on"}
    data = write_prepared(root / "data", ["train", "train", "train", "val", "val"], captions)
    config = TrainConfig(
        name="x",
        data=data,
        base=str(base_folder("sdxl")),
        results=root,
        device="cpu",
        augment_variants=2,
        seed=3,
        half_clean_fraction=0,
    )
    plan = make_plan(config)
    return make_batches(plan, read_data(plan))


def test_a_sample_does_not_depend_on_its_batch(batches: Batches) -> None:
    batches = replace(batches, config=replace(batches.config, half_clean_fraction=0.7))
    together = batches.batch_of([5, 6, 7])
    for row, sample in enumerate((5, 6, 7)):
        alone = batches.batch_of([sample])
        assert torch.equal(alone.latents[0], together.latents[row])
        assert torch.equal(alone.noise[0], together.noise[row])
        assert torch.equal(alone.t[0], together.t[row])
        assert torch.equal(alone.clean[0], together.clean[row])
        assert torch.equal(alone.conditioning.embeddings[0], together.conditioning.embeddings[row])


def test_samples_and_seeds_differ_in_everything_drawn(batches: Batches) -> None:
    ours = batches.batch_of(SAMPLES)
    other = replace(batches, config=replace(batches.config, seed=4)).batch_of(SAMPLES)
    for batch in (ours, other):
        assert len({noise.numpy().tobytes() for noise in batch.noise}) == len(SAMPLES)
        assert len({latents.numpy().tobytes() for latents in batch.latents}) == len(SAMPLES)
        assert len(set(batch.t.tolist())) > 30
    assert not torch.equal(ours.noise, other.noise)
    assert not torch.equal(ours.t, other.t)
    assert not torch.equal(ours.latents, other.latents)


def test_latents_are_drawn_from_what_the_autoencoder_says(batches: Batches) -> None:
    batch = batches.batch_of(SAMPLES)
    pairs, variants = zip(*(draw(3, sample, 3, 2) for sample in SAMPLES), strict=True)
    mean, std = batches.train.moments(pairs, variants)
    deviates = (batch.latents - mean) / std
    assert deviates.mean() == pytest.approx(0, abs=0.02)
    assert deviates.std() == pytest.approx(1, abs=0.02)
    assert abs(torch.corrcoef(torch.stack([deviates.flatten(), batch.noise.flatten()]))[0, 1]) < 0.02


def test_each_pair_hears_its_own_sentence(batches: Batches) -> None:
    batch = batches.batch_of(SAMPLES)
    sentences = ["first", batches.config.prompt, "third"]
    for row, sample in enumerate(SAMPLES):
        pair, _ = draw(3, sample, 3, 2)
        assert torch.equal(batch.conditioning.embeddings[row], batches.conditioning_for(sentences[pair]).embeddings[0])


def test_dropped_prompts_are_what_guidance_calls_no_prompt(batches: Batches) -> None:
    """About as many as asked for; SDXL's are zeros."""
    dropping = replace(batches, config=replace(batches.config, prompt_dropout=0.25))
    without, usual = dropping.batch_of(range(400)), batches.batch_of(range(400))
    dropped = ~without.conditioning.embeddings.flatten(1).any(1)
    assert 0.18 < dropped.float().mean() < 0.32
    assert without.conditioning.pooled is not None
    assert not without.conditioning.pooled[dropped].any()
    assert torch.equal(without.conditioning.embeddings[~dropped], usual.conditioning.embeddings[~dropped])
    assert torch.equal(without.noise, usual.noise)  # nothing else changes


def test_size_ids_are_the_native_size_of_each_pair_if_asked_for(
    tmp_path: Path, base_folder: Callable[[str], Path]
) -> None:
    """Validation pairs too, and samples without a prompt; smaller views on disk count, larger raw views do not."""
    data = write_prepared(tmp_path / "data", ["train", "train", "train", "val"])
    sizes = (None, [VIEW // 2, 4 * VIEW], [2 * VIEW, 3 * VIEW], [3 * VIEW, VIEW // 4])
    write_manifest(data, [structs.replace(r, native_size=s) for r, s in zip(read_manifest(data), sizes, strict=True)])
    config = TrainConfig(
        name="x", data=data, base=str(base_folder("sdxl")), results=tmp_path, device="cpu", prompt_dropout=0.5
    )
    original = {}
    for size_ids in ("full", "native"):
        plan = make_plan(replace(config, size_ids=size_ids))
        made = make_batches(plan, read_data(plan))
        batch, samples = made.batch_of(SAMPLES), made.pairs_of(SAMPLES)
        ids = {pair: batch.conditioning.size_ids[row].tolist() for row, pair in enumerate(samples)}
        for row, pair in enumerate(samples):
            assert batch.conditioning.size_ids[row].tolist() == ids[pair]
        ids[3] = next(made.validation(SINGLE_PROCESS))[1].conditioning.size_ids[0].tolist()
        assert {tuple(row[2:]) for row in ids.values()} == {(0, 0, VIEW, 2 * VIEW)}
        original[size_ids] = [tuple(ids[pair][:2]) for pair in range(4)]
        assert made.conditioning_for(config.prompt).size_ids.tolist() == [[VIEW, 2 * VIEW, 0, 0, VIEW, 2 * VIEW]]
    full, half, quarter = ((VIEW // n, 2 * VIEW // n) for n in (1, 2, 4))
    assert original == {"full": [full] * 4, "native": [full, half, full, quarter]}


def test_halves_left_clean_are_as_many_as_asked_for_and_nothing_else_changes(batches: Batches) -> None:
    half, usual = replace(batches, config=replace(batches.config, half_clean_fraction=0.5)), batches
    ours, theirs = half.batch_of(range(400)), usual.batch_of(range(400))
    assert not theirs.clean.any()
    assert ours.clean.float().mean(0).tolist() == pytest.approx([0.25, 0.25], abs=0.07)
    for name in ("latents", "noise", "t"):
        assert torch.equal(getattr(ours, name), getattr(theirs, name))
    assert torch.equal(ours.conditioning.embeddings, theirs.conditioning.embeddings)


def test_validation_is_the_same_whatever_the_training_draws(batches: Batches) -> None:
    other = replace(batches, config=replace(batches.config, seed=9, offset_noise_strength=0.5, prompt_dropout=0.9))
    other = replace(other, config=replace(other.config, half_clean_fraction=1.0))
    ours, theirs = ([batch for _, batch in one.validation(SINGLE_PROCESS)] for one in (batches, other))
    assert [int(batch.t) for batch in ours] == [200, 500, 800] * 2
    assert [place for place, _ in batches.validation(SINGLE_PROCESS)] == [0, 1, 2] * 2
    for one, two in zip(ours, theirs, strict=True):
        assert torch.equal(one.latents, two.latents)
        assert torch.equal(one.noise, two.noise)
        assert torch.equal(one.conditioning.embeddings, two.conditioning.embeddings)
        assert not two.clean.any()
    means, _ = batches.val.moments([0, 1], [0, 0])
    assert torch.equal(ours[0].latents[0], means[0].float())  # no draw: the mean
    assert torch.equal(ours[3].latents[0], means[1].float())
    assert len({batch.noise.numpy().tobytes() for batch in ours}) == 6
    heard = [batch.conditioning.embeddings[0] for batch in ours]
    assert torch.equal(heard[0], batches.conditioning_for("never trained on").embeddings[0])
    assert torch.equal(heard[3], batches.conditioning_for(batches.config.prompt).embeddings[0])


def test_processes_validate_each_its_share_of_the_pairs(batches: Batches) -> None:
    shares = [list(batches.validation(DistributedState(rank, 2))) for rank in (0, 1)]
    together = [batch for share in shares for _, batch in share]
    for one, two in zip(together, (batch for _, batch in batches.validation(SINGLE_PROCESS)), strict=True):
        assert torch.equal(one.latents, two.latents)
        assert torch.equal(one.noise, two.noise)
