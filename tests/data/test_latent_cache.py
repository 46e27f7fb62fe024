"""The latents: encoded once, never stale, and drawn from by (seed, sample) alone."""

import hashlib
import os
import shutil
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file

from conftest import VIEW, write_prepared
from retipair.config import TrainConfig
from retipair.data import dataset, latent_cache
from retipair.data.augmentation import apply_variant, draw_variant
from retipair.data.dataset import load_views
from retipair.data.latent_cache import LatentCache, draw, open_cache, open_or_build
from retipair.models.base import Base, open_base
from retipair.models.vae import encode_moments, vae_sha256
from retipair.training.batches import make_batches
from retipair.training.plan import make_plan, read_data

HALF = 2.0**-11
"""Rounding to 16 bits moves a number by at most this share of it."""


# Drawing


@pytest.mark.parametrize("pairs", [1, 3, 100])
def test_every_pair_is_drawn_once_an_epoch(pairs: int) -> None:
    for epoch in range(3):
        drawn = [draw(7, sample, pairs, 4)[0] for sample in range(epoch * pairs, (epoch + 1) * pairs)]
        assert sorted(drawn) == list(range(pairs))


def test_a_draw_depends_on_seed_and_sample_alone() -> None:
    forwards = [draw(7, sample, 20, 4) for sample in range(200)]
    backwards = [draw(7, sample, 20, 4) for sample in reversed(range(200))]
    assert forwards == backwards[::-1]
    assert [draw(8, sample, 20, 4) for sample in range(200)] != forwards
    epochs = [[pair for pair, _ in forwards[first : first + 20]] for first in range(0, 200, 20)]
    assert len({tuple(epoch) for epoch in epochs}) == len(epochs)  # a new order each time


def test_variants_are_drawn_evenly_and_not_tied_to_the_pair() -> None:
    drawn = [draw(7, sample, 4, 8) for sample in range(3200)]
    for counts in (Counter(variant for _, variant in drawn), Counter(drawn)):
        expected = len(drawn) / len(counts)
        assert all(0.6 * expected < count < 1.4 * expected for count in counts.values())
    assert len(Counter(drawn)) == 4 * 8


# Building


def numbered(pairs: int, variants: int) -> list[np.ndarray]:
    return [np.full((2, 4, 3), number, np.uint8) for number in range(pairs * variants)]


def encode_number(joint: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    value = float(joint[0, 0, 0])
    return np.full((4, 1, 2), value), np.full((4, 1, 2), value / 8)


def test_each_pair_and_variant_is_found_at_its_place(tmp_path: Path) -> None:
    shape = (3, 2, 4, 1, 2)
    built = open_or_build(tmp_path / "c", shape, lambda begun: iter(numbered(3, 2)), lambda: encode_number)
    assert (built.pairs, built.variants) == (3, 2)
    mean, std = built.moments([2, 0, 1], [1, 0, 0])
    assert mean.dtype == std.dtype == torch.float16
    assert mean[:, 0, 0, 0].tolist() == [5, 0, 2]
    assert std[:, 0, 0, 0].tolist() == [5 / 8, 0, 2 / 8]


def test_what_is_there_is_not_encoded_again(tmp_path: Path) -> None:
    shape = (2, 1, 4, 1, 2)
    built = open_or_build(tmp_path / "c", shape, lambda begun: iter(numbered(2, 1)), lambda: encode_number)

    def never(*arguments: object) -> object:
        raise AssertionError("encoded again")

    again = open_or_build(tmp_path / "c", shape, never, never)  # type: ignore[arg-type]
    assert torch.equal(again.mean, built.mean)
    assert {path.name for path in (tmp_path / "c").iterdir()} == {"mean.npy", "std.npy", "done.json"}


@pytest.mark.parametrize("harm", [None, "mean.npy", "begun.json"])
def test_what_was_cut_off_goes_on_where_it_was(
    harm: str | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(latent_cache, "_SAVE_EVERY", 2)
    shape, seen = (5, 1, 4, 1, 2), list[int]()

    def joints(begun: int) -> Iterator[np.ndarray]:
        for number, joint in enumerate(numbered(5, 1)[begun:], begun):
            seen.append(number)
            if seen == [0, 1, 2, 3]:
                raise KeyboardInterrupt
            yield joint

    with pytest.raises(KeyboardInterrupt):
        open_or_build(tmp_path / "c", shape, joints, lambda: encode_number)
    assert open_cache(tmp_path / "c", shape) is None
    if harm:
        path = tmp_path / "c" / harm
        path.write_bytes(path.read_bytes()[:5])
    built = open_or_build(tmp_path / "c", shape, joints, lambda: encode_number)
    assert seen[4:] == ([0, 1, 2, 3, 4] if harm else [2, 3, 4])
    assert built.mean[:, 0, 0, 0, 0].tolist() == [0, 1, 2, 3, 4]


def test_space_is_taken_before_anything_is_encoded(tmp_path: Path) -> None:
    """Writing into a mapped file for which a full disk has no room kills a process without a word."""
    if not hasattr(os, "posix_fallocate"):
        pytest.skip("macOS cannot set space aside")
    shape = (400, 1, 4, 8, 16)

    def joints(begun: int) -> Iterator[np.ndarray]:
        for name in ("mean", "std"):
            found = (tmp_path / f"c/{name}.npy").stat()
            assert found.st_blocks * 512 >= np.prod(shape) * 2
        raise KeyboardInterrupt
        yield

    with pytest.raises(KeyboardInterrupt):
        open_or_build(tmp_path / "c", shape, joints, lambda: encode_number)


# In a run

Folder = Callable[[str], Path]


def caches_of(config: TrainConfig) -> tuple[LatentCache, LatentCache]:
    plan = make_plan(config)
    batches = make_batches(plan, read_data(plan))
    return batches.train, batches.val


def settings(data: Path, base: object, results: Path, **more: object) -> TrainConfig:
    values = {"augment_variants": 2, "seed": 1, **more}
    return TrainConfig(name="x", data=data, base=str(base), results=results, device="cpu", **values)  # type: ignore[arg-type]


def folders(results: Path) -> set[str]:
    return {path.name for path in (results / "latents").iterdir()}


def test_cached_latents_are_the_autoencoders_within_rounding(
    system: str, base_folder: Folder, prepared: Path, tmp_path: Path
) -> None:
    config = settings(prepared, base_folder(system), tmp_path)
    plan = make_plan(config)
    data = read_data(plan)
    train, val = caches_of(config)
    assert train.mean.shape == (3, 2, *plan.latent_shape)
    assert val.mean.shape == (1, 1, *plan.latent_shape)
    vae = plan.base.vae()
    for side, entries in ((train, data.train), (val, data.val)):
        for pair, entry in enumerate(entries):
            for variant in range(side.variants):
                views = apply_variant(*load_views(entry, VIEW), draw_variant(variant, config.seed, pair))
                exact = encode_moments(vae, plan.layout.join(*views)[None])
                mean, std = side.moments([pair], [variant])
                assert (mean - exact.mean).abs().max() <= HALF * exact.mean.abs().max()
                assert (std - exact.std).abs().max() <= HALF * exact.std.abs().max()
                assert exact.std.min() > 0


def test_a_second_run_loads_no_autoencoder_and_reads_each_pair_once(
    base_folder: Folder, prepared: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = settings(prepared, base_folder("sd15"), tmp_path)
    caches_of(config)
    before = folders(tmp_path)

    def never(*parts: object) -> None:
        raise AssertionError("loaded again")

    read = Counter[Path]()
    monkeypatch.setattr(Base, "vae", never)
    monkeypatch.setattr(dataset, "file_bytes", lambda path: read.update([path]) or path.read_bytes())
    caches_of(config)
    assert folders(tmp_path) == before
    assert set(read.values()) == {1}


@pytest.mark.parametrize("names", ["present", "former"])
def test_the_hash_of_the_autoencoder_is_that_of_the_loaded_network(
    names: str, base_folder: Folder, tmp_path: Path
) -> None:
    """The file is hashed without loading the network, unless it names its tensors as former versions of diffusers."""
    base = open_base(str(shutil.copytree(base_folder("sd15"), tmp_path / "base")))
    digest = hashlib.sha256(str(base.vae().config.scaling_factor).encode())
    for name, tensor in base.vae().state_dict().items():
        digest.update(name.encode())
        digest.update(tensor.numpy())
    if names == "former":
        path = tmp_path / "base/vae/diffusion_pytorch_model.safetensors"
        weights = {name.replace(".to_q.", ".query."): tensor for name, tensor in load_file(path).items()}
        assert weights.keys() != load_file(path).keys()
        save_file(weights, path, {"format": "pt"})
    loads: list[str] = []
    assert vae_sha256(base, lambda: loads.append("vae") or base.vae()) == digest.hexdigest()  # type: ignore[func-returns-value]
    assert bool(loads) == (names == "former")


@pytest.mark.parametrize("change", ["image", "size", "variants", "seed", "autoencoder", "split", "layout"])
def test_latents_are_never_those_of_something_else(
    change: str, base_folder: Folder, prepared: Path, tmp_path: Path
) -> None:
    """Whatever latents depend on, when it changes, leads to another folder: nothing is overwritten or taken for it."""
    data, base = tmp_path / "data", tmp_path / "base"
    shutil.copytree(prepared, data)
    shutil.copytree(base_folder("sd15"), base)
    before, _ = caches_of(settings(data, base, tmp_path))
    old, names = np.array(before.mean), folders(tmp_path)
    more: dict[str, object] = {}
    if change == "image":
        path = data / "cf" / "eye0.png"
        Image.fromarray(255 - np.asarray(Image.open(path))).save(path)
    elif change == "split":
        shutil.rmtree(data)
        write_prepared(data, ["train", "train", "train", "test", "val"])
    elif change == "autoencoder":
        path = base / "vae" / "diffusion_pytorch_model.safetensors"
        tensors = load_file(path)
        tensors["quant_conv.weight"] *= 1.5
        save_file(tensors, path, {"format": "pt"})
    elif change == "layout":
        base = base_folder("sdxl")
    else:
        more = {"size": {"size": 64}, "variants": {"augment_variants": 3}, "seed": {"seed": 2}}[change]
    after, _ = caches_of(settings(data, base, tmp_path, **more))
    assert names < folders(tmp_path)
    assert old.shape != after.mean.shape or not np.array_equal(old, after.mean)


def test_latents_are_shared_by_runs_that_differ_only_in_the_network(
    base_folder: Folder, prepared: Path, tmp_path: Path
) -> None:
    base = tmp_path / "base"
    shutil.copytree(base_folder("sd15"), base)
    caches_of(settings(prepared, base, tmp_path))
    names = folders(tmp_path)
    path = base / "unet" / "diffusion_pytorch_model.safetensors"
    tensors = load_file(path)
    tensors["conv_in.bias"] += 1
    save_file(tensors, path, {"format": "pt"})
    caches_of(settings(prepared, base, tmp_path, unet_lora_rank=2, learning_rate=1.0))
    assert folders(tmp_path) == names
